"""Which batches of an epoch each of several towers takes, and which of them are applied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evener.policy.leases import LeaseState


class Deal:
    """Tower t of T takes every T-th of the batches that an epoch has left, from the t-th on.

    All towers hold equal deals and are told the same, so none has to ask another. An epoch ends when all its batches
    are applied, or named as not applied.

    Args:
        length: batches in an epoch.
        towers: T; 1: one process.
        state: what a checkpoint says.

    >>> deal = Deal(5, 2, LeaseState(0, ()))
    >>> deal.give(0, 2), deal.give(1, 9), deal.apply([1, 1]), deal.state()
    ([0, 2], [1, 3], [[0], [1]], LeaseState(next_lease=2, unapplied=(), skipped=()))
    """

    def __init__(self, length: int, towers: int, state: LeaseState) -> None:
        self._length, self._towers = length, towers
        self._unapplied, self._next = list(state.unapplied), state.next_lease
        self._skipped = list(state.skipped)
        self._begin()

    def _begin(self) -> None:
        """The batches that are left of the epoch of the lowest one."""
        lowest = min([*self._unapplied, self._next])
        self.epoch = lowest // self._length
        fence = (self.epoch + 1) * self._length
        self._old = [lease for lease in self._unapplied if lease < fence]
        self._unapplied = [lease for lease in self._unapplied if lease >= fence]
        self._new = range(self._next, fence)  # a program may make a single epoch of ten thousand million samples
        self._next = max(self._next, fence)
        count = len(self._old) + len(self._new)
        self._hands = [range(tower, count, self._towers) for tower in range(self._towers)]  # places of batches
        self._given = [0] * self._towers
        self._done = [0] * self._towers

    def give(self, tower: int, want: int) -> list[int]:
        """The next batches of a tower, at most so many; none when it has had all of this epoch."""
        start = self._given[tower]
        given = self._hands[tower][start : start + want]
        self._given[tower] += len(given)
        return list(map(self._at, given))

    def _at(self, place: int) -> int:
        """The batch at a place of what the epoch had left."""
        return self._old[place] if place < len(self._old) else self._new[place - len(self._old)]

    def apply(self, counts: Sequence[int]) -> list[list[int]]:
        """An update was made of so many batches of each tower, in their order. Returns them."""
        return [self._take(tower, count) for tower, count in enumerate(counts)]

    def skip(self, counts: Sequence[int]) -> list[int]:
        """So many batches of each tower will be part of no update. Returns them."""
        taken = [lease for tower, count in enumerate(counts) for lease in self._take(tower, count)]
        self._skipped += taken
        return taken

    def _take(self, tower: int, count: int) -> list[int]:
        start = self._done[tower]
        self._done[tower] += count
        return list(map(self._at, self._hands[tower][start : start + count]))

    def finish(self) -> bool:
        """Go on to the next epoch, if this one is done."""
        if any(done < len(hand) for done, hand in zip(self._done, self._hands, strict=True)):
            return False
        self._begin()
        return True

    def state(self) -> LeaseState:
        """What a checkpoint keeps."""
        pairs = list(zip(self._done, self._hands, strict=True))
        #: From this place on all are left.
        whole = max([len(self._old), *(hand[:done][-1] + 1 for done, hand in pairs if hand[:done])])
        left = sorted(self._at(place) for done, hand in pairs for place in _below(hand[done:], whole))
        first = self._at(whole) if whole - len(self._old) < len(self._new) else self._next
        while left and left[-1] == first - 1:
            first = left.pop()
        return LeaseState(first, tuple(sorted([*left, *self._unapplied])), tuple(sorted(self._skipped)))


def _below(places: range, end: int) -> range:
    """Those that are lower."""
    return range(places.start, min(places.stop, end), places.step)


class Unnumbered:
    """The same where batches have no numbers: nothing is dealt."""

    epoch = 0

    def give(self, _tower: int, _want: int) -> list[int]:
        return []

    def apply(self, counts: Sequence[int]) -> list[list[int]]:
        return [[] for _ in counts]

    def skip(self, _counts: Iterable[int]) -> list[int]:
        return []

    def finish(self) -> bool:
        return True

    def state(self) -> LeaseState:
        return LeaseState(0, ())
