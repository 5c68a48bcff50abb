"""Where each worker's life stands: one value that only the table below can move, with the story of how it came there.

    admitted -> waiting -> computing -> held -> computing -> ...     and from everywhere -> gone
                   |          ^          |
                   +-> parked +<- parked +        waiting, parked, held -> leaving: the run is over

A lease that is computed has a deadline (`overdue`): one hung worker must not hold the last batch of a run for ever.
A worker with a script of its own may go on without a lease, then it has none; it is never parked, but asks for batches
of the next epoch (idle) when it has none in hand: computing -> idle -> computing. After the end it may go on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from statistics import median


class Stage(Enum):
    """What a worker's life is about."""

    ADMITTED = "was admitted"
    WAITING = "waits for parameters"
    COMPUTING = "computes"
    HELD = "has given its gradient"
    PARKED = "is idle: no batch is left, unless one comes back"
    IDLE = "has asked for batches, and none is left of this epoch"
    LEAVING = "was told that the run is over"
    GONE = "is gone"


_NEXT: dict[Stage, tuple[Stage, ...]] = {
    Stage.ADMITTED: (Stage.WAITING,),
    Stage.WAITING: (Stage.COMPUTING, Stage.PARKED, Stage.LEAVING),
    Stage.COMPUTING: (Stage.HELD, Stage.IDLE),
    Stage.IDLE: (Stage.COMPUTING, Stage.LEAVING),
    Stage.HELD: (Stage.COMPUTING, Stage.PARKED, Stage.LEAVING),
    Stage.PARKED: (Stage.COMPUTING, Stage.LEAVING),
    Stage.LEAVING: (Stage.HELD,),
    Stage.GONE: (),
}
#: A lease may take so many times what this worker's leases took, and in any case so large a part of the stall timeout.
TIMES, PART = 10.0, 0.25
#: Leases that a worker's median is taken of, and moves of a life that are told.
RECENT, STORY = 31, 12


@dataclass(slots=True)
class Life:
    """One life of one worker."""

    worker: int
    epoch: int
    stage: Stage
    since: float
    lease: int = -1
    shows: bool = False  # it has asked to see parameters meanwhile: it validates, which takes its time
    free: bool = False  # it begins an epoch: its script may do whatever it does between two of them
    story: deque[tuple[Stage, int]] = field(default_factory=lambda: deque(maxlen=STORY))  # with the lease of each move


class Lives:
    """The life that each worker index has now.

    Args:
        stall_timeout: seconds that a lease may take while nobody knows how long this worker's take.
    """

    def __init__(self, stall_timeout: float) -> None:
        self._limit = stall_timeout
        self._lives: dict[int, Life] = {}
        self._took: dict[int, deque[float]] = {}  # worker -> seconds of its last leases, over all its lives
        self._lost: Counter[int] = Counter()  # lease -> lives that ended while they computed it

    def admit(self, worker: int, epoch: int, now: float) -> None:
        """A new life, in place of any older one."""
        self._lives[worker] = Life(worker, epoch, Stage.ADMITTED, now)
        self._lives[worker].story.append((Stage.ADMITTED, -1))

    def move(self, worker: int, stage: Stage, now: float, lease: int = -1) -> None:
        """A worker's life goes on; `lease` is what it computes from now on. A wrong turn is a mistake of ours."""
        life = self._lives[worker]
        assert stage in _NEXT[life.stage], f"worker:{worker} {stage.value}? {self.story(worker)}"
        if life.stage is Stage.COMPUTING and stage is Stage.HELD and not life.shows and not life.free:
            self._took.setdefault(worker, deque(maxlen=RECENT)).append(now - life.since)
            self._lost.pop(life.lease, None)
        if stage is Stage.COMPUTING:
            life.lease = lease
        life.stage, life.since, life.shows, life.free = stage, now, False, False
        life.story.append((stage, lease))

    def shown(self, worker: int, now: float) -> None:
        """It asked to see parameters: a sign of life, and of a validation."""
        if (life := self._lives.get(worker)) is not None:
            life.since, life.shows = now, True

    def freed(self, worker: int) -> None:
        """It begins an epoch: no deadline until its next push."""
        self._lives[worker].free = True

    def drew(self, worker: int, now: float, lease: int) -> None:
        """It asked for more batches on its way: a sign of life."""
        life = self._lives[worker]
        life.since, life.lease = now, lease

    def gone(self, worker: int) -> int:
        """A life has ended. Returns how many have now ended over the lease that it was computing; 0 if over none."""
        life = self._lives.pop(worker, None)
        if life is None or life.stage is not Stage.COMPUTING or life.lease < 0:
            return 0
        self._lost[life.lease] += 1
        return self._lost[life.lease]

    def deadline(self, worker: int) -> float:
        """Seconds that this worker may take for a lease."""
        took = self._took.get(worker)
        if not took or self._lives[worker].shows:
            return self._limit
        return max(self._limit * PART, min(TIMES * median(took), self._limit))

    def at_leisure(self) -> bool:
        """Whether somebody goes on without a deadline: a script does what it likes between two epochs."""
        return any(life.lease < 0 or life.free for life in self._computing())

    def overdue(self, now: float) -> list[Life]:
        """Those whose lease takes too long."""
        return [
            life for life in self._computing()
            if life.lease >= 0 and not life.free and now - life.since >= self.deadline(life.worker)
        ]  # fmt: skip

    def waiting_for(self, now: float) -> str:
        """Who computes, on what, and for how long; empty if nobody does."""
        words = [
            f"worker:{life.worker} to {f'give lease {life.lease}' if life.lease >= 0 else 'go on with its script'} "
            f"({now - life.since:.0f} s)"
            for life in self._computing()
        ]
        return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")

    def stage(self, worker: int) -> Stage:
        return self._lives[worker].stage if worker in self._lives else Stage.GONE

    def times(self) -> dict[int, list[float]]:
        """Seconds of the last leases of each worker that lives."""
        return {worker: list(self._took.get(worker, ())) for worker in self._lives}

    def lease(self, worker: int) -> int:
        """What it computes; -1: nothing."""
        life = self._lives[worker]
        return life.lease if life.stage is Stage.COMPUTING else -1

    def story(self, worker: int) -> str:
        """How this life came to where it is, newest last."""
        life = self._lives[worker]
        told = [f"{stage.value}{f' lease {lease}' if lease >= 0 else ''}" for stage, lease in life.story]
        if life.story[0][0] is Stage.ADMITTED:
            told[0] = f"epoch {life.epoch} {told[0]}"
        return f"worker:{worker}: {', '.join(told)}"

    def _computing(self) -> Iterable[Life]:
        return (life for _, life in sorted(self._lives.items()) if life.stage is Stage.COMPUTING)

    def check(self) -> None:
        """What is always true, for tests: nobody computes the same lease as another one."""
        leases = [life.lease for life in self._computing() if life.lease >= 0]
        assert len(set(leases)) == len(leases), f"a lease is computed twice: {sorted(leases)}"
