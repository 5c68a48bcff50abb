"""The book of a stream of samples: which stretches of it are out, and with whom; `leases` for unequal batches."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from evener.policy.leases import LeaseState

Stretch = tuple[int, int]  # samples from, to (without it), counted over all epochs


@dataclass(frozen=True, slots=True)
class StretchState:
    """What a checkpoint keeps of the book: all samples below `next_lease` are applied, but for those named here."""

    next_lease: int
    unapplied: tuple[Stretch, ...]  # ascending; they neither touch nor overlap
    skipped: tuple[Stretch, ...] = ()  # given up: neither applied nor to be applied


class Stretches:
    """Give out stretches of samples so that each sample is applied exactly once, whoever leaves on the way.

    A stretch that is out is named by its first sample. Memory and time follow from the number of holes, not of samples.

    Args:
        next_sample: the lowest never issued.
        returned: stretches below it that were issued but not applied; they go out first.
        limit: samples 0 to limit - 1 exist; None: they never end.
        skipped: stretches that were given up.

    >>> book = Stretches(limit=20)
    >>> book.take("a", 12), book.take("b", 12), book.take("b", 1), book.leave("a"), book.take("b", 5)
    ((0, 12), (12, 20), None, [(0, 12)], (0, 5))
    >>> book.state()
    StretchState(next_lease=0, unapplied=(), skipped=())
    """

    def __init__(
        self,
        *,
        next_sample: int = 0,
        returned: Iterable[Stretch] = (),
        limit: int | None = None,
        skipped: Iterable[Stretch] = (),
    ) -> None:
        self.next_sample = next_sample
        self.limit = limit
        self._free = merged(returned)
        assert all(start >= 0 and stop <= next_sample for start, stop in self._free), "returned but never issued"
        self._outstanding: dict[int, tuple[int, Hashable]] = {}  # start -> stop, owner
        self._skipped = list(skipped)

    @property
    def out(self) -> int:
        """Samples that are with somebody."""
        return sum(stop - start for start, (stop, _) in self._outstanding.items())

    @property
    def free(self) -> int:
        """Samples that came back, and wait for somebody."""
        return sum(stop - start for start, stop in self._free)

    @property
    def exhausted(self) -> bool:
        """Whether every sample is applied: nothing to issue, nothing out that could come back."""
        ended = self.limit is not None and self.next_sample >= self.limit
        return ended and not self._free and not self._outstanding

    def take(self, owner: Hashable, want: int) -> Stretch | None:
        """Issue the lowest samples that nobody holds: at most so many, and none behind a gap. None: there are none."""
        assert want > 0, "a stretch has samples"
        if self._free:
            start, end = self._free[0]
            stop = min(start + want, end)
            self._free[:1] = [(stop, end)] if stop < end else []
        else:
            start = self.next_sample
            stop = start + want if self.limit is None else min(start + want, self.limit)
            if start >= stop:
                return None
            self.next_sample = stop
        self._outstanding[start] = (stop, owner)
        return start, stop

    def stretch(self, start: int, owner: Hashable) -> Stretch | None:
        """The stretch that begins there, if this owner holds it now."""
        stop, holder = self._outstanding.get(start, (0, None))
        return (start, stop) if stop and holder == owner else None

    def holds(self, start: int, owner: Hashable) -> bool:
        """Whether this owner may still give something for it."""
        return self.stretch(start, owner) is not None

    def finish(self, start: int, owner: Hashable) -> bool:
        """Close a stretch whose gradient was applied. False, and nothing done, unless this owner holds it now."""
        if not self.holds(start, owner):
            return False
        del self._outstanding[start]
        return True

    def close(self, start: int, owner: Hashable) -> bool:
        """Give a stretch up: it is not issued again, and others come in its place."""
        stretch = self.stretch(start, owner)
        if stretch is None:
            return False
        self.finish(start, owner)
        self._skipped.append(stretch)
        if self.limit is not None:
            self.limit += stretch[1] - start
        return True

    def give_back(self, start: int, owner: Hashable) -> bool:
        """Return a stretch whose gradient was dropped. False, and nothing done, unless this owner holds it now."""
        stretch = self.stretch(start, owner)
        if stretch is None:
            return False
        self.finish(start, owner)
        self._put(stretch)
        return True

    def leave(self, owner: Hashable) -> list[Stretch]:
        """Return all stretches of an owner that is gone; they are listed in ascending order."""
        stretches = sorted((start, stop) for start, (stop, holder) in self._outstanding.items() if holder == owner)
        for start, _ in stretches:
            self.give_back(start, owner)
        return stretches

    def outstanding(self) -> dict[int, Hashable]:
        """First sample -> owner, for the stretches that are out now."""
        return {start: owner for start, (_, owner) in self._outstanding.items()}

    def state(self) -> StretchState:
        """What to store: a book restored from it issues exactly the samples that were not applied."""
        out = [(start, stop) for start, (stop, _) in self._outstanding.items()]
        unapplied, following = merged([*self._free, *out]), self.next_sample
        if unapplied and unapplied[-1][1] == following:  # as if they had never been issued
            following = unapplied.pop()[0]
        return StretchState(following, tuple(unapplied), tuple(merged(self._skipped)))

    def _put(self, stretch: Stretch) -> None:
        """Among those that are free; what touches becomes one, with the rest of the stream too."""
        start, stop = stretch
        at = bisect_left(self._free, stretch)
        if at < len(self._free) and self._free[at][0] == stop:
            stop = self._free.pop(at)[1]
        if at and self._free[at - 1][1] == start:
            at -= 1
            start = self._free.pop(at)[0]
        if stop == self.next_sample:
            self.next_sample = start
        else:
            self._free.insert(at, (start, stop))


def merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Ascending, and those that touch as one; they must not overlap.

    >>> merged([(4, 6), (0, 2), (2, 3)])
    [(0, 3), (4, 6)]
    """
    found: list[Stretch] = []
    for start, stop in sorted(stretches):
        assert not found or found[-1][1] <= start, "a sample is named twice"
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        elif start < stop:
            found.append((start, stop))
    return found


def in_samples(book: LeaseState, size: int) -> StretchState:
    """A book of batches of `size` samples as one of samples.

    >>> in_samples(LeaseState(5, (1, 2)), 10)
    StretchState(next_lease=50, unapplied=((10, 30),), skipped=())
    """
    unapplied, skipped = ((merged((n * size, (n + 1) * size) for n in leases)) for leases in
                          (book.unapplied, book.skipped))  # fmt: skip
    return StretchState(book.next_lease * size, tuple(unapplied), tuple(skipped))


def in_leases(book: StretchState, size: int) -> LeaseState | None:
    """A book of samples as one of batches of `size`; None where a batch would be applied in part.

    >>> in_leases(StretchState(50, ((10, 30),)), 10)
    LeaseState(next_lease=5, unapplied=(1, 2), skipped=())
    >>> in_leases(StretchState(50, ((10, 29),)), 10) is None
    True
    """
    bounds = [book.next_lease, *(bound for stretch in (*book.unapplied, *book.skipped) for bound in stretch)]
    if any(bound % size for bound in bounds):
        return None
    unapplied, skipped = (
        tuple(lease for start, stop in stretches for lease in range(start // size, stop // size))
        for stretches in (book.unapplied, book.skipped)
    )
    return LeaseState(book.next_lease // size, unapplied, skipped)
