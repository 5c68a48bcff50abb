"""A program that nobody launched: plain PyTorch, at the price of a counter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from evener.loop.leased import Gives
from evener.loop.owner import Step
from evener.worker.exchange.exchange import Turn


class Alone:
    """Counts steps, keeps nothing. An `Owner`."""

    here, under_way = True, 0

    def __init__(self) -> None:
        self._version, self._stop = 0, ""

    def start(self, want: int) -> Turn:
        return self._turn()

    def step(self, step: Step) -> tuple[Any, Turn]:
        result = step.really()
        self._version += 1
        return result, self._turn()

    def draw(self, want: int, *, unused: Sequence[int] = (), wait: bool = False) -> Turn:
        return self._turn()

    def settled(self, *, land: bool) -> Turn | None:
        return None

    def stop(self, reason: str, *, complete: bool = False) -> None:
        self._stop = reason

    def close(self, reason: str = "", script: bytes = b"") -> None:
        """There is nothing to keep."""

    def _turn(self) -> Turn:
        return Turn(version=self._version, lease=-1, stop=self._stop, chief=True)


class Counted:
    """A loader in its own order, whose batches are counted: where a run goes on, those that were applied are left out.

    Args:
        length: batches in an epoch.
    """

    def __init__(self, loader: DataLoader[Any], length: int, gives: Gives) -> None:
        self._loader, self._length, self._gives = loader, length, gives

    def __len__(self) -> int:
        return self._length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        gives = self._gives
        if gives.passing():
            return
        mine, whole = gives.begun, False
        try:
            for place, batch in enumerate(self._loader):
                if gives.hand.first < 0:
                    gives.draw(max(gives.hand.most, gives.hand.count + 1))
                if gives.hand.first < 0 and not gives.stopped:  # an epoch ends in the middle of this pass
                    gives.wait()
                epoch, first = divmod(gives.hand.first, self._length)
                if gives.stopped or gives.hand.first < 0 or epoch > gives.number:
                    break
                if epoch == gives.number and place < first:
                    continue  # it was applied before this program began
                gives.hand.delivered(gives.hand.load())
                yield batch
            whole = True
            if not gives.stopped and gives.hand.first < 0:
                gives.wait()
        finally:
            if gives.begun == mine:
                gives.hand.unload()
                gives.passed(whole=whole)
