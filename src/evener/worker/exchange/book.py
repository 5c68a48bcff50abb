"""Which batches one process, or several towers together, take next. Ps tasks have `policy.leases` for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from evener.policy.leases import LeaseState
from evener.state.checkpoint import Manifest


class Book:
    """Leases in order: those that a cluster left unapplied first, then the next; each update takes as many.

    Args:
        manifest: of the checkpoint that the run goes on from.
        towers: how many gradients an update takes.
        size: how many leases a gradient is of.
        closed: hears of each lease that is given up.
    """

    def __init__(self, manifest: Manifest | None, towers: int, closed: Callable[[int], None], size: int = 1) -> None:
        self._update, self._size, self._closed = towers * size, size, closed
        self._avoided: set[int] = set()  # to be given up once they come
        self._open(manifest)

    def _open(self, manifest: Manifest | None) -> None:
        self._next = manifest.next_lease if manifest else 0
        self._unapplied = sorted(manifest.unapplied) if manifest else []
        self._skipped = list(manifest.skipped) if manifest else []

    @property
    def leases(self) -> list[int]:
        """Of the next update, ascending."""
        return self._following(0)

    def _following(self, updates: int) -> list[int]:
        """Of the update after so many others, as far as one can know."""
        first = updates * self._update
        again = self._unapplied[first : first + self._update]
        since = max(0, first - len(self._unapplied))
        return again + list(range(self._next + since, self._next + since + self._update - len(again)))

    @property
    def counts(self) -> list[int]:
        """Samples of each gradient of the next update; 0: as many as all others have."""
        return [0] * (self._update // self._size)

    def of(self, tower: int, number: int = 0) -> list[int]:
        """Those of a tower: so many that follow one another."""
        return self._following(number)[tower * self._size : (tower + 1) * self._size]

    def ahead(self, tower: int, known: int, updates: int) -> list[int]:
        """Those of a tower after the next update, as far as there are updates: at least one's, and so many in all."""
        wanted = min(1 + -(-known // self._size), updates)
        return [lease for number in range(1, wanted + 1) for lease in self.of(tower, number)]

    def entries(self, step: int) -> list[tuple[int, int, int, int]]:
        """For the ledger, of the update to this step: lease, tower, epoch, seq."""
        return [(lease, at // self._size, 0, step) for at, lease in enumerate(self.leases)]

    def take(self) -> None:
        """These were applied."""
        again = min(len(self._unapplied), self._update)
        del self._unapplied[:again]
        self._next += self._update - again
        self._pass_avoided()

    def refuse(self, without: Iterable[int]) -> None:
        """They gave no update: all come again but those that are given up."""
        closed = set(without)
        again = [lease for lease in self.leases if lease not in closed]
        self.take()
        self._unapplied = sorted([*again, *self._unapplied])
        for lease in sorted(closed):
            self._close(lease)

    def back_to(self, manifest: Manifest) -> None:
        """As a checkpoint says; what is to be avoided stays so."""
        self._open(manifest)

    def avoid(self, leases: Iterable[int]) -> None:
        """These, and those that were to be avoided before, are not to be taken."""
        for lease in sorted({*leases, *self._avoided}):
            if lease in self._unapplied:
                self._unapplied.remove(lease)
                self._avoided.discard(lease)
                self._close(lease)
            elif lease >= self._next:
                self._avoided.add(lease)
        self._pass_avoided()

    def _pass_avoided(self) -> None:
        while self._next in self._avoided:
            self._avoided.discard(self._next)
            self._next += 1
            self._close(self._next - 1)

    def _close(self, lease: int) -> None:
        self._skipped.append(lease)
        self._closed(lease)

    def state(self) -> LeaseState:
        return LeaseState(self._next, tuple(self._unapplied), tuple(sorted(self._skipped)))
