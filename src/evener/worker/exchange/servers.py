"""Exchange with parameter servers: one push per shard, and the answer to it is the model."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from evener import chaos, errors
from evener.report import Line
from evener.waiting import Waiting
from evener.wire import codec
from evener.wire.messages import (
    Draw,
    Drawn,
    Goodbye,
    Granted,
    Halt,
    Hello,
    Join,
    Judged,
    Pull,
    Pulled,
    Push,
    Released,
    TooBig,
)
from evener.worker.exchange.exchange import Computed, Own, Turn
from evener.worker.exchange.server_links import SILENCE, ServerLinks

log = logging.getLogger(__name__)

#: Seconds between two attempts to reach all shards.
PAUSE = 0.1


class Servers:
    """A worker's life at all shards. When a link breaks, the worker comes back to all of them as a new life.

    A gradient that was on its way then is not sent again: either it was applied, or its lease went back to the pool
    with the old life, so nothing is lost and nothing comes twice.

    Args:
        links: to all shards, not yet dialled.
        hello: what to say first; its identity has epoch 0.
    """

    def __init__(self, links: ServerLinks, hello: Hello, *, sleep: Callable[[float], None]) -> None:
        self._links, self._hello, self._sleep = links, hello, sleep
        self.name, self._report = links.name, links.report
        self._identity = hello.identity
        self._admitted = 0  # shards, the first so many, that have granted us this life
        self._seq = 0
        self._version = 0
        self._lease, self._count = -1, 0
        self.want = 1  # leases in hand
        self.keeps = b""  # what a program keeps at its end
        self.arrivals = 0
        self._found: Turn | None = None  # what a return brought while no update was asked for

    # --- coming and coming back

    def start(self) -> Turn:
        return self._enter("")

    def _enter(self, lost: str) -> Turn:
        """Link up with all shards, whenever they are there: tasks of a cluster are started in any order."""
        wait = Waiting(self.name, self._links.patience, self._report, self._links.clock, silent=SILENCE)
        while True:
            try:
                self._links.dial()  # all of them before any hears of us: a new life is work, for them and for the disk
                turn = self._greet()
                if lost:
                    log.info("%s is back after %.1f s, at step %d", self.name, wait.seconds, turn.version)
                    wait.told = True  # that it was lost
                wait.over()
                return turn
            except (errors.Unavailable, errors.PeerGone) as error:
                what, fix, told = error.what.rstrip("."), error.fix or "start it, or look at its log.", wait.told
                if isinstance(error, errors.PeerGone):
                    what = f"its ps tasks ({what})"
            wait.still(what, fix=fix)
            if wait.told and not told:
                log.warning("%s waits: %s", self.name, what)
            self._sleep(PAUSE)

    def _greet(self) -> Turn:
        """Begin a new life at every shard."""
        chaos.point("worker.hello")
        try:
            for shard in range(len(self._links)):
                # ps:0 grants the epoch that the other shards are told; one of ours tells it that we come back
                self._links.send(shard, msgspec.structs.replace(self._hello, identity=self._identity))
                granted = self._links.receive(shard, f"ps:{shard} to admit {self.name}")
                if not isinstance(granted, Granted):
                    raise errors.ProtocolError(f"ps:{shard} answered a Hello with {type(granted).__name__}.")
                if shard and granted.identity.generation != self._identity.generation:
                    raise errors.Unavailable(f"ps:{shard} to hear of the generation that ps:0 has begun.")
                self._identity = granted.identity
                self._admitted += 1
            for shard in range(len(self._links)):
                self._links.send(shard, Join(self._identity, self.want))
            chaos.point("worker.joined")
            return self._turn()
        except (errors.Unavailable, errors.PeerGone):
            self._hang_up()
            raise

    def _return(self, gone: errors.PeerGone) -> Turn:
        """A link broke: come back. The gradient that was on its way is not ours any more."""
        log.warning("%s %s", gone.what, gone.why)
        self._report(Line(self.name, f"{gone.what.rstrip('.')}: {gone.why.rstrip('.')}; it links up again by itself"))
        self._hang_up()
        return replace(self._enter(gone.what), rejected="a link broke while it was on its way", anew=True)

    def _hang_up(self) -> None:
        self._links.hang_up()
        self._admitted = 0

    def conclude(self) -> None:
        """The servers save the last step when they end the run, before it is validated."""

    def judge(self, figures: Mapping[str, float]) -> None:
        with contextlib.suppress(errors.PeerGone):  # the next update finds out; a lost ps task forgets the schedule too
            self._links.send(0, Judged(self._identity, dict(figures)))

    def returned(self) -> Turn | None:
        turn, self._found = self._found, None
        return turn

    # --- training

    def update(self, computed: Computed) -> Turn:
        if (turn := self.returned()) is not None:
            return turn  # the gradient was computed for a life that has ended
        self.give(computed, self._version)
        return self.take()

    def give(self, computed: Computed, version: int) -> bool:
        """Send a gradient that was computed on the parameters of this version; `take` brings what becomes of it.

        Returns:
            False: this life has ended; `take` brings the first turn of the next one.
        """
        self._seq += 1
        push = self._push(computed, computed.own or Own(leases=(self._lease,), loop=False), version)
        try:
            # The leader last: when it looks at the push, the other shards have it too.
            for shard in reversed(range(len(self._links))):
                chaos.point("worker.pushing")
                self._links.send(shard, push, payload=True)
            chaos.point("worker.pushed")
        except errors.PeerGone as gone:
            self._found = self._return(gone)
        return self._found is None

    def answered(self) -> bool:
        """Whether `take` need not wait for a server any more."""
        return self._found is not None or self._links.ready()

    def take(self) -> Turn:
        """Wait for the answer to the gradient that was given, or that of a new life where that one has ended."""
        if (turn := self.returned()) is not None:
            return turn
        try:
            return self._turn()
        except errors.PeerGone as gone:
            return self._return(gone)

    def _push(self, computed: Computed, own: Own, version: int) -> Push:
        self.want = own.want
        loss = None if own.loop and math.isnan(computed.loss) else computed.loss
        count = self._count if own.leases else 0
        return Push(
            self._identity, self._seq, version, own.leases[0] if own.leases else -1, loss,
            computed.examples, self._links.layout.mask(computed.unused), list(own.leases[1:]),
            own.want, own.group, own.settings, own.script, own.spread, count,
            computed.seconds if count else 0.0, self._links.finite(),
        )  # fmt: skip

    def too_big(self) -> Turn:
        """The samples of the last turn go to others; fewer come."""
        try:
            self._links.send(0, TooBig(self._identity, self._lease, self._count))
            return self._turn()
        except errors.PeerGone as gone:
            return self._return(gone)

    def draw(self, want: int, *, unused: Sequence[int] = (), wait: bool = False) -> Turn:
        """More leases for a program with a loop of its own, without a gradient.

        Args:
            want: leases in hand.
            unused: leases in hand that no update will use.
            wait: until there is one, be it of the next epoch. Then the newest parameters come too; else where the
                version is another one, by `newest`.
        """
        if (turn := self.returned()) is not None:
            return turn
        self.want = want
        try:
            self._links.send(0, Draw(self._identity, want, wait, list(unused)))
            answer = self._links.receive(0, f"ps:0 to give {self.name} another batch")
        except errors.PeerGone as gone:
            return self._return(gone)
        if not isinstance(answer, Drawn):
            raise errors.ProtocolError(f"ps:0 answered a Draw with {type(answer).__name__}.")
        if wait and not answer.stop and (turn := self.newest(answer.version)) is not None:
            return turn
        self._version, self._count = answer.version, answer.count or self._count
        return Turn(
            version=answer.version, lease=-1, stop=answer.stop, chief=answer.chief, failed=answer.failed,
            leases=answer.leases, script=answer.script, count=answer.count,
        )  # fmt: skip

    @property
    def version(self) -> int:
        """Of the parameters that came last, or should."""
        return self._version

    def newest(self, version: int) -> Turn | None:
        """Fill the model with parameters of at least this version; a following shard may be a little behind."""
        while self.show("parameters") < version and self._found is None:
            self._sleep(PAUSE / 10)
        return self.returned()

    def _turn(self) -> Turn:
        """Wait for every shard's release; all carry the same version, since the leader decided for all."""
        answer = self._release(0)
        for shard in range(1, len(self._links)):
            other = self._release(shard)
            if other.version != answer.version:
                raise errors.ProtocolError(f"ps:0 is at version {answer.version}, ps:{shard} at {other.version}.")
        self._version, self._lease, self._count = answer.version, answer.lease, answer.count
        self.arrivals += 1
        return Turn(
            version=answer.version, lease=answer.lease, stop=answer.stop, chief=answer.chief, rejected=answer.rejected,
            staleness=answer.staleness, dropped=answer.dropped, learning_rate=answer.learning_rate,
            failed=answer.failed, leases=answer.leases, script=answer.script, count=answer.count,
        )  # fmt: skip

    def _release(self, shard: int) -> Released:
        answer = self._links.receive(shard, f"ps:{shard} to release {self.name} after global step {self._version}")
        if not isinstance(answer, Released):
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
        for shard in range(len(self._links)):
            self._links.send(shard, Pull(self._identity, what))
        versions = []
        for shard in range(len(self._links)):
            answer = self._links.receive(shard, f"ps:{shard} to show its {what}")
            if not isinstance(answer, Pulled):
                raise errors.ProtocolError(f"ps:{shard} answered a Pull with {type(answer).__name__}.")
            versions.append(answer.version)
        self.arrivals += 1
        # `_version` stays: newer parameters do not renew the lease, which may have gone to another worker meanwhile.
        return min(versions)

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        reason = codec.cut(reason, codec.MAX_SENTENCE)
        while True:
            try:
                self._links.send(0, Halt(self._identity, reason, complete))
                return None
            except errors.PeerGone as gone:
                self._found = self._return(gone)

    def close(self, reason: str = "") -> None:
        chaos.point("worker.closing")
        failed = bool(reason) and not reason.startswith(("KeyboardInterrupt", "Preempted"))  # sent away: no failure
        farewell = Goodbye(self._identity, codec.cut(reason, codec.MAX_SENTENCE), failed, self.keeps)
        for shard in range(self._admitted):
            with contextlib.suppress(errors.WireError):
                self._links.send(shard, farewell)
        self._hang_up()
        chaos.point("worker.left")
