"""Quorum with grace: an update when K workers have given, and a little later if others may still make it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from evener.errors import ConfigError
from evener.policy.collecting import doomed
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
    Wait,
)  # fmt: skip
from evener.policy.members import names
from evener.policy.mode import Terms, check_options, option


@dataclass(frozen=True, slots=True)
class Quorum:
    """Sync that waits for K workers, then a little longer (after Decoupled DiLoCo, arXiv:2604.21428).

    Who is late, but less than R updates, gives to the next update what it has. K of N, no grace, R = 1 is sync with
    backup workers.

    Raises:
        ConfigError: an option that cannot work.
    """

    name: ClassVar[str] = "quorum"
    about: ClassVar[str] = "each update waits for K workers, then --linger longer; late gradients join the next one"

    quorum: int | None = option(None, "workers that an update waits for; default all but one", metavar="K", least=1)
    linger: float = option(0.0, "seconds that it waits for more; default 0", metavar="S", kind=float)
    max_delay: int = option(2, "updates that a gradient may be late, this number not included; default 2", metavar="R",
                            least=1)  # fmt: skip
    elastic: bool = option(False, "with fewer live workers than K, wait for those that live", kind=bool)

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, workers: int) -> None:
        """Raises ConfigError if there are fewer workers than an update waits for."""
        if self.quorum is not None and self.quorum > workers:
            raise ConfigError(
                f"quorum={self.quorum} can never take a step with {workers} workers.",
                why="each worker gives one gradient to an update.",
                fix=f"start {self.quorum - workers} more, or use --quorum {workers}.",
            )

    def terms(self, workers: int) -> Terms:
        return Terms(
            gradients=None, held=workers, fewest=1 if self.elastic else self._needed(workers), drops=True, exact=False,
            late=self.max_delay > 1, together=True, several_optimizers=False,
        )  # fmt: skip

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> Gathering:
        return Gathering(
            self._needed(workers), self.linger, self.max_delay, version=version,
            elastic=least * self.elastic, workers=workers if ending else None,
        )  # fmt: skip

    def told(self, workers: int, batch_size: int) -> list[str]:
        needed = self._needed(workers)
        return [
            f"each update averages the gradients of {needed} to {workers} workers ({batch_size} samples each), "
            f"{self.linger:g} s after the first {needed}; what is {self.max_delay} updates late, or more, is dropped"
        ]

    def _needed(self, workers: int) -> int:
        return self.quorum or max(1, workers - 1)


class Gathering:
    """One gradient a worker an update, of K workers or more; late ones join the next update.

    Args:
        needed: K, at least 1.
        grace: seconds that an update waits for more gradients, once it has K.
        delay: R, at least 1: a gradient must be less than so many updates late.
        version: updates decided before this run began, as a checkpoint tells.
        elastic: while fewer than K workers live, wait for those, and so many at least. 0: wait for K, aloud.
        workers: how many there are; those of them whose loops have ended are not waited for. None: all are.
    """

    def __init__(  # noqa: PLR0913 - the three numbers of the rule, and who is awaited
        self,
        needed: int,
        grace: float,
        delay: int,
        *,
        version: int = 0,
        elastic: int = 0,
        workers: int | None = None,
    ) -> None:
        self.quorum, self.grace, self.delay, self.version = needed, grace, delay, version
        self.elastic = elastic
        self._workers = workers
        self._ended: set[int] = set()
        self._held: dict[int, int] = {}  # handle -> its worker, in order of arrival
        # Every live worker is in one of these; of those who compute the oldest version is first (see `Collecting`).
        self._young: OrderedDict[int, int] = OrderedDict()
        self._doomed: dict[int, int] = {}  # their gradients will come too late; they were recalled
        self._waiting: set[int] = set()  # gave a gradient
        self._token = 0  # of the newest timer
        self._armed = False

    @property
    def needed(self) -> int:
        """Gradients that the next update waits for."""
        here = self.quorum
        if self.elastic:
            here = max(self._live, self.elastic - len(self._ended))
        elif self._ended and self._workers is not None:
            here = self._workers - len(self._ended)
        return max(1, min(self.quorum, here))

    def on(self, event: Event) -> list[Decision]:
        """Answer one event."""
        match event:
            case Joined(worker):
                return self._go([worker])
            case Pushed(worker, version, handle):
                self._forget(worker)
                return self._push(worker, version, handle)
            case Expired(token):
                due = self._armed and token == self._token and len(self._held) >= self.needed
                return self._update() if due else []
            case Left(worker, ended):
                return self._leave(worker, ended)
            case Refreshed(worker):
                self._forget(worker)
                self._go([worker])
            case Drained():
                return self._update() if self._held else []
        return []

    def dooms(self, version: int) -> bool:
        """Age is looked at when a gradient comes."""
        return self.version - version >= self.delay

    def waiting_for(self) -> str:
        """How many gradients the next update lacks, or how long it still waits for whom."""
        at_work = [*self._young, *self._doomed]
        computing = f"{names(at_work)} computing" if at_work else ""
        if self._armed:
            return f"update {self.version + 1} has {len(self._held)} gradients and waits {self.grace:g} s: {computing}"
        holds = f"holds {len(self._held)} ({names(self._waiting)})" if self._held else "holds none"
        few = self.needed < self.quorum
        parts = [f"update {self.version + 1} needs {self.needed} gradients{' (fewer are here)' if few else ''}", holds]
        if computing:
            parts.append(computing)
        if self._live < self.needed:
            more = self.needed - self._live
            parts.append(f"and only {self._live} workers are here: start {more} more or use --elastic")
        return ", ".join(parts)

    def _push(self, worker: int, version: int, handle: int) -> list[Decision]:
        if self.dooms(version):
            why = f"computed at version {version}, now {self.version}: less than {self.delay} updates late are taken"
            return [Drop(handle, why), *self._go([worker])]
        self._held[handle] = worker
        self._waiting.add(worker)
        return self._look()

    def _look(self) -> list[Decision]:
        if not self._held or len(self._held) < self.needed:
            return []
        if not self.grace or len(self._waiting) == self._live:
            return self._update()
        if self._armed:
            return []
        self._armed = True
        self._token += 1
        return [Wait(self._token, self.grace)]

    def _leave(self, worker: int, ended: bool) -> list[Decision]:
        if worker in self._waiting:
            self._waiting.remove(worker)
        else:
            self._forget(worker)
        if ended:
            self._ended.add(worker)
        orphans = [handle for handle, owner in self._held.items() if owner == worker]
        for handle in orphans:
            del self._held[handle]
        if len(self._held) < self.needed:
            self._armed = False
        return [*(Drop(handle, "its worker left before the update") for handle in orphans), *self._look()]

    def _update(self) -> list[Decision]:
        """Those who compute on something that is too old from now on are recalled."""
        handles = tuple(self._held)
        self._held.clear()
        self.version += 1
        self._armed = False
        old = doomed(self._young, self.dooms)
        self._doomed.update(old)
        waiting = sorted(self._waiting)
        self._waiting.clear()
        return [Apply(handles), *map(Recall, sorted(old)), *self._go(waiting)]

    def _go(self, workers: Iterable[int]) -> list[Decision]:
        decisions: list[Decision] = []
        for worker in workers:
            assert worker not in self._young and worker not in self._doomed, f"worker {worker} joined twice"
            self._young[worker] = self.version
            decisions.append(Release(worker))
        return decisions

    def _forget(self, worker: int) -> None:
        assert worker in self._young or worker in self._doomed, f"worker {worker} is not at work"
        self._young.pop(worker, None)
        self._doomed.pop(worker, None)

    @property
    def _live(self) -> int:
        return len(self._young) + len(self._doomed) + len(self._waiting)
