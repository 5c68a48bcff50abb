"""A worker's links to all shards: opened, spoken over, and explained when they break."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from evener import errors
from evener.report import Reporter
from evener.state.tensors import all_finite, flats_of
from evener.transport.channel import Channel, Memory, Ranges, wait
from evener.waiting import Waiting
from evener.wire import codec
from evener.wire.layout import Layout
from evener.wire.messages import AnyMessage, Refused

#: A wait longer than this many seconds is told.
SILENCE = 1.0
#: Seconds of one attempt to reach a shard, where it may take so long.
ATTEMPT = 2.0


class Connect(Protocol):
    """Opens a link to one shard; `task.wiring.Dialer` is the one of every run."""

    def __call__(self, shard: int, address: str, outbox: Ranges, inbox: Ranges, timeout: float) -> Channel: ...


class ServerLinks:
    """One link to each shard.

    Args:
        name: of the worker, "worker:1".
        addresses: of ps:0, ps:1, ...; asked again at each attempt, since a restarted one may have another.
        gradients, parameters: memory blocks of the layout; shard s owns the ranges `layout.ranges(s)` of each.
        patience: seconds to wait for an answer in the worst case; the servers' own limit is shorter.
    """

    def __init__(  # noqa: PLR0913 - what a link needs, each once
        self,
        name: str,
        addresses: Callable[[], Sequence[str]],
        layout: Layout,
        *,
        gradients: Memory,
        parameters: Memory,
        connect: Connect,
        report: Reporter,
        clock: Callable[[], float],
        patience: float,
    ) -> None:
        self.name, self.report, self.clock, self.patience = name, report, clock, patience
        self._find, self._connect = addresses, connect
        self.layout = layout
        self._gradients, self._parameters = gradients, parameters
        self._flats = list(flats_of(layout, gradients.view).values())
        self._addresses: list[str] = []
        self._channels: list[Channel] = []

    def __len__(self) -> int:
        return len(self._channels)

    def dial(self) -> None:
        """Open links to all shards. Those that were opened stay while another one is absent.

        Raises:
            Unavailable: that one cannot be reached now.
        """
        kept = dict(zip(self._addresses, self._channels, strict=True))
        self._addresses, self._channels = [], []
        try:
            for shard, address in enumerate(self._find()):
                channel = kept.pop(address, None)
                self._channels.append(channel or self._open(shard, address))
                self._addresses.append(address)
        finally:
            for channel in kept.values():
                channel.close()

    def _open(self, shard: int, address: str) -> Channel:
        ranges = self.layout.ranges(shard)
        try:
            return self._connect(
                shard, address, Ranges(self._gradients, ranges), Ranges(self._parameters, ranges), ATTEMPT
            )
        except errors.Unavailable as error:
            raise errors.Unavailable(
                f"ps:{shard} to listen at {address}: {error.why or error.what}", fix=error.fix
            ) from None

    def hang_up(self) -> None:
        for channel in self._channels:
            channel.close()
        self._addresses, self._channels = [], []

    def send(self, shard: int, message: AnyMessage, *, payload: bool = False) -> None:
        try:
            self._channels[shard].send(codec.encode(message), payload=payload)
        except errors.PeerGone as gone:
            self._explain_loss(shard)
            raise self._gone(shard, f"had a {type(message).__name__} for it", gone) from None

    def finite(self) -> bool:
        """Whether no number of the gradient that is to be sent is NaN or infinite; False where servers are to look."""
        return all_finite(self._flats)

    def ready(self) -> bool:
        """Has every shard's next message begun to come, or its link broken?"""
        return len(wait(self._channels, 0.0)) == len(self._channels)

    def receive(self, shard: int, what: str) -> AnyMessage:
        """The next message of a shard. Says aloud for whom it waits.

        Raises:
            PeerGone: the link broke; it says whose fault that is as far as anybody knows.
            Unavailable: nothing came within `patience` seconds.
            EvenerError: what the shard refused, as the error that it is.
        """
        waiting = Waiting(
            self.name, self.patience, self.report, self.clock, bounded=False
        )  # the servers' limit is shorter
        while True:
            try:
                header = self._channels[shard].receive(SILENCE)
            except errors.PeerGone as gone:
                raise self._gone(shard, f"waited for {what}", gone) from None
            if header is not None:
                answer = codec.decode(header)
                if isinstance(answer, Refused):
                    raise self._refused(shard, answer)
                waiting.over()
                return answer
            waiting.still(what, fix=f"look at the log of ps:{shard}.")

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
