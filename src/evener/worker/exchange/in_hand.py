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
        own = Own(leases=self._hand[: self._size], want=self._want, loop=False)
        turn = self._servers.update(replace(computed, own=own))
        del self._hand[: self._size]
        return self._taken(turn)

    def _taken(self, turn: Turn) -> Turn:
        """A turn with what is in hand now."""
        if turn.anew:
            self._hand.clear()  # the life to which it was given has ended
        self._hand += turn.leases
        mine = self._hand[: self._size]
        if turn.stop or not mine:
            return turn
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
