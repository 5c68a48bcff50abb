"""Workers that take a known time for each batch, under a real policy, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from evener.policy.events import Apply, Drop, Event, Expired, Joined, Policy, Pushed, Release, Wait

#: Seconds of the next batch of this worker, which has begun it at this time.
Pace = Callable[[int, float], float]


@dataclass(slots=True)
class Count:
    """What became of the gradients in a stretch of time."""

    seconds: float
    applied: int = 0
    dropped: int = 0
    updates: int = 0
    staleness: int = 0  # of all that were applied, in sum
    longest: int = 0  # the highest of them
    given: dict[int, int] = field(default_factory=dict)  # worker -> its gradients that were applied

    @property
    def rate(self) -> float:
        """Gradients applied a second."""
        return self.applied / self.seconds

    @property
    def lost(self) -> float:
        """Gradients dropped a second."""
        return self.dropped / self.seconds


class SimulatedCrew:
    """Links without delay, a server without cost; ties in time go by the index of the worker.

    Args:
        policy: fresh, of the mode that is tried.
        workers: how many.
        pace: seconds of each batch.
        applied: called at each update with its time and its gradients: (worker, version it was computed on).

    >>> from evener.modes import Async, Sync
    >>> Crew(Async().start(0, 4), 4, constant([1, 2, 3, 4])).play(0, 120).rate
    2.0833333333333335
    >>> Crew(Sync().start(0, 4), 4, constant([1, 2, 3, 4])).play(0, 120).rate
    1.0
    """

    def __init__(
        self,
        policy: Policy,
        workers: int,
        pace: Pace,
        applied: Callable[[float, Sequence[tuple[int, int]]], None] = lambda _time, _gradients: None,
    ) -> None:
        self.policy, self._pace, self._applied = policy, pace, applied
        self.time = 0.0
        # (when, 0: a gradient comes, 1: a timer is over, worker or token, version it computes on)
        self._due: list[tuple[float, int, int, int]] = []
        self._held: dict[int, tuple[int, int]] = {}  # handle -> worker, version
        self._handles = 0
        self._count = Count(0.0)
        for worker in range(workers):
            self._tell(Joined(worker))

    def play(self, start: float, stop: float) -> Count:
        """Go on until `stop`; what happened after `start`, up to `stop` itself."""
        self._until(start)
        self._count = Count(stop - start)
        self._until(stop)
        count, self._count = self._count, Count(0.0)
        return count

    def _until(self, stop: float) -> None:
        while self._due and self._due[0][0] <= stop:
            self.time, kind, which, version = heappop(self._due)
            if kind:
                self._tell(Expired(which))
                continue
            self._handles += 1
            self._held[self._handles] = (which, version)
            self._tell(Pushed(which, version, self._handles))
        self.time = stop

    def _tell(self, event: Event) -> None:
        before = self.policy.version
        for decision in self.policy.on(event):
            match decision:
                case Apply(handles):
                    self._apply([self._held.pop(handle) for handle in handles], before)
                case Drop(handle):
                    del self._held[handle]
                    self._count.dropped += 1
                case Release(worker):
                    due = self.time + self._pace(worker, self.time)
                    heappush(self._due, (due, 0, worker, self.policy.version))
                case Wait(token, seconds):
                    heappush(self._due, (self.time + seconds, 1, token, 0))

    def _apply(self, gradients: Sequence[tuple[int, int]], before: int) -> None:
        count = self._count
        count.updates += 1
        for worker, version in gradients:
            count.applied += 1
            count.staleness += before - version
            count.longest = max(count.longest, before - version)
            count.given[worker] = count.given.get(worker, 0) + 1
        self._applied(self.time, gradients)


def constant(seconds: Sequence[float]) -> Pace:
    """Each worker takes always the same time."""
    return lambda worker, _time: seconds[worker]
