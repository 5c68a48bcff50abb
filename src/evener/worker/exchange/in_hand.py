"""Exchange with parameter servers, for a worker that has several batches in hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evener.worker.exchange.exchange import Computed, Own, Turn
from evener.worker.exchange.servers import Servers


class InHand:
    """Names the batches of each gradient, and tells which come next.

    Args:
        servers: not started.
        size: batches of one gradient.
        ahead: so many more it is good to know, so that they are prepared meanwhile.
    """

    def __init__(self, servers: Servers, size: int, ahead: int) -> None:
        self._servers, self._size = servers, size
        self._want = size * (1 + -(-ahead // size))
        self._hand: list[int] = []
        servers.want = self._want

    @property
    def arrivals(self) -> int:
        return self._servers.arrivals

    def start(self) -> Turn:
        return self._taken(self._servers.start())

    def update(self, computed: Computed) -> Turn:
        turn = self._servers.update(self._named(computed))
        del self._hand[: self._size]
        return self._taken(turn)

    def give(self, computed: Computed, version: int) -> bool:
        """Send a gradient that was computed on the parameters of this version. False: this life has ended."""
        sent = self._servers.give(self._named(computed), version)
        del self._hand[: self._size]
        return sent

    @property
    def empty(self) -> bool:
        """Whether there is nothing to go on with until `take`."""
        return len(self._hand) < self._size

    def answered(self) -> bool:
        return self._servers.answered()

    def take(self) -> Turn:
        """Wait for the answer to the gradient that was given."""
        return self._taken(self._servers.take())

    def _named(self, computed: Computed) -> Computed:
        return replace(computed, own=Own(leases=self._hand[: self._size], want=self._want, loop=False))

    def _taken(self, turn: Turn) -> Turn:
        if turn.anew:
            self._hand.clear()  # the life to which it was given has ended
        self._hand += turn.leases
        if turn.lease >= 0 and not self._hand:
            self._hand = [turn.lease]  # these servers give one at a time: by their mode, or to the first who came
        return self.dealt(turn)

    def dealt(self, turn: Turn) -> Turn:
        """A turn with what is in hand now."""
        mine = self._hand[: self._size]
        if turn.stop or not mine:
            return replace(turn, lease=-1)
        return replace(turn, lease=mine[0], more=mine[1:], ahead=self._hand[self._size :])

    def show(self, what: str) -> int:
        return self._servers.show(what)

    def judge(self, figures: Mapping[str, float]) -> None:
        self._servers.judge(figures)

    def returned(self) -> Turn | None:
        turn = self._servers.returned()
        return None if turn is None else self._taken(turn)

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        return self._servers.stop(reason, complete=complete)

    def conclude(self) -> None:
        self._servers.conclude()

    def close(self, reason: str = "") -> None:
        self._servers.close(reason)
