"""How long a worker takes for a batch of any size, from what its batches took."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

#: Gradients of one size that its time is the median of; sizes that are remembered, for so many gradients.
RECENT, SIZES, MEMORY = 5, 4, 60
#: Two sizes tell an overhead where one is so many times the other.
APART = 1.2


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a batch: some of any batch, and some of each of its samples."""

    overhead: float
    each: float

    def seconds(self, samples: float) -> float:
        """Of a batch of so many."""
        return self.overhead + self.each * samples


class Paced:
    """What one worker's batches took.

    A batch of few samples costs more a sample: by the rate alone a slow worker would look slower still with each share
    that is taken from it. So two sizes give a straight line; of one size all counts as samples.

    >>> paced = Paced()
    >>> paced.took(10, 3.0)
    >>> paced.pace()
    Pace(overhead=0.0, each=0.3)
    >>> paced.took(20, 5.0)
    >>> paced.pace()
    Pace(overhead=1.0, each=0.2)
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}  # size -> seconds; the size that was seen last is last
        self._seen: dict[int, int] = {}  # size -> when, in gradients
        self._count = 0

    def took(self, samples: int, seconds: float) -> None:
        """A batch of so many took so long to compute."""
        self._count += 1
        times = self._times.pop(samples, deque(maxlen=RECENT))
        times.append(seconds)
        self._times[samples], self._seen[samples] = times, self._count
        old = [size for size in self._times if self._seen[size] <= self._count - MEMORY]
        for size in [*old, *list(self._times)[: max(0, len(self._times) - len(old) - SIZES)]]:
            self._times.pop(size, None)

    def pace(self) -> Pace:
        """By the sizes farthest apart. After at least one batch."""
        few, many, newest = min(self._times), max(self._times), next(reversed(self._times))
        if many >= APART * few:
            least, most = median(self._times[few]), median(self._times[many])
            each = (most - least) / (many - few)
            overhead = least - each * few
            if each > 0 and overhead >= 0:
                return Pace(overhead, each)
        return Pace(0.0, median(self._times[newest]) / newest)
