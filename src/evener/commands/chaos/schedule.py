"""Which faults a seed stands for: a pure function of the seed, the tasks and the kinds of faults.

A schedule says when by parts of an undisturbed run, of its time or of the steps that the task made in it, so that the
same seed is the same schedule for runs of a minute and of an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

#: kill: SIGKILL. stop: SIGSTOP, SIGCONT after a while. cut: a worker's links break. slow: a worker is slow throughout.
KINDS = ("kill", "stop", "slow", "cut")
#: A task is started again three times in a row where nobody says else; who dies more often has no right to.
MOST_KILLS, MOST_STRIKES = 2, 4
#: How often each: a machine that is taken away is what people fear most.
OFTEN = {"kill": 4, "stop": 2, "cut": 2}


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault that happens at a moment."""

    kind: str  # "kill", "stop", "cut"
    task: str  # "ps:0", "worker:1"
    by_steps: bool  # the moment is a number of steps, of a ps task updates; else a time since the command began
    at: float  # part of what the undisturbed run had, 0..1
    seconds: float = 0.0  # that a stopped task stays so

    def moment(self, seconds: float, steps: Mapping[str, int]) -> float:
        """When it is due: steps of the task, or seconds.

        Args:
            seconds: that the undisturbed run took.
            steps: that each task made in it.

        >>> Strike("kill", "ps:0", True, 0.5).moment(8.0, {"ps:0": 200})
        100
        """
        return max(1, round(self.at * steps.get(self.task, 0))) if self.by_steps else self.at * seconds


@dataclass(frozen=True, slots=True)
class FaultSchedule:
    """What a seed stands for."""

    seed: int
    strikes: tuple[Strike, ...] = ()
    slow: str = ""  # for --slow


def draw(seed: int, tasks: Sequence[str], kinds: Sequence[str]) -> FaultSchedule:
    """The schedule of a seed: at least one fault of these kinds.

    >>> draw(7, ["ps:0", "worker:0", "worker:1"], ["slow"])
    FaultSchedule(seed=7, strikes=(), slow='worker:1=3.9x')
    """
    chance = Random(seed)  # noqa: S311 - a schedule is no secret
    workers = [task for task in tasks if task.startswith("worker")]
    sudden = [kind for kind in KINDS if kind in kinds and kind != "slow"]
    strikes: list[Strike] = []
    for _ in range(chance.randint(1, MOST_STRIKES) if sudden else 0):
        left = [kind for kind in sudden if kind != "kill" or _kills(strikes) < MOST_KILLS]
        if left:
            (kind,) = chance.choices(left, [OFTEN[kind] for kind in left])
            strikes.append(_strike(chance, kind, tasks, workers))
    if "slow" not in kinds or (strikes and chance.random() < 0.5):
        return FaultSchedule(seed, tuple(strikes))
    worker, times = chance.choice(workers), round(chance.uniform(1.5, 4.0), 1)
    return FaultSchedule(seed, tuple(_sooner(strike, worker, times) for strike in strikes), f"{worker}={times}x")


def _sooner(strike: Strike, worker: str, times: float) -> Strike:
    """The same, where this worker makes so many times fewer steps than in the undisturbed run."""
    sooner = strike.by_steps and strike.task == worker
    return replace(strike, at=round(strike.at / times, 3)) if sooner else strike


def _kills(strikes: Sequence[Strike]) -> int:
    return sum(strike.kind == "kill" for strike in strikes)


def _strike(chance: Random, kind: str, tasks: Sequence[str], workers: Sequence[str]) -> Strike:
    task = chance.choice(workers if kind == "cut" else tasks)
    # A worker that is slowed or killed makes fewer steps than in the undisturbed run: late moments may never come.
    by_steps = chance.random() < 0.6
    at = chance.uniform(0.02, 0.7) if by_steps else chance.uniform(0.1, 0.9)
    return Strike(kind, task, by_steps, round(at, 3), round(chance.uniform(0.2, 2.0), 1) if kind == "stop" else 0.0)
