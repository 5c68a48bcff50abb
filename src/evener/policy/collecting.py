"""Rennala, Ringmaster and n-softsync: collect gradients that are young enough, and let nobody wait."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from evener.policy.events import (
    Apply,
    Decision,
    Drained,
    Drop,
    Event,
    Expired,
    Joined,
    Left,
    Pushed,
    Recall,
    Refreshed,
    Release,
)  # fmt: skip
from evener.policy.members import names
from evener.policy.mode import Terms, check_options, option

GRADIENTS = "gradients averaged in one update"
DELAY = "updates that a gradient may be late, this number not included"


@dataclass(frozen=True, slots=True)
class Rennala:
    """Exact large batches without a barrier (Tyurin, Richtarik 2023, arXiv:2305.12387).

    An update is the mean of B gradients of one version, whoever gives them: minibatch SGD at the batch B x b. A fast
    worker gives several. What others compute at an update is lost: with N workers at most N - 1 gradients for B.

    Raises:
        ConfigError: an option that cannot work.
    """

    name: ClassVar[str] = "rennala"
    about: ClassVar[str] = "each update averages B gradients of one version; a fast worker gives several, nobody waits"

    gradients_per_update: int | None = option(None, f"{GRADIENTS}; default 4 x workers", metavar="B", least=1)

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, workers: int) -> None:
        """Any number of workers will do."""

    def terms(self, workers: int) -> Terms:
        gradients = self._gradients(workers)
        return Terms(
            gradients=gradients, held=gradients, late=False, drops=True, exact=False,
            several_optimizers=gradients == 1,
        )  # fmt: skip

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> Collecting:
        return Collecting(self._gradients(workers), 1, version=version)

    def told(self, workers: int, batch_size: int) -> list[str]:
        gradients = self._gradients(workers)
        lost = (workers - 1) / (gradients + workers - 1)
        return [
            f"one update averages {gradients} x {batch_size} = {gradients * batch_size} samples: tune the learning "
            f"rate for that; up to {lost:.0%} of the gradients may come too late (more --gradients-per-update: fewer)"
        ]

    def _gradients(self, workers: int) -> int:
        return self.gradients_per_update or 4 * workers


@dataclass(frozen=True, slots=True)
class Ringmaster:
    """Async in which gradients of R updates ago and older are dropped (2025, arXiv:2501.16168).

    Raises:
        ConfigError: an option that cannot work.
    """

    name: ClassVar[str] = "ringmaster"
    about: ClassVar[str] = "async, but gradients that are --max-delay updates late, or more, are dropped"

    max_delay: int | None = option(None, f"{DELAY}; default 2 x workers", metavar="R", least=1)

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, workers: int) -> None:
        """Any number of workers will do."""

    def terms(self, workers: int) -> Terms:
        return Terms(drops=True, late=self._delay(workers) > 1)

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> Collecting:
        return Collecting(1, self._delay(workers), version=version)

    def told(self, workers: int, batch_size: int) -> list[str]:
        delay = self._delay(workers)
        few = [f"--max-delay {delay} lets {workers} workers do no more than {delay} could"] if delay < workers else []
        return [f"a gradient that is {delay} updates late, or more, is dropped", *few]

    def _delay(self, workers: int) -> int:
        return self.max_delay or 2 * workers


@dataclass(frozen=True, slots=True)
class Softsync:
    """Collect some gradients, however old (Zhang et al. 2015, arXiv:1511.05950; also known as buffered async).

    Their n-softsync of N learners is `gradients_per_update` = N // n, with steps divided by the staleness.

    Raises:
        ConfigError: an option that cannot work.
    """

    name: ClassVar[str] = "softsync"
    about: ClassVar[str] = "each update averages the next gradients that come, however old; nobody waits"

    gradients_per_update: int | None = option(None, f"{GRADIENTS}; default workers", metavar="B", least=1)

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, workers: int) -> None:
        """Any number of workers will do."""

    def terms(self, workers: int) -> Terms:
        gradients = self._gradients(workers)
        return Terms(
            gradients=gradients, held=gradients, exact=gradients == 1, several_optimizers=gradients == 1
        )  # fmt: skip

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> Collecting:
        return Collecting(self._gradients(workers), math.inf, version=version)

    def told(self, workers: int, batch_size: int) -> list[str]:
        gradients = self._gradients(workers)
        return [f"one update averages {gradients} x {batch_size} = {gradients * batch_size} samples"]

    def _gradients(self, workers: int) -> int:
        return self.gradients_per_update or workers


def doomed(young: OrderedDict[int, int], dooms: Callable[[int], bool]) -> dict[int, int]:
    """Take those out whose version is too old; the oldest is first."""
    old: dict[int, int] = {}
    while young and dooms(next(iter(young.values()))):
        worker, version = young.popitem(last=False)
        old[worker] = version
    return old


class Collecting:
    """An update is the mean of B gradients, each less than R updates old; nobody ever waits.

    R = 1 is Rennala, B = 1 is Ringmaster, R without end is n-softsync, and with B = 1 that is async.

    Args:
        gradients: B, at least 1.
        delay: R, at least 1; `math.inf`: no gradient is too old.
        version: updates decided before this run began, as a checkpoint tells.

    >>> policy = Collecting(2, 1)
    >>> policy.on(Joined(0)), policy.on(Pushed(0, version=0, handle=7)), policy.on(Pushed(0, version=0, handle=8))
    ([Release(worker=0)], [Release(worker=0)], [Apply(handles=(7, 8)), Release(worker=0)])
    """

    def __init__(self, gradients: int, delay: float, *, version: int = 0) -> None:
        self.gradients, self.delay, self.version = gradients, delay, version
        self._held: dict[int, int] = {}  # handle -> its worker, in order of arrival
        # Every live worker is in one of these, with the version that it computes on. The oldest is first, since all are
        # released at the newest: an update costs no look at each of 16,000 workers.
        self._young: OrderedDict[int, int] = OrderedDict()
        self._doomed: dict[int, int] = {}  # their gradients will come too late; they were recalled

    def on(self, event: Event) -> list[Decision]:
        """Answer one event."""
        match event:
            case Joined(worker):
                assert worker not in self._young and worker not in self._doomed, f"worker {worker} joined twice"
                return self._go(worker)
            case Pushed(worker, version, handle):
                self._forget(worker)
                return self._push(worker, version, handle)
            case Left(worker):
                self._forget(worker)
                return self._leave(worker)
            case Refreshed(worker):
                self._forget(worker)
                self._go(worker)
            case Drained():
                return self._update() if self._held else []
            case Expired():
                pass  # it waits for nothing but gradients
        return []

    def dooms(self, version: int) -> bool:
        """Age is looked at when a gradient comes: held ones cannot age, since an update takes them all."""
        return self.version - version >= self.delay

    def waiting_for(self) -> str:
        """Which gradients the next update lacks, and who computes them; empty where each one is an update."""
        if self.gradients == 1:
            return ""
        holds = f"holds {len(self._held)}" + (f" ({names(set(self._held.values()))})" if self._held else "")
        parts = [f"update {self.version + 1} needs {self.gradients} gradients{self._of()}", holds]
        if self._young:
            parts.append(f"{names(self._young)} computing")
        if self._doomed:
            parts.append(f"{names(self._doomed)} busy with an older version")
        return ", ".join(parts)

    def _of(self) -> str:
        return f" of version {self.version}" if self.delay == 1 else ""

    def _push(self, worker: int, version: int, handle: int) -> list[Decision]:
        if self.dooms(version):
            allowed = "" if self.delay == 1 else f": less than {self.delay} updates late are taken"
            why = f"computed at version {version}, now {self.version}{allowed}"
            return [Drop(handle, why), *self._go(worker)]
        self._held[handle] = worker
        if len(self._held) < self.gradients:
            return self._go(worker)
        return [*self._update(), *self._go(worker)]

    def _update(self) -> list[Decision]:
        """Those who compute on something that is too old from now on are recalled."""
        handles = tuple(self._held)
        self._held.clear()
        self.version += 1
        old = doomed(self._young, self.dooms)
        self._doomed.update(old)
        return [Apply(handles), *map(Recall, sorted(old))]

    def _go(self, worker: int) -> list[Decision]:
        self._young[worker] = self.version
        return [Release(worker)]

    def _forget(self, worker: int) -> None:
        assert worker in self._young or worker in self._doomed, f"worker {worker} is not at work"
        self._young.pop(worker, None)
        self._doomed.pop(worker, None)

    def _leave(self, worker: int) -> list[Decision]:
        orphans = [handle for handle, owner in self._held.items() if owner == worker]
        for handle in orphans:
            del self._held[handle]
        return [Drop(handle, "its worker left before the update") for handle in orphans]
