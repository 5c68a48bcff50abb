"""What happened so far: counts of the whole run, and rates over a sliding window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Window:
    """A count per second over the last `seconds` seconds.

    The seeds divide the time of the whole run by the steps of all workers and call it seconds per batch; a window
    says what happens now.
    """

    def __init__(self, clock: Callable[[], float], seconds: float = 5.0) -> None:
        self._clock = clock
        self._seconds = seconds
        self._marks: deque[tuple[float, float]] = deque([(clock(), 0.0)])
        self._total = 0.0

    def start(self, at: float | None = None) -> None:
        """Count from now, or from this time, on: what happened before is no part of any rate."""
        self._marks = deque([(self._clock() if at is None else at, self._total)])

    def add(self, amount: float = 1.0) -> None:
        self._total += amount
        now = self._clock()
        # Ten marks a window are plenty: a mark for every step would cost more than it tells.
        if now - self._marks[-1][0] >= self._seconds / 10:
            self._marks.append((now, self._total))
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Two marks stay, however old: a run whose steps are longer than the window has a rate too."""
        while len(self._marks) > 2 and now - self._marks[1][0] > self._seconds:
            self._marks.popleft()

    def rate(self) -> float:
        """Per second; 0.0 before anything was counted. Falls towards 0 while nothing is counted."""
        now = self._clock()
        self._forget(now)
        since, total = self._marks[0]
        elapsed = now - since
        return (self._total - total) / elapsed if elapsed > 0 else 0.0


class Spikes:
    """Losses far above their running mean.

    Args:
        factor: how far; None: none is.
    """

    #: Weight of a new loss, and the first losses, of which none is a spike: the mean must settle.
    WEIGHT, FIRST = 0.05, 20

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._mean, self._seen = 0.0, 0

    def see(self, loss: float) -> float | None:
        """How many times the running mean a loss is, if that is far; it does not count for the mean then."""
        if self._factor is None:
            return None
        if self._seen >= self.FIRST and loss > self._factor * self._mean > 0:
            return loss / self._mean
        self._seen += 1
        self._mean += (loss - self._mean) * max(self.WEIGHT, 1 / self._seen)
        return None


class Tally:
    """Counts of one run as the owner of the global step sees it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.examples = 0
        self.dropped = 0
        self.updates = 0
        self.max_staleness = 0
        self._staleness_sum = 0
        self._applied = 0
        self._losses: deque[float] = deque(maxlen=50)
        self._recent: deque[int] = deque(maxlen=50)
        self.steps_window = Window(clock)
        self.examples_window = Window(clock)
        self.started = self._last_update = clock()

    def begin(self, at: float | None = None) -> None:
        """The first worker begins its first step now, or did at this time. Only from here on rates count."""
        self.started = self._last_update = self._clock() if at is None else at
        self.steps_window.start(self.started)
        self.examples_window.start(self.started)

    def applied(self, loss: float | None, examples: int, staleness: int) -> None:
        """One gradient went into an update; its loss may not be known."""
        self._applied += 1
        self.examples += examples
        self._staleness_sum += staleness
        self.max_staleness = max(self.max_staleness, staleness)
        if loss is not None:
            self._losses.append(loss)
        self._recent.append(staleness)
        self.examples_window.add(examples)

    def updated(self) -> None:
        self.updates += 1
        self._last_update = self._clock()
        self.steps_window.add()

    @property
    def seconds(self) -> float:
        """From the first worker's first step to the last update; 0.0 before that."""
        return max(0.0, self._last_update - self.started)

    @property
    def loss(self) -> float:
        """Mean training loss of the last 50 gradients applied; NaN where none is known."""
        return sum(self._losses) / len(self._losses) if self._losses else float("nan")

    @property
    def mean_staleness(self) -> float:
        return self._staleness_sum / self._applied if self._applied else 0.0

    @property
    def recent_staleness(self) -> float:
        return sum(self._recent) / len(self._recent) if self._recent else 0.0
