"""What the other shards do: hold gradients, tell shard 0, and do what it decides in its order."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import msgspec

from evener import errors
from evener.devices.process import give_back
from evener.report import Reporter, Status
from evener.server.batches import only_of_scripts
from evener.server.links import Link, Links, Seat
from evener.server.shard import Shard
from evener.settings import Settings
from evener.state.atomic import FileRecord
from evener.state.checkpoint import Store
from evener.state.contents import Contents
from evener.transport.channel import Channel, Source
from evener.wire import codec
from evener.wire.messages import (
    AnyMessage,
    Decided,
    Goodbye,
    Granted,
    Held,
    Hello,
    Join,
    Key,
    Leaving,
    Lost,
    Pull,
    Pulled,
    Push,
    Refused,
    RunOver,
    Save,
    Saved,
)  # fmt: skip
from evener.wire.words import Identity

log = logging.getLogger(__name__)


class Follower:
    """A shard other than 0. It asks no policy: `leader` is its link to the one that does."""

    def __init__(  # noqa: PLR0913 - what a server is given, each once
        self,
        links: Links,
        shard: Shard,
        leader: Channel,
        *,
        index: int,
        settings: Settings,
        store: Store,
        generation: int,
        restored: Contents | None,
        report: Reporter,
        clock: Callable[[], float],
    ) -> None:
        self.links, self.shard, self.leader = links, shard, leader
        self.index, self.settings, self.generation = index, settings, generation
        self.done = False
        self._store = store
        self._restored = restored
        self._report, self._clock = report, clock
        self._started = self._several = False  # whether workers may have several batches in hand
        self._leaving = False
        self._last_report = clock()
        self._keys: dict[Key, int] = {}  # pushes that the leader has not decided over -> handle
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._saving: tuple[int, bytes, Future[dict[str, FileRecord]]] | None = None  # its step and values

    @property
    def sources(self) -> Sequence[Source]:
        """The leader."""
        return [self.leader]

    def pause(self) -> float:
        """It waits for others only."""
        return math.inf

    def rescue(self) -> None:
        """The leader saves, if that can be."""

    # --- from workers

    def handle(self, link: Link, message: AnyMessage) -> None:
        """One message of a worker. Raises WireError to refuse it; any other error ends the run."""
        if isinstance(message, Hello):
            self._hello(link, message)
            return
        if not isinstance(message, Join | Push | Pull | Goodbye):
            raise errors.ProtocolError(f"{link.description} sent a {type(message).__name__} to a following ps.")
        seat = self.links.seat_of(link, message.identity)
        match message:
            case Join():
                if seat.joined:
                    raise errors.ProtocolError(f"{seat.name} joined twice.")
                seat.joined = True
                self._holds(seat, 0)
            case Push():
                self._push(seat, message)
            case Pull(_, what):
                self.links.answer(
                    link, Pulled(what, self.shard.state.step), self.shard.parts(what, seat.slot, seat.worker)
                )
            case Goodbye():
                self.links.dismiss(seat)

    def _hello(self, link: Link, hello: Hello) -> None:
        self.links.check(hello, link, workers=self.settings.workers)
        worker, epoch = hello.identity.worker, hello.identity.epoch
        old = self.links.seats.get(worker)
        if old is not None and epoch < old.epoch:
            raise errors.Fenced(f"worker:{worker} was replaced by epoch {old.epoch}; this process has epoch {epoch}.")
        if epoch == 0:
            raise errors.ProtocolError(f"worker:{worker} asked ps:{self.index} for an epoch; only ps:0 grants them.")
        if hello.samples < 1 and not self.settings.script:
            raise errors.ProtocolError(f"worker:{worker} has no training samples.")
        if not self._started:
            self._started = True
            self._several = hello.batches or self.settings.batches > 1
            settings = replace(self.settings, batch_size=1) if hello.batches else self.settings
            restored, self._restored = self._restored, None  # as large as the state: not kept once it is taken over
            self.shard.state.begin(
                settings.steps_per_epoch(hello.samples), restored, hyperparameters=self.settings.hyperparameters
            )
        self.links.admit(link, hello, epoch)
        self.links.answer(link, Granted(Identity(worker, epoch, self.generation)))

    def _push(self, seat: Seat, push: Push) -> None:
        if push.identity.generation != self.generation:
            raise errors.PushRejected(f"{seat.name} pushed a gradient of another generation.")
        answered = seat.answer.seq if seat.answer is not None else 0
        if push.seq <= answered or push.seq == seat.awaits:  # sent again
            if push.seq == answered and seat.answer is not None:
                self.links.release(seat, seat.answer, self.shard.state.parameters.parts)
        elif self._may_push(seat, push):
            self.shard.remember(push)
            self._keys[seat.worker, seat.epoch, push.seq] = self.shard.hold(push, self.links.gradient(seat))
            self._holds(seat, push.seq)
        else:
            raise errors.ProtocolError(f"{seat.name} pushed out of turn: version {push.version}, seq {push.seq}.")

    def _may_push(self, seat: Seat, push: Push) -> bool:
        """A script may have been told of newer parameters by the leader, which alone knows what it has in hand."""
        if self.settings.script:
            by_samples = not push.count or (self.settings.by_samples and push.count == push.examples)
            oldest = seat.before if self.settings.terms.in_flight > 1 else seat.version
            return seat.its_turn() and push.version >= oldest and by_samples
        mine = seat.may_push(push, in_flight=self.settings.terms.in_flight)
        return mine and not only_of_scripts(push, several=self._several)

    def _holds(self, seat: Seat, seq: int) -> None:
        seat.awaits = seq
        handle = self._keys.get((seat.worker, seat.epoch, seq))
        products = [] if handle is None else [(*key, number) for key, number in self.shard.products(handle)]
        bad = "" if handle is None else self.shard.held[handle].bad
        self._tell(Held(self.index, seat.worker, seat.epoch, seq, products, bad[:256]))

    def gone(self, link: Link) -> None:
        """A worker's link broke. The leader decides what becomes of its gradients, which stay held until then."""
        if link.seat is not None:
            seat = link.seat
            self.links.dismiss(seat)
            self._tell(Lost(self.index, seat.worker, seat.epoch, link.ended[:1024]))

    # --- from the leader

    def hear(self) -> None:
        """Do what the leader has decided since."""
        while (message := self._next()) is not None:
            match message:
                case Decided() as decided:
                    self._follow(decided)
                case Save():
                    self._save()
                case RunOver(reason, failed):
                    self.done = True
                    if failed:
                        raise errors.TaskFailed(f"the run ended: {reason}.")
                    return
                case Refused() as refused:
                    raise codec.raised(refused)
                case other:
                    raise errors.ProtocolError(f"ps:0 sent a {type(other).__name__}.")

    def _next(self) -> AnyMessage | None:
        try:
            header = self.leader.receive(0.0)
        except errors.PeerGone as error:
            raise errors.ServerLost("ps:0 is gone.", why=f"its link to ps:{self.index} broke.") from error
        return None if header is None else codec.decode(header)

    def _follow(self, decided: Decided) -> None:
        for key in decided.drop:
            if key in self._keys:
                self.shard.drop(self._keys.pop(key))
        if decided.judged:
            self.shard.state.judged(decided.judged)
        if decided.apply:
            self.shard.apply([self._keys.pop(key) for key in decided.apply], decided.factor)
        assert self.shard.state.step == decided.version, (
            f"ps:{self.index} is at version {self.shard.state.step}, ps:0 at {decided.version}"
        )
        for worker, epoch in decided.gone:
            self.shard.state.ruled.forget(worker)
            # The leader never heard of these: the worker was gone before they lay on all shards.
            for key in [key for key in self._keys if key[:2] == (worker, epoch)]:
                self.shard.drop(self._keys.pop(key))
            seat = self.links.seats.get(worker)
            if seat is not None and seat.epoch == epoch:
                self.links.dismiss(seat)
        for worker, epoch, answer in decided.release:
            seat = self.links.seats.get(worker)
            if seat is not None and seat.epoch == epoch:
                self.shard.released(worker)
                seat.awaits = None
                self.links.release(seat, answer, self.shard.state.parameters.parts)

    def _save(self) -> None:
        contents = self.shard.state.contents()
        written = self._thread.submit(self._store.write_shard, contents, self.index)
        self._saving = (contents.step, msgspec.json.encode(contents.values), written)

    # --- time

    @property
    def saving(self) -> bool:
        return self._saving is not None

    def tick(self) -> None:
        """Called between messages, at least every 0.2 s."""
        if self._saving is not None and self._saving[2].done():
            (step, values, written), self._saving = self._saving, None
            give_back()  # the copy that was written
            error = written.exception()
            files = {} if error else {name: (r.nbytes, r.sha256) for name, r in written.result().items()}
            self._tell(Saved(self.index, step, files, values, str(error) if error else ""))
        now = self._clock()
        if now - self._last_report >= 0.2:
            self._last_report = now
            self._report(Status(f"ps:{self.index}", "serving", self.shard.state.step))

    def stop(self, reason: str, *, complete: bool = True) -> None:
        """The leader stops the run; a follower waits for its word."""

    def leave(self, reason: str) -> None:
        """This task was told to leave: the leader has all shards saved first, and then ends this generation."""
        if not self._leaving:
            self._leaving = True
            self._tell(Leaving(self.index, reason))

    def _tell(self, message: AnyMessage) -> None:
        try:
            self.leader.send(codec.encode(message))
        except errors.PeerGone as error:
            self.hear()  # its last words say why: that the run is over, or who is really gone
            if not self.done:
                raise errors.ServerLost("ps:0 is gone.", why=f"ps:{self.index} could not reach it.") from error

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self.leader.close()
