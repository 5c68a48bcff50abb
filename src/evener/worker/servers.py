"""Exchange with parameter servers: one push per shard, and the answer to it is the model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from evener import chaos, errors
from evener.report import Line, Reporter, Status
from evener.transport.channel import Channel, Memory, Ranges
from evener.wire import codec
from evener.wire.layout import Layout
from evener.wire.messages import (
    AnyMessage,
    Contents,
    Goodbye,
    Granted,
    Halt,
    Hello,
    Join,
    Pull,
    Push,
    Refused,
    Release,
)  # fmt: skip
from evener.worker.exchange import Turn

log = logging.getLogger(__name__)

#: A wait longer than this many seconds is told.
SILENCE = 1.0
#: Seconds of one attempt to reach a shard, of each in the first second of a wait, and of the pause before the next. A
#: ps that starts again may have another address, which is asked for at each attempt.
ATTEMPT, FIRST, PAUSE = 2.0, 0.2, 0.1


class Connect(Protocol):
    """Opens a link to one shard; `launch.wiring.Dialer` is the one of every run."""

    def __call__(self, shard: int, address: str, outbox: Ranges, inbox: Ranges, timeout: float) -> Channel: ...


class Servers:
    """A worker's links to all shards. When one breaks, the worker comes back to all of them as a new life.

    A gradient that was on its way then is not sent again: either it was applied, or its lease went back to the pool
    with the old life, so nothing is lost and nothing comes twice.

    Args:
        addresses: of ps:0, ps:1, ...; asked again at each attempt, since a restarted one may have another.
        hello: what to say first; its identity has epoch 0.
        gradients, parameters: memory blocks of the layout; shard s owns the ranges `layout.ranges(s)` of each.
        patience: seconds to wait for an answer in the worst case; the servers' own limit is shorter.
    """

    def __init__(  # noqa: PLR0913 - what a link needs, each once
        self,
        addresses: Callable[[], Sequence[str]],
        hello: Hello,
        layout: Layout,
        *,
        gradients: Memory,
        parameters: Memory,
        connect: Connect,
        report: Reporter,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        patience: float,
    ) -> None:
        self._find, self._connect, self._sleep = addresses, connect, sleep
        self._addresses: list[str] = []
        self._hello = hello
        self._identity = hello.identity
        self._layout = layout
        self._gradients, self._parameters = gradients, parameters
        self._report, self._clock, self._patience = report, clock, patience
        self._channels: list[Channel] = []
        self._seq = 0
        self._version = 0
        self._lease = -1
        self._found: Turn | None = None  # what a return brought while no update was asked for

    @property
    def name(self) -> str:
        return f"worker:{self._identity.worker}"

    # --- coming and coming back

    def start(self) -> Turn:
        return self._enter("")

    def _enter(self, lost: str) -> Turn:
        """Link up with all shards, whenever they are there: tasks of a cluster are started in any order."""
        since, told = self._clock(), False
        while True:
            try:
                turn = self._link_up(FIRST if self._clock() - since < SILENCE else ATTEMPT)
                if lost:
                    log.info("%s is back after %.1f s, at step %d", self.name, self._clock() - since, turn.version)
                if told or lost:
                    self._report(Status(self.name, "training"))
                return turn
            except (errors.Unavailable, errors.PeerGone) as error:
                self._hang_up()
                waited = self._clock() - since
                what = error.what.rstrip(".")
                if isinstance(error, errors.PeerGone):
                    what = f"its ps tasks ({what})"
                if waited > self._patience:
                    raise errors.Unavailable(
                        f"{self.name} has waited {waited:.0f} s for {what}.",
                        fix=error.fix or "start it, or look at its log.",
                    ) from None
                if waited > SILENCE:
                    wait = f"{what} ({waited:.0f} s of {self._patience:.0f} s)"
                    if not told:
                        log.warning("%s waits: %s", self.name, wait)
                    told = True
                    self._report(Status(self.name, "waiting", waiting_for=wait))
                self._sleep(PAUSE)

    def _link_up(self, attempt: float) -> Turn:
        self._addresses = list(self._find())
        chaos.point("worker.hello")
        for shard, address in enumerate(self._addresses):  # all of them first: as long as one is absent none is told
            self._channels.append(self._dial(shard, address, attempt))
        for shard in range(len(self._addresses)):
            # ps:0 grants the epoch that the other shards are told; an epoch of ours tells it that we come back
            self._send(shard, msgspec.structs.replace(self._hello, identity=self._identity))
            granted = self._receive(shard, f"ps:{shard} to admit {self.name}")
            if not isinstance(granted, Granted):
                raise errors.ProtocolError(f"ps:{shard} answered a Hello with {type(granted).__name__}.")
            if shard and granted.identity.generation != self._identity.generation:
                raise errors.Unavailable(f"ps:{shard} to hear of the generation that ps:0 has begun.")
            self._identity = granted.identity
        for shard in range(len(self._channels)):
            self._send(shard, Join(self._identity))
        chaos.point("worker.joined")
        return self._turn()

    def _dial(self, shard: int, address: str, attempt: float) -> Channel:
        ranges = self._layout.ranges(shard)
        try:
            return self._connect(
                shard, address, Ranges(self._gradients, ranges), Ranges(self._parameters, ranges), attempt
            )
        except errors.Unavailable as error:
            raise errors.Unavailable(
                f"ps:{shard} to listen at {address}: {error.why or error.what}", fix=error.fix
            ) from None

    def _return(self, gone: errors.PeerGone) -> Turn:
        """A link broke: come back. The gradient that was on its way is not ours any more."""
        log.warning("%s %s", gone.what, gone.why)
        self._report(Line(self.name, f"{gone.what.rstrip('.')}: {gone.why.rstrip('.')}; it links up again by itself"))
        self._hang_up()
        return replace(self._enter(gone.what), rejected="a link broke while it was on its way")

    def _hang_up(self) -> None:
        for channel in self._channels:
            channel.close()
        self._channels = []

    def returned(self) -> Turn | None:
        turn, self._found = self._found, None
        return turn

    # --- training

    def update(self, *, loss: float, examples: int, seconds: float) -> Turn:
        if (turn := self.returned()) is not None:
            return turn  # the gradient was computed for a life that has ended
        self._seq += 1
        push = Push(self._identity, self._seq, self._version, self._lease, loss, examples, seconds)
        try:
            # The leader last: when it looks at the push, the other shards have it too.
            for shard in reversed(range(len(self._channels))):
                chaos.point("worker.pushing")
                self._send(shard, push, payload=True)
            chaos.point("worker.pushed")
            return self._turn()
        except errors.PeerGone as gone:
            return self._return(gone)

    def _turn(self) -> Turn:
        """Wait for every shard's release; all carry the same version, since the leader decided for all."""
        answer = self._release(0)
        for shard in range(1, len(self._channels)):
            other = self._release(shard)
            if other.version != answer.version:
                raise errors.ProtocolError(f"ps:0 is at version {answer.version}, ps:{shard} at {other.version}.")
        self._version, self._lease = answer.version, answer.lease
        return Turn(
            version=answer.version, lease=answer.lease, stop=answer.stop, chief=answer.chief, rejected=answer.rejected,
            staleness=answer.staleness, dropped=answer.dropped, learning_rate=answer.learning_rate,
            failed=answer.failed,
        )  # fmt: skip

    def _release(self, shard: int) -> Release:
        answer = self._receive(shard, f"ps:{shard} to release {self.name} after global step {self._version}")
        if not isinstance(answer, Release):
            raise errors.ProtocolError(f"ps:{shard} answered a Push with {type(answer).__name__}.")
        return answer

    def show(self, what: str) -> int:
        while True:
            try:
                return self._show(what)
            except errors.PeerGone as gone:
                self._found = self._return(gone)

    def _show(self, what: str) -> int:
        chaos.point("worker.showing")
        for shard in range(len(self._channels)):
            self._send(shard, Pull(self._identity, what))
        versions = []
        for shard in range(len(self._channels)):
            answer = self._receive(shard, f"ps:{shard} to show its {what}")
            if not isinstance(answer, Contents):
                raise errors.ProtocolError(f"ps:{shard} answered a Pull with {type(answer).__name__}.")
            versions.append(answer.version)
        # `_version` stays: newer parameters do not renew the lease, which may have gone to another worker meanwhile.
        return min(versions)

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        reason = codec.cut(reason, codec.MAX_SENTENCE)
        while True:
            try:
                self._send(0, Halt(self._identity, reason, complete))
                return None
            except errors.PeerGone as gone:
                self._found = self._return(gone)

    def close(self, reason: str = "") -> None:
        chaos.point("worker.closing")
        failed = bool(reason) and not reason.startswith("KeyboardInterrupt")  # who was sent away has not failed
        for shard in range(len(self._channels)):
            with contextlib.suppress(errors.WireError):
                self._send(shard, Goodbye(self._identity, codec.cut(reason, codec.MAX_SENTENCE), failed))
        self._hang_up()
        chaos.point("worker.left")

    def _send(self, shard: int, message: AnyMessage, *, payload: bool = False) -> None:
        try:
            self._channels[shard].send(codec.encode(message), payload=payload)
        except errors.PeerGone as gone:
            self._explain_loss(shard)
            raise self._gone(shard, f"had a {type(message).__name__} for it", gone) from None

    def _receive(self, shard: int, what: str) -> AnyMessage:
        """The next message of a shard. Says aloud for whom it waits; gives up after `patience`."""
        since = self._clock()
        told = False
        while True:
            try:
                header = self._channels[shard].receive(SILENCE)
            except errors.PeerGone as gone:
                raise self._gone(shard, f"waited for {what}", gone) from None
            if header is not None:
                answer = codec.decode(header)
                if isinstance(answer, Refused):
                    raise self._refused(shard, answer)
                if told:
                    self._report(Status(self.name, "training"))
                return answer
            waited = self._clock() - since
            if waited > self._patience:
                raise errors.Unavailable(
                    f"{self.name} has waited {waited:.0f} s for {what}.", fix=f"look at the log of ps:{shard}."
                )
            told = True
            self._report(Status(self.name, "waiting", waiting_for=f"{what} ({waited:.0f} s)"))

    def _gone(self, shard: int, meanwhile: str, seen: errors.PeerGone) -> errors.PeerGone:
        return errors.PeerGone(
            f"ps:{shard} ({self._addresses[shard]}) is gone while {self.name} {meanwhile}.",
            why=seen.what,
            fix=f"look at the log of ps:{shard}.",
        )

    def _explain_loss(self, shard: int) -> None:
        """A server that hangs up says why before it goes: its last words may still be there to read."""
        answer: AnyMessage | None = None
        with contextlib.suppress(errors.PeerGone, errors.ProtocolError):
            while not isinstance(answer, Refused) and (header := self._channels[shard].receive(0.0)) is not None:
                answer = codec.decode(header)
        if isinstance(answer, Refused):
            raise self._refused(shard, answer)

    def _refused(self, shard: int, answer: Refused) -> errors.EvenerError:
        error = codec.raised(answer)
        if isinstance(error, errors.ServerLost):  # another one: this one is there and begins a new generation
            return errors.PeerGone(error.what, why=f"ps:{shard} goes back to the newest checkpoint")
        return error
