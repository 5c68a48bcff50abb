"""Sets of whole numbers that lie mostly side by side: ten million leases are one range."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

Range = tuple[int, int]  # from, to (without it)


class NumberSet:
    """A growing set of whole numbers >= 0, whose cost follows from the number of its gaps, not of its members.

    >>> seen = Ranges([(0, 3)])
    >>> seen.add(4), seen.add(2), seen.add(3), list(seen)
    (True, False, True, [(0, 5)])
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        pairs = [(start, stop) for start, stop in ranges if start < stop]
        self._starts = [start for start, _ in pairs]  # ascending; ranges neither touch nor overlap
        self._stops = [stop for _, stop in pairs]

    def __iter__(self) -> Iterator[Range]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._stops[at]

    @property
    def stop(self) -> int:
        """One more than the greatest member; 0 of an empty set."""
        return self._stops[-1] if self._stops else 0

    def add(self, number: int, stop: int | None = None) -> bool:
        """False, and nothing done, where it is a member already. `stop`: of a range, which is added as a whole."""
        stop = number + 1 if stop is None else stop
        at = bisect_right(self._starts, number)  # the range that begins behind it
        if (at and number < self._stops[at - 1]) or (at < len(self._starts) and self._starts[at] < stop):
            return False
        joins_before = at > 0 and self._stops[at - 1] == number
        joins_after = at < len(self._starts) and self._starts[at] == stop
        if joins_before and joins_after:
            self._stops[at - 1] = self._stops.pop(at)
            del self._starts[at]
        elif joins_before:
            self._stops[at - 1] = stop
        elif joins_after:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._stops.insert(at, stop)
        return True

    def meets(self, start: int, stop: int) -> bool:
        """Whether any number of this range is a member."""
        at = bisect_right(self._starts, start)
        return (at > 0 and start < self._stops[at - 1]) or (at < len(self._starts) and self._starts[at] < stop)

    def holes(self, stop: int) -> list[Range]:
        """The ranges of 0 to stop - 1 that are not in the set."""
        return without([(0, stop)], list(self))


def span(lease: int | Range) -> Range:
    """What a lease is of: of a number that number alone.

    >>> span(7), span((3, 9))
    ((7, 8), (3, 9))
    """
    return (lease, lease + 1) if isinstance(lease, int) else lease


def of(numbers: Iterable[int | Range]) -> list[Range]:
    """Ranges of single numbers, or of ranges, in any order.

    >>> of([4, 2, 3, 9]), of([(5, 9), (2, 5)])
    ([(2, 5), (9, 10)], [(2, 9)])
    """
    ranges = NumberSet()
    for start, stop in sorted(map(span, numbers)):  # each is then put at the end
        ranges.add(start, stop)
    return list(ranges)


def without(these: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """The members of these that are not in the others; both ascending.

    >>> without([(0, 10)], [(2, 3), (5, 7)])
    [(0, 2), (3, 5), (7, 10)]
    """
    left: list[Range] = []
    at = 0
    for first, stop in these:
        start = first
        while at < len(others) and others[at][0] < stop:
            cut_from, cut_to = others[at]
            if start < cut_from:
                left.append((start, cut_from))
            start = max(start, cut_to)
            if cut_to > stop:  # it cuts the next one too
                break
            at += 1
        if start < stop:
            left.append((start, stop))
    return left


def size(ranges: Iterable[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def words(noun: str, ranges: Sequence[Range], most: int = 8) -> str:
    """For people; a long list is cut.

    >>> words("lease", [(3, 4)]), words("lease", [(3, 4), (7, 10)])
    ('lease 3', 'leases 3, 7..9')
    """
    shown = [str(start) if stop == start + 1 else f"{start}..{stop - 1}" for start, stop in ranges[:most]]
    more = [f"{len(ranges) - most} more ranges"] * (len(ranges) > most)
    return f"{noun}{'' if size(ranges) == 1 else 's'} {', '.join(shown + more)}"
