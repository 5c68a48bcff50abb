"""What becomes of a run when one of its tasks ends. Pure: `run` and `towers` ask here, and do what they are told."""

from __future__ import annotations

from dataclasses import dataclass

from evener.control.told import LEFT

#: A life that lasted so many seconds, while the run made so many steps beyond all that it had reached, was no failure
#: to start: its end gives all restarts back. Else one comes back after each `REFILL` seconds.
LIVED, PROGRESS, REFILL = 5.0, 100, 60.0
#: Seconds before a task that has left in order starts again.
SOON = 0.25


class Budget:
    """How often one task may be started again after it was killed: so many times in a row, and then with progress.

    >>> budget = Budget(1, now=0.0)
    >>> budget.spend(now=1.0, lived=1.0, progress=0), budget.spend(now=2.0, lived=0.5, progress=0)
    (0.25, None)
    >>> budget.spend(now=70.0, lived=60.0, progress=5000)
    0.25
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit, self._left, self._at, self._row = limit, float(limit), now, 0

    @property
    def left(self) -> int:
        return int(self._left)

    @property
    def spent(self) -> int:
        """Restarts in a row that brought no progress."""
        return self._row

    def spend(self, *, now: float, lived: float, progress: int) -> float | None:
        """Take one restart: after how many seconds it may be. None: there is none left."""
        self._left = min(float(self.limit), self._left + (now - self._at) / REFILL)
        self._at = now
        if lived >= LIVED and progress >= PROGRESS:
            self._left, self._row = float(self.limit), 0
        if self._left < 1:
            return None
        self._left -= 1
        self._row += 1
        return min(0.25 * 2.0 ** (self._row - 1), 10.0)


@dataclass(frozen=True, slots=True)
class Ended:
    """A task's life is over."""

    how: str  # "": as it should; else as `Running.ended` says it
    said: bool  # it reported itself why it failed
    lived: float  # seconds
    progress: int  # global steps beyond the furthest that the run had reached when this life began


@dataclass(frozen=True, slots=True)
class Standing:
    """How the run stands when that happens."""

    done: bool  # it has ended as it should
    ending: bool  # it is being cut short
    may_restart: bool  # a task of it can come back alone
    spares: bool  # it goes on without this task


@dataclass(frozen=True, slots=True)
class Again:
    """Start it again after so many seconds."""

    seconds: float
    told: str


@dataclass(frozen=True, slots=True)
class Without:
    """The others go on without it."""

    told: str


@dataclass(frozen=True, slots=True)
class Fails:
    """The run ends because of it. `told`: why; empty if the task has said so itself."""

    told: str


Fate = Again | Without | Fails


def fate(ended: Ended, standing: Standing, budget: Budget, now: float) -> Fate | None:
    """What is to be done about the end of a task. None: nothing."""
    if not ended.how or standing.done:
        return None
    if ended.said:
        return Fails("")
    if ended.how == LEFT:
        again = standing.may_restart and not standing.ending
        return Again(SOON, f"{LEFT}; it starts again in {SOON:g} s, at no cost") if again else None
    if standing.may_restart and not standing.ending:
        seconds = budget.spend(now=now, lived=ended.lived, progress=ended.progress)
        if seconds is not None:
            return Again(seconds, f"{ended.how}; it starts again in {seconds:g} s ({budget.left} restarts left)")
    if standing.spares and not standing.ending:
        return Without(f"{ended.how}; the others go on without it")
    return Fails(f"{ended.how}{f' and was restarted {budget.spent} times' if budget.spent else ''}")
