"""Which samples several towers take next, where each has a batch size of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from evener.policy.stretches import Stretch, Stretches, StretchState
from evener.state.checkpoint import Manifest


class SharedBook:
    """Like `Book`, by samples: each tower takes the lowest that are left, so many at most and none behind a gap.

    All towers keep the same book, so each knows what the others take.

    Args:
        manifest: of the checkpoint that the run goes on from.
        sizes: samples of each tower.
        closed: hears of each stretch that is given up.
    """

    def __init__(self, manifest: Manifest | None, sizes: Sequence[int], closed: Callable[[Stretch], None]) -> None:
        self._sizes, self._closed = sizes, closed
        self._open(manifest)

    def _open(self, manifest: Manifest | None) -> None:
        book = manifest.stretches if manifest else StretchState(0, ())
        self._book = Stretches(next_sample=book.next_lease, returned=book.unapplied, skipped=book.skipped)
        self._take_next()

    def _take_next(self) -> None:
        taken = [self._book.take(tower, size) for tower, size in enumerate(self._sizes)]
        self._next = [stretch for stretch in taken if stretch is not None]
        assert len(self._next) == len(self._sizes), "the stream of samples has no end"

    @property
    def leases(self) -> list[int]:
        """The first sample of each tower's next batch."""
        return [start for start, _ in self._next]

    @property
    def counts(self) -> list[int]:
        """Samples of each tower's next batch."""
        return [stop - start for start, stop in self._next]

    def of(self, tower: int, number: int = 0) -> list[int]:
        """What names a tower's next batch."""
        return [self._next[tower][0]]

    def ahead(self, tower: int, known: int, updates: int) -> list[int]:
        """Nothing is said of later updates: batches are made when they are needed."""
        return []

    def entries(self, step: int) -> list[tuple[Stretch, int, int, int]]:
        """For the ledger, of the update to this step: samples, tower, epoch, seq."""
        return [(stretch, tower, 0, step) for tower, stretch in enumerate(self._next)]

    def take(self) -> None:
        """These were applied."""
        for tower, (start, _) in enumerate(self._next):
            self._book.finish(start, tower)
        self._take_next()

    def refuse(self, without: Iterable[int]) -> None:
        """They gave no update: all come again but those that are given up."""
        closed = set(without)
        for tower, stretch in enumerate(self._next):
            if stretch[0] in closed:
                self._book.close(stretch[0], tower)
                self._closed(stretch)
            else:
                self._book.give_back(stretch[0], tower)
        self._take_next()

    def back_to(self, manifest: Manifest) -> None:
        """As a checkpoint says."""
        self._open(manifest)

    def avoid(self, leases: Iterable[int]) -> None:
        raise AssertionError("samples cannot be left out by the number of a batch")

    def state(self) -> StretchState:
        return self._book.state()
