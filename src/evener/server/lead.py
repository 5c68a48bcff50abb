"""What shard 0 does: it knows who belongs, hands out leases, asks the policy, and tells the other shards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from evener import errors
from evener.checkpoint import Manifest, Record
from evener.policy import policy_for
from evener.policy.events import Apply, Drop, Event, Joined, Left, Pushed
from evener.policy.events import Release as ReleaseDecision
from evener.policy.follow import Whole
from evener.policy.leases import Leases
from evener.policy.members import Members, Verdict
from evener.report import Finished, Progress, Reporter
from evener.saver import Saver
from evener.server.links import Link, Links, Seat
from evener.server.shard import Shard
from evener.tally import Tally
from evener.settings import Settings
from evener.state import Contents
from evener.wire.messages import (
    AnyMessage, Contents as Shown, Decided, End, Follow, Goodbye, Granted, Halt, Held, Hello, Identity, Join, Key, Lead,
    Lost, Pull, Push, Release, Save, Saved,
)  # fmt: skip

log = logging.getLogger(__name__)

#: Seconds that workers have to say goodbye once the run has ended.
GRACE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a server is given; time, storage and reporting come from outside."""

    settings: Settings
    saver: Saver
    report: Reporter
    clock: Callable[[], float]
    restored: tuple[Manifest, Contents] | None
    generation: int
    epochs: dict[int, int]
    keep_epochs: Callable[[dict[int, int]], None]  # durable before it returns
    evener: str


class Leader:
    """Shard 0. `handle`, `gone` and `tick` are called by the loop, never at once."""

    def __init__(self, links: Links, shard: Shard, setup: Setup) -> None:
        self.links, self.shard, self.setup = links, shard, setup
        self.settings = setup.settings
        manifest = setup.restored[0] if setup.restored else None
        self.first_step = manifest.step if manifest else 0
        self.policy = policy_for(
            self.settings.mode,
            replicas_to_aggregate=self.settings.aggregate,
            accumulate=self.settings.accumulate,
            elastic=self.settings.elastic,
            staleness=self.settings.staleness,
            version=self.first_step,
        )
        self.members = Members(
            generation=setup.generation,
            epochs=setup.epochs,
            seqs={int(worker): seq for worker, seq in manifest.seqs.items()} if manifest else {},
        )
        self.whole = Whole(self.settings.ps)
        self.leases = Leases(
            next_lease=manifest.next_lease if manifest else 0, returned=manifest.unapplied if manifest else ()
        )
        self.tally = Tally(setup.clock)
        self.train_steps: int | None = None  # known with the first worker, who knows the data
        self.stopping = ""
        self._complete = True  # whether the run ended by itself, so that it is worth an evaluation
        self._final_chief: int | None = None
        self.done = False
        self._samples = 0
        self._parked: list[int] = []  # released, but no lease is left unless somebody leaves
        self._outcome: dict[int, tuple[str, int]] = {}  # worker -> (why dropped, staleness) of its last push
        self._decided = _Decisions()
        self._last_move = self._last_report = setup.clock()
        self._stop_time = 0.0

    # --- messages

    def handle(self, link: Link, message: AnyMessage) -> None:
        """One message. Raises WireError to refuse it; any other error ends the run."""
        match message:
            case Hello():
                self._hello(link, message)
            case Follow():
                self._follow(link, message)
            case Held(shard, worker, epoch, seq):
                self._held((worker, epoch, seq), shard)
            case Lost(_, worker, epoch):
                seat = self.links.seats.get(worker)
                if seat is not None and seat.epoch == epoch:
                    self._leave(seat)
            case Saved(shard, _, files, values, error):
                self.setup.saver.add(shard, {name: Record(*file) for name, file in files.items()}, values, error)
            case Join() | Push() | Pull() | Goodbye() | Halt():
                self._from_worker(_seat(link, message.identity), message)
            case _:
                raise errors.ProtocolError(f"{link.description} sent a {type(message).__name__} to the leading ps.")

    def _hello(self, link: Link, hello: Hello) -> None:
        self.links.check(hello, link)
        worker = hello.identity.worker
        old = self.links.seats.get(worker)
        try:
            epoch = self.members.grant(worker, hello.identity.epoch, alive=old is not None)
        except errors.DuplicateTask as error:
            where = f"{old.host} pid {old.pid}" if old else "elsewhere"
            raise errors.DuplicateTask(f"worker:{worker} is already running at {where}.", fix=error.fix) from None
        self.setup.keep_epochs(dict(self.members.epochs))
        self._start(hello.samples)
        if old is not None:
            self._leave(old)
        seat = self.links.admit(link, hello, epoch)
        self.links.answer(link, Granted(Identity(worker, epoch, self.setup.generation)))
        log.info("%s joined: pid %d on %s, epoch %d", seat.name, seat.pid, seat.host, epoch)

    def _start(self, samples: int) -> None:
        """The first worker knows how much data there is; the schedule and the end of the run follow from it."""
        if self.train_steps is not None:
            if samples != self._samples:
                raise errors.ModelMismatch(
                    f"this worker has {samples} training samples, the run has {self._samples}.",
                    why="leases name samples by number, so every worker must have the same data.",
                )
            return
        self._samples = samples
        self.train_steps = self.settings.steps(samples)
        if self.settings.mode != "sync":  # every update uses one lease: exactly those that are left
            unapplied = len(self.leases.state().unapplied)
            self.leases.limit = self.leases.next_lease - unapplied + max(0, self.train_steps - self.first_step)
        self.shard.state.schedule(self.settings.steps_per_epoch(samples))
        if self.setup.restored is not None:
            self.shard.state.restore(self.setup.restored[1])
        self.tally.started = self._last_move = self.setup.clock()
        if self.first_step >= self.train_steps:
            self.stop(f"already at step {self.first_step} of {self.train_steps}")

    def _from_worker(self, seat: Seat, message: Join | Push | Pull | Goodbye | Halt) -> None:
        match message:
            case Join():
                seat.awaits = 0
                if self.whole.held((seat.worker, seat.epoch, 0), 0):
                    self._joined(seat)
            case Push():
                self._push(seat, message)
            case Pull(_, what):
                shown = Shown(what, self.shard.state.step)
                self.links.answer(seat.link, shown, self.shard.parts(what, seat.slot))
            case Halt(_, reason, complete):
                self.stop(reason, complete=complete)
            case Goodbye(_, reason):
                if reason:
                    log.warning("%s leaves: %s", seat.name, reason)
                self._leave(seat)

    def _push(self, seat: Seat, push: Push) -> None:
        verdict = self.members.check(seat.worker, seat.epoch, push.identity.generation, push.seq)
        if verdict is Verdict.DUPLICATE:
            if seat.answer is not None and seat.answer.seq == push.seq:
                self.links.answer(seat.link, seat.answer, self.shard.state.parameters.parts)
            return
        if verdict is Verdict.STALE:
            raise errors.PushRejected(f"{seat.name} pushed a gradient of generation {push.identity.generation}; "
                                      f"the servers are at {self.setup.generation}.")  # fmt: skip
        if seat.awaits is not None or push.version > self.shard.state.step:
            raise errors.ProtocolError(f"{seat.name} pushed out of turn: version {push.version}, seq {push.seq}.")
        seat.awaits = push.seq
        self.members.record(seat.worker, seat.epoch, push.seq)
        handle = self.shard.hold(push, seat.slot)
        if self.whole.held((seat.worker, seat.epoch, push.seq), 0):
            self._whole_push(seat, push.version, handle)

    def _held(self, key: Key, shard: int) -> None:
        """A follower holds this request too."""
        worker, epoch, seq = key
        seat = self.links.seats.get(worker)
        if seat is None or seat.epoch != epoch:
            return  # of a life that ended meanwhile: the follower was told so
        if not self.whole.held(key, shard):
            return
        if seq == 0:
            self._joined(seat)
        else:
            handle = next(h for h, gradient in self.shard.held.items() if gradient.key == key)
            self._whole_push(seat, self.shard.held[handle].push.version, handle)

    def _joined(self, seat: Seat) -> None:
        if self.stopping:
            self._answer(seat)
            self._tell_followers()
        else:
            seat.joined = True
            self._decide(Joined(seat.worker))

    def _whole_push(self, seat: Seat, version: int, handle: int) -> None:
        if self.stopping:
            self._drop(handle, self.stopping)
            self._answer(seat)
            self._tell_followers()
        else:
            self._decide(Pushed(seat.worker, version, handle))

    # --- decisions

    def _decide(self, event: Event) -> None:
        for decision in self.policy.on(event):
            match decision:
                case Apply(handles):
                    self._apply(handles)
                case Drop(handle, reason):
                    self._drop(handle, reason)
                case ReleaseDecision(worker):
                    self._release(worker)
        self._serve_parked()
        if self.train_steps is not None and self.shard.state.step >= self.train_steps and not self.stopping:
            self.stop(f"reached step {self.train_steps}")
        self._tell_followers()
        self._save_if_due()

    def _apply(self, handles: tuple[int, ...]) -> None:
        version = self.shard.state.step
        for push in self.shard.apply(handles):
            worker, epoch = push.identity.worker, push.identity.epoch
            self.leases.finish(push.lease, (worker, epoch))
            staleness = version - push.version
            self.tally.applied(push.loss, push.examples, staleness)
            self._outcome[worker] = ("", staleness)
            self._decided.apply.append((worker, epoch, push.seq))
        self.tally.updated()
        if self.tally.updates == 1:
            self._report()
        self._last_move = self.setup.clock()
        if self.settings.mode == "sync":
            # Who still computes on the old version will be dropped: its batches go back at once, so that a
            # straggler cannot hold them until the end of the run.
            held = {gradient.push.lease for gradient in self.shard.held.values()}
            for lease, owner in self.leases.outstanding().items():
                if lease not in held:
                    self.leases.give_back(lease, owner)

    def _drop(self, handle: int, reason: str) -> None:
        push = self.shard.drop(handle)
        worker, epoch = push.identity.worker, push.identity.epoch
        self.leases.give_back(push.lease, (worker, epoch))
        self.tally.dropped += 1
        self._outcome[worker] = (reason, self.shard.state.step - push.version)
        self._decided.drop.append((worker, epoch, push.seq))

    def _release(self, worker: int) -> None:
        seat = self.links.seats.get(worker)
        if seat is None:
            return
        if self.train_steps is not None and self.shard.state.step >= self.train_steps:
            return  # the run is over: `stop` answers it
        lease = self.leases.take((seat.worker, seat.epoch))
        if lease is None:
            self._parked.append(worker)
        else:
            self._answer(seat, lease)

    def _serve_parked(self) -> None:
        """A lease came back from a worker that left: someone who had none gets it."""
        waiting, self._parked = self._parked, []
        for worker in waiting:
            self._release(worker)

    def _answer(self, seat: Seat, lease: int = -1) -> None:
        """Send a worker on, or tell it that the run has ended. The other shards answer it too."""
        rejected, staleness = self._outcome.pop(seat.worker, ("", 0))
        self.shard.detach(seat.worker)
        answer = Release(
            seq=seat.awaits or 0, version=self.shard.state.step, lease=lease, stop=self.stopping,
            chief=seat.worker == self._chief(), rejected=rejected, staleness=staleness, dropped=self.tally.dropped,
            learning_rate=self.shard.state.learning_rate,
        )  # fmt: skip
        seat.awaits, seat.answer = None, answer
        self.links.answer(seat.link, answer, self.shard.state.parameters.parts)
        self._decided.release.append((seat.worker, seat.epoch, answer))

    def _chief(self) -> int:
        """The live worker of lowest index; at the end the lowest that is here to evaluate, not one that hangs."""
        if not self.stopping:
            return min(self.links.seats)
        if self._final_chief is None:
            here = [seat.worker for seat in self.links.seats.values() if seat.awaits is not None]
            self._final_chief = min(here) if self._complete else -1
        return self._final_chief

    def _tell_followers(self) -> None:
        message = self._decided.take(self.shard.state.step)
        if message is not None:
            for link in self.links.followers.values():
                self.links.answer(link, message)

    # --- coming and going

    def _follow(self, link: Link, message: Follow) -> None:
        link.follower = message.shard
        link.listener.admit(link.peer, [])
        self.links.followers[message.shard] = link
        self.links.answer(link, Lead(self.setup.generation, self.first_step))

    def gone(self, link: Link) -> None:
        """A link broke."""
        if link.follower and not self.done:
            raise errors.PeerGone(f"ps:{link.follower} is gone.", why="its link to ps:0 broke.")
        if link.seat is not None:
            log.warning("%s is gone: its link broke", link.seat.name)
            self._leave(link.seat)

    def _leave(self, seat: Seat) -> None:
        self.links.dismiss(seat)
        self._parked = [worker for worker in self._parked if worker != seat.worker]
        for key in self.whole.forget(seat.worker, seat.epoch):  # on this shard, perhaps, but never on all
            self._decided.drop.append(key)
            for handle in [h for h, gradient in self.shard.held.items() if gradient.key == key]:
                self.shard.drop(handle)
        self._decided.gone.append((seat.worker, seat.epoch))
        self.leases.leave((seat.worker, seat.epoch))
        if seat.joined and not self.stopping:
            self._decide(Left(seat.worker))
        else:
            self._tell_followers()

    def stop(self, reason: str, *, complete: bool = True) -> None:
        """End the run after the update in hand: whoever waits is told, the state is saved."""
        if self.stopping:
            return
        self.stopping, self._complete = reason, complete
        self._stop_time = self.setup.clock()
        for seat in sorted(self.links.seats.values(), key=lambda seat: seat.worker):
            if seat.awaits is not None:
                self._answer(seat)
        self._tell_followers()
        saver = self.setup.saver
        if self.train_steps is not None and not saver.busy and not saver.saved(self.shard.state.step):
            self._save()

    # --- time

    def tick(self) -> None:
        """Called between messages, at least every 0.2 s."""
        now = self.setup.clock()
        if self.setup.saver.poll():
            log.info("checkpoint saved: %s", self.setup.saver.newest)
        self._save_if_due()
        if self.stopping:
            self._end_if_possible(now)
        elif now - self._last_move > self.settings.stall_timeout:
            raise errors.Stalled(
                f"no update for {self.settings.stall_timeout:g} s at step {self.shard.state.step}: {self.waiting_for()}.",
                fix="look at the tasks named here, or raise --stall-timeout.",
            )
        if now - self._last_report >= 0.2:
            self._last_report = now
            self._report()

    def _report(self) -> None:
        tally = self.tally
        self.setup.report(
            Progress(self.shard.state.step, self.train_steps or 0, tally.examples_window.rate(),
                     tally.steps_window.rate(), tally.loss, tally.dropped, self.waiting_for(), tally.updates)
        )  # fmt: skip

    def waiting_for(self) -> str:
        """One sentence: what must happen before the run moves on. Empty while it moves."""
        if self.stopping:
            seats = sorted(seat.name for seat in self.links.seats.values())
            return f"{', '.join(seats)} to say goodbye" if seats else "the final checkpoint"
        missing = [f"worker:{w}" for w in range(self.settings.workers) if w not in self.links.seats]
        if not self.links.seats:
            return f"{', '.join(missing)} to join"
        return self.whole.waiting_for() or self.policy.waiting_for()

    def _end_if_possible(self, now: float) -> None:
        late = now - self._stop_time > GRACE
        if self.links.seats and not late:
            return
        for seat in list(self.links.seats.values()):
            log.warning("%s did not say goodbye within %g s; the run ends without it", seat.name, GRACE)
            self.links.dismiss(seat)
        if self.setup.saver.busy:
            return
        if self.train_steps is not None and not self.setup.saver.saved(self.shard.state.step):
            if self.setup.saver.failure is not None:
                raise errors.CheckpointError(f"the final checkpoint was not saved: {self.setup.saver.failure}")
            self._save()
            return
        for link in self.links.followers.values():
            self.links.answer(link, End(self.stopping))
        self.done = True
        tally = self.tally
        self.setup.report(
            Finished(self.shard.state.step, self.first_step, tally.examples, tally.seconds, tally.loss, tally.dropped,
                     tally.mean_staleness, tally.max_staleness, self.setup.saver.newest, self.stopping)
        )  # fmt: skip

    # --- checkpoints

    def _save_if_due(self) -> None:
        if not self.stopping and self.train_steps is not None and self.setup.saver.due(self.shard.state.step):
            self._save()

    def _save(self) -> None:
        contents = self.shard.state.contents()
        book = self.leases.state()
        layout = self.shard.state.parameters.layout
        manifest = Manifest(
            step=contents.step, shards=layout.shards, recipe=self.shard.state.recipe.name, files={},
            shapes={spec.name: list(spec.shape) for spec in layout.specs}, values={"0": contents.values},
            next_lease=book.next_lease, unapplied=list(book.unapplied),
            seqs={str(worker): seq for worker, seq in self.members.seqs.items()},
            examples=self.tally.examples, dropped=self.tally.dropped, evener=self.setup.evener,
        )  # fmt: skip
        self.setup.saver.start(contents, manifest)
        for link in self.links.followers.values():
            self.links.answer(link, Save(contents.step))


class _Decisions:
    """What followers have not been told yet."""

    def __init__(self) -> None:
        self.apply: list[Key] = []
        self.drop: list[Key] = []
        self.release: list[tuple[int, int, Release]] = []
        self.gone: list[tuple[int, int]] = []

    def take(self, version: int) -> Decided | None:
        if not (self.apply or self.drop or self.release or self.gone):
            return None
        message = Decided(version, self.apply, self.drop, self.release, self.gone)
        self.apply, self.drop, self.release, self.gone = [], [], [], []
        return message


def _seat(link: Link, identity: Identity) -> Seat:
    """The seat of this link, if the message is from its worker in its present life."""
    seat = link.seat
    if seat is None or seat.worker != identity.worker or seat.epoch != identity.epoch:
        raise errors.ProtocolError(f"{link.description} speaks as worker:{identity.worker} without a Hello.")
    return seat
