"""Exchange with parameter servers: one push per shard, and the answer to it is the model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from evener import errors
from evener.report import Reporter, Status
from evener.transport import connect
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


class Servers:
    """A worker's links to all shards.

    Args:
        addresses: of ps:0, ps:1, ...
        hello: what to say first; its identity has epoch 0.
        gradients, parameters: memory blocks of the layout; shard s owns the ranges `layout.ranges(s)` of each.
        patience: seconds to wait for an answer in the worst case; the servers' own limit is shorter.
    """

    def __init__(  # noqa: PLR0913 - what a link needs, each once
        self,
        addresses: Sequence[str],
        hello: Hello,
        layout: Layout,
        *,
        gradients: Memory,
        parameters: Memory,
        report: Reporter,
        clock: Callable[[], float],
        patience: float,
    ) -> None:
        self._addresses = list(addresses)
        self._hello = hello
        self._identity = hello.identity
        self._layout = layout
        self._gradients, self._parameters = gradients, parameters
        self._report, self._clock, self._patience = report, clock, patience
        self._channels: list[Channel] = []
        self._seq = 0
        self._version = 0
        self._lease = -1

    @property
    def name(self) -> str:
        return f"worker:{self._identity.worker}"

    def start(self) -> Turn:
        for shard, address in enumerate(self._addresses):
            channel = self._connect(shard, address)
            self._channels.append(channel)
            # ps:0 grants the epoch that the other shards are told
            self._send(shard, msgspec.structs.replace(self._hello, identity=self._identity))
            granted = self._receive(shard, f"ps:{shard} to admit {self.name}")
            if not isinstance(granted, Granted):
                raise errors.ProtocolError(f"ps:{shard} answered a Hello with {type(granted).__name__}.")
            self._identity = granted.identity
        for shard in range(len(self._channels)):
            self._send(shard, Join(self._identity))
        return self._turn()

    def _connect(self, shard: int, address: str) -> Channel:
        """A link to one shard, whenever it is there: tasks of a cluster are started in any order."""
        ranges = self._layout.ranges(shard)
        since = self._clock()
        while True:
            try:
                return connect(address, Ranges(self._gradients, ranges), Ranges(self._parameters, ranges), timeout=2.0)
            except errors.Unavailable as error:
                waited = self._clock() - since
                if waited > self._patience:
                    raise errors.Unavailable(
                        f"ps:{shard} ({address}) has not answered for {waited:.0f} s.", why=error.what, fix=error.fix
                    ) from None
                wait = f"ps:{shard} to listen at {address} ({waited:.0f} s)"
                self._report(Status(self.name, "waiting", waiting_for=wait))

    def update(self, *, loss: float, examples: int, seconds: float) -> Turn:
        self._seq += 1
        push = Push(self._identity, self._seq, self._version, self._lease, loss, examples, seconds)
        # The leader last: when it looks at the push, the other shards have it too.
        for shard in reversed(range(len(self._channels))):
            self._send(shard, push, payload=True)
        return self._turn()

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
        )  # fmt: skip

    def _release(self, shard: int) -> Release:
        answer = self._receive(shard, f"ps:{shard} to release {self.name} after global step {self._version}")
        if not isinstance(answer, Release):
            raise errors.ProtocolError(f"ps:{shard} answered a Push with {type(answer).__name__}.")
        return answer

    def show(self, what: str) -> int:
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
        self._send(0, Halt(self._identity, reason, complete))
        return None

    def close(self, reason: str = "") -> None:
        for shard, channel in enumerate(self._channels):
            with contextlib.suppress(errors.WireError):
                self._send(shard, Goodbye(self._identity, reason))
            channel.close()
        self._channels = []

    def _send(self, shard: int, message: AnyMessage, *, payload: bool = False) -> None:
        try:
            self._channels[shard].send(codec.encode(message), payload=payload)
        except errors.PeerGone:
            self._explain_loss(shard)
            raise self._gone(shard, f"had a {type(message).__name__} for it") from None

    def _receive(self, shard: int, what: str) -> AnyMessage:
        """The next message of a shard. Says aloud for whom it waits; gives up after `patience`."""
        since = self._clock()
        told = False
        while True:
            try:
                header = self._channels[shard].receive(SILENCE)
            except errors.PeerGone:
                raise self._gone(shard, f"waited for {what}") from None
            if header is not None:
                answer = codec.decode(header)
                if isinstance(answer, Refused):
                    raise codec.raised(answer)
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

    def _gone(self, shard: int, meanwhile: str) -> errors.PeerGone:
        return errors.PeerGone(
            f"ps:{shard} ({self._addresses[shard]}) is gone while {self.name} {meanwhile}.",
            why="its process ended or the link broke.",
            fix=f"look at the log of ps:{shard}.",
        )

    def _explain_loss(self, shard: int) -> None:
        """A server that fails says why before it goes: its last words may still be there to read."""
        with contextlib.suppress(errors.PeerGone, errors.ProtocolError):
            while (header := self._channels[shard].receive(0.0)) is not None:
                answer = codec.decode(header)
                if isinstance(answer, Refused):
                    raise codec.raised(answer)
