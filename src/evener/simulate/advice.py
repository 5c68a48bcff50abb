"""How much of its workers a mode uses, and which one would use more: the real policies over times that were seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

from evener.modes import Async, Mode, Rennala, Ringmaster, Sync
from evener.simulate.crew import Pace, SimulatedCrew

#: Of what all workers together could give, a mode that uses less than this wastes too much.
ENOUGH = 0.8
#: A worker is slow for good if its median is so many times that of the fastest; it comes and goes if some of its times
#: are so many times its own median.
SLOW, LONG = 1.5, 3.0
#: More workers than this would take the server a noticeable moment to simulate.
MOST_WORKERS = 64
#: Leases that are played of all workers together, after half as many that are not counted: some 20 ms of work a mode.
PLAYED = 800


@dataclass(frozen=True, slots=True)
class Use:
    """How much of its workers a mode uses."""

    how: str  # as on a command line
    share: float  # of the gradients that workers who never wait would give, those that are used


def recorded(times: Sequence[Sequence[float]]) -> Pace:
    """Each worker takes again and again the times that were seen of it."""
    again = [cycle(one) for one in times]
    return lambda worker, _time: next(again[worker])


def share(mode: Mode, times: Sequence[Sequence[float]]) -> float:
    """Of the gradients that so many workers could give if none ever waited, those that this mode uses.

    >>> round(share(Sync(), [[1.0], [2.0], [3.0], [4.0]]), 2)
    0.48
    """
    workers = len(times)
    means = [sum(one) / len(one) for one in times]
    crew = SimulatedCrew(mode.start(0, workers), workers, recorded(times))
    stretch = PLAYED / workers * max(min(means), max(means) / 10)
    return min(1.0, crew.play(stretch, 3 * stretch).rate / sum(1 / mean for mean in means))


def better(times: Sequence[Sequence[float]], *, by_speed: bool) -> list[Use]:
    """Ways that would use enough, those first that change least of what plain synchronous training learns.

    Args:
        by_speed: batches may be shared out by speed.
    """
    workers = len(times)
    ways: list[Use] = []
    if by_speed:  # all end together; what varies from batch to batch is waited for
        means = [sum(one) / len(one) for one in times]
        even = [[value / mean for value in one] for one, mean in zip(times, means, strict=True)]
        ways.append(Use("--mode sync --batch-by-speed", share(Sync(), even)))
    backups = Sync(replicas_to_aggregate=max(1, workers - 1))
    ways.append(Use(f"--mode sync --replicas-to-aggregate {workers - 1}", share(backups, times)))
    ways.append(Use(f"--mode rennala --gradients-per-update {4 * workers}", share(Rennala(), times)))
    ways.append(Use(f"--mode ringmaster --max-delay {2 * workers}", share(Ringmaster(), times)))
    ways.append(Use("--mode async", share(Async(), times)))
    return [use for use in ways if use.share >= ENOUGH]


def advice(mode: Mode, times: Mapping[int, Sequence[float]], *, by_speed: bool = False) -> str:
    """A warning, if the mode wastes more than a fifth of these workers; empty if it does not.

    Args:
        times: worker -> seconds of its last leases.
    """
    if not 2 <= len(times) <= MOST_WORKERS or not all(all(value > 0 for value in one) for one in times.values()):
        return ""
    order = sorted(times)
    lists = [list(times[worker]) for worker in order]
    used = share(mode, lists)
    if used >= ENOUGH:
        return ""
    ways = [use for use in better(lists, by_speed=by_speed) if use.share > used][:2]
    instead = " or ".join(f"{use.how} ({use.share:.0%})" for use in ways)
    why = _why(dict(zip(order, lists, strict=True)))
    return (
        f"warning: {mode.name} uses {used:.0%} of what these workers could give"
        + (f": {why}" if why else "")
        + (f"; {instead} would use more" if instead else "")
    )


def _why(times: Mapping[int, Sequence[float]]) -> str:
    """Who is slow for good, and who comes and goes."""
    medians = {worker: median(one) for worker, one in times.items()}
    fastest = min(medians, key=lambda worker: (medians[worker], worker))
    words = []
    slow = [worker for worker in medians if medians[worker] > SLOW * medians[fastest]]
    for worker in sorted(slow, key=lambda one: -medians[one])[:2]:
        words.append(
            f"worker:{worker} takes {1000 * medians[worker]:.3g} ms a batch, worker:{fastest} "
            f"{1000 * medians[fastest]:.3g} ms"
        )
    for worker, one in times.items():
        long = [value for value in one if value > LONG * medians[worker]]
        if long and len(words) < 4:
            words.append(
                f"worker:{worker} comes and goes: {len(long)} of its last {len(one)} batches took up to "
                f"{1000 * max(long):.3g} ms, the others {1000 * medians[worker]:.3g} ms"
            )
    return ", ".join(words)
