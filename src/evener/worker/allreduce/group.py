"""The seam between averaging gradients and who carries them: processes that meet at every update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """Towers that do the same things in the same order; each call returns when all have made it.

    All but `close` raise `PeerGone` when another tower's process has ended, and `Unavailable` when one has not come
    within the stall timeout. The group is of no use after that.
    """

    rank: int
    size: int

    def sum(self, flats: Sequence[Tensor], what: str, meanwhile: Callable[[], None]) -> None:
        """Replace each flat tensor by its sum over all towers: the same bits on each of them.

        Args:
            flats: the same shapes and dtypes on every tower.
            what: for whoever waits, "update 812".
            meanwhile: done while the numbers travel.
        """
        ...

    def hide(self) -> None:
        """Let other libraries of this process take it for the only one: they would wait for all, in their own order."""
        ...

    def gather(self, text: str) -> list[str]:
        """What every tower says, in the order of ranks."""
        ...

    def share(self, data: bytes) -> bytes:
        """Tower 0's bytes, on every tower; what the others give is ignored."""
        ...

    def close(self, *, failed: bool = False) -> None:
        """Leave. `failed`: something may still be under way that never ends."""
        ...
