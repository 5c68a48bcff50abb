"""Stale synchronous parallel: nobody waits, unless it is too far ahead."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from evener.policy.events import Apply, Decision, Drained, Event, Expired, Joined, Left, Pushed, Refreshed, Release
from evener.policy.members import names
from evener.policy.mode import Terms, check_options, option


@dataclass(frozen=True, slots=True)
class Bounded:
    """Async in which nobody runs too far ahead: it evens out jitter, and is no cure for workers that differ for good.

    Raises:
        ConfigError: an option that cannot work.
    """

    name: ClassVar[str] = "bounded"
    about: ClassVar[str] = "async, but nobody runs more than --staleness local steps ahead of the slowest"

    staleness: int = option(4, "local steps ahead of the slowest worker; default 4", metavar="S")

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, workers: int) -> None:
        """Any number of workers will do."""

    def terms(self, workers: int) -> Terms:
        return Terms()

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> StaleSynchronous:
        return StaleSynchronous(self.staleness, version=version)

    def told(self, workers: int, batch_size: int) -> list[str]:
        return []


class StaleSynchronous:
    """Apply every push at once; let no worker run more than `staleness` local steps ahead of the slowest live one.

    Each worker has a clock, the count of its pushes. Between `Asynchronous` (no bound) and lockstep (staleness 0) this
    keeps fast workers busy, while what they have not yet seen of the slowest one stays limited. A worker that joins
    starts at the slowest clock, so that it neither holds the others back by its youth nor is held back itself.

    Args:
        staleness: local steps that a worker may be ahead, at least 0.
        version: updates decided before this run began, as a checkpoint tells.
    """

    def __init__(self, staleness: int, *, version: int = 0) -> None:
        self.staleness = staleness
        self.version = version
        self._clock: dict[int, int] = {}  # of live workers
        self._at: Counter[int] = Counter()  # clock -> live workers there; no zeros
        self._slowest = 0  # the lowest key of `_at`; kept, so that an event costs the same among 16,000 workers
        self._waiting: set[int] = set()  # each is exactly staleness + 1 ahead: it was within the bound before its push

    def on(self, event: Event) -> list[Decision]:
        """Answer one event."""
        match event:
            case Joined(worker):
                assert worker not in self._clock, f"worker {worker} joined twice"
                self._set_clock(worker, self._slowest)
                return [Release(worker)]
            case Pushed(worker, _, handle):
                assert worker in self._clock, f"worker {worker} pushed but has not joined"
                assert worker not in self._waiting, f"worker {worker} pushed but was not released"
                self.version += 1
                self._waiting.add(worker)
                moved = self._set_clock(worker, self._remove_clock(worker) + 1)
                return [Apply((handle,)), *self._release(self._waiting if moved else {worker})]
            case Left(worker):
                assert worker in self._clock, f"worker {worker} left but was not here"
                self._remove_clock(worker)
                self._waiting.discard(worker)
                return self._release(self._waiting) if self._find_slowest() else []
            case Refreshed() | Expired():
                return []
            case Drained(idle):
                return self._overtake(idle)

    def dooms(self, version: int) -> bool:
        """No gradient is too old: its worker waited before it could be."""
        return False

    def waiting_for(self) -> str:
        """Name the blocked workers and the slowest ones that they wait for; empty while nobody is blocked."""
        if not self._waiting:
            return ""
        steps = "1 step" if self.staleness == 0 else f"{self.staleness + 1} steps"
        verb, wait = ("is", "waits") if len(self._waiting) == 1 else ("are", "wait")
        slowest = names(worker for worker, clock in self._clock.items() if clock == self._slowest)
        return f"{names(self._waiting)} {verb} {steps} ahead and {wait} for {slowest}"

    def _release(self, candidates: set[int]) -> list[Decision]:
        ready = sorted(worker for worker in candidates if self._clock[worker] <= self._slowest + self.staleness)
        self._waiting.difference_update(ready)
        return [Release(worker) for worker in ready]

    def _overtake(self, idle: frozenset[int]) -> list[Decision]:
        """Who has no batch holds nobody back: its clock is that of the slowest of the others, if it was behind."""
        others = [clock for worker, clock in self._clock.items() if worker not in idle]
        if not others:
            return []
        slowest = min(others)
        for worker in sorted(idle & self._clock.keys()):
            self._set_clock(worker, max(slowest, self._remove_clock(worker)))
        self._find_slowest()
        return self._release(self._waiting)

    def _set_clock(self, worker: int, clock: int) -> bool:
        self._clock[worker] = clock
        self._at[clock] += 1
        return self._find_slowest()

    def _remove_clock(self, worker: int) -> int:
        clock = self._clock.pop(worker)
        self._at[clock] -= 1
        if not self._at[clock]:
            del self._at[clock]
        return clock

    def _find_slowest(self) -> bool:
        """Bring `_slowest` up to date; whether it moved, which alone can free a worker that waits."""
        if self._slowest in self._at:
            return False
        self._slowest = min(self._at, default=0)
        return True
