"""Lockstep, backup workers and gradient accumulation: one rule with one number, replicas_to_aggregate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from evener.errors import ConfigError
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


@dataclass(frozen=True, slots=True)
class Sync:
    """All together: each update is the mean of R gradients of one version.

    Raises:
        ConfigError: an option that cannot work.
    """

    name: ClassVar[str] = "sync"
    about: ClassVar[str] = "all together: each update averages one gradient of each worker, or --replicas-to-aggregate"

    replicas_to_aggregate: int | None = option(
        None, "gradients averaged in one update; default: workers", metavar="R", least=1
    )
    accumulate: bool = option(False, "let a worker give several of the R gradients", kind=bool)
    elastic: bool = option(False, "with fewer live workers, average fewer gradients", kind=bool)

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, workers: int) -> None:
        """Raises ConfigError if one gradient a worker is fewer than an update needs."""
        aggregate = self.replicas_to_aggregate
        if aggregate is not None and aggregate > workers and not self.accumulate:
            raise ConfigError(
                f"sync with replicas_to_aggregate={aggregate} can never take a step with {workers} workers.",
                why=f"each step averages {aggregate} gradients and each worker gives one.",
                fix=f"start {aggregate - workers} more, use --replicas-to-aggregate {workers}, "
                "or let each worker give several gradients with --accumulate.",
            )

    def terms(self, workers: int) -> Terms:
        aggregate = self.replicas_to_aggregate or workers
        drops = aggregate < workers or self.accumulate or self.elastic
        shrinks = self.elastic and aggregate == workers and not self.accumulate
        return Terms(
            gradients=None if shrinks else aggregate, held=aggregate, late=False,
            fewest=1 if self.accumulate or self.elastic else aggregate,
            drops=drops, exact=not drops, together=True, needs_all=not self.elastic,
            several_optimizers=not self.accumulate,
        )  # fmt: skip

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> Synchronous:
        return Synchronous(
            self.replicas_to_aggregate or workers, accumulate=self.accumulate, elastic=least * self.elastic,
            version=version, workers=workers if ending else None,
        )  # fmt: skip

    def told(self, workers: int, batch_size: int) -> list[str]:
        return []


class Synchronous:
    """Average R gradients of the newest version, take one step, release all who wait.

    With R = N workers this is lockstep; with R < N the N - R slowest of each round are backups whose gradients are
    dropped. Unlike TensorFlow, a worker whose push was too late gets the newest parameters at once, not an old token
    that dooms its next gradient too, and no worker gives two gradients to one update, unless asked to accumulate.

    Where gradients are of several groups, each update is of one. The last, shorter round of an epoch is the mean of
    what there is (`Drained`).

    Args:
        replicas_to_aggregate: R, the gradients averaged by one update; at least 1.
        accumulate: release a worker again at the same version while its gradient is needed, so that R may exceed N.
        elastic: while fewer than R workers live, average one gradient of each, of so many at least. 0: wait for R,
            aloud. Nothing to do with accumulate, where few workers give as many gradients as many.
        version: updates decided before this run began, as a checkpoint tells.
        workers: how many there are; of these, those whose loops have ended are not waited for. None: all are.
    """

    def __init__(
        self,
        replicas_to_aggregate: int,
        *,
        accumulate: bool = False,
        elastic: int = 0,
        version: int = 0,
        workers: int | None = None,
    ) -> None:
        self.replicas_to_aggregate = replicas_to_aggregate
        self.accumulate = accumulate
        self.elastic = elastic
        self.version = version
        self._workers = workers
        self._ended: set[int] = set()  # workers whose loops have ended
        self._held: dict[int, int] = {}  # handle -> its worker, in order of arrival; all computed at `version`
        self._group: dict[int, int] = {}  # handle -> its group
        # Every live worker is in exactly one of these three:
        self._fresh: set[int] = set()  # computes on the parameters of `version`
        self._late: set[int] = set()  # computes on older ones; its push will be dropped
        self._waiting: set[int] = set()  # pushed, or joined when no further gradient was needed

    @property
    def needed(self) -> int:
        """Gradients that the next update averages."""
        if self.accumulate:
            return self.replicas_to_aggregate
        here = self.replicas_to_aggregate
        if self.elastic:
            here = max(self._live_count(), self.elastic - len(self._ended))
        elif self._ended and self._workers is not None:
            here = self._workers - len(self._ended)
        return max(1, min(self.replicas_to_aggregate, here))

    def on(self, event: Event) -> list[Decision]:
        """Answer one event."""
        match event:
            case Joined(worker):
                return self._join(worker)
            case Pushed(worker, version, handle) if version < self.version:
                return self._drop(worker, version, handle)
            case Pushed(worker, version, handle, group):
                assert version == self.version, f"worker {worker} pushed version {version}, now {self.version}"
                return self._hold(worker, handle, group)
            case Left(worker, ended):
                return self._leave(worker, ended)
            case Refreshed(worker):
                assert worker in self._fresh or worker in self._late, f"worker {worker} was not idle"
                self._late.discard(worker)
                self._fresh.add(worker)
            case Drained(idle):
                return self._drain(idle)
            case Expired():
                pass  # it waits for nothing but gradients
        return []

    def dooms(self, version: int) -> bool:
        """Only gradients of the newest version are averaged."""
        return version < self.version

    def waiting_for(self) -> str:
        """Say how many gradients the next update lacks, who computes them, and whether enough workers are here."""
        gradients = "1 gradient" if self.needed == 1 else f"{self.needed} gradients"
        holds = f"holds {len(self._held)} ({names(set(self._held.values()))})" if self._held else "holds none"
        if len(set(self._group.values())) > 1:
            holds += f" of {len(set(self._group.values()))} optimizers"
        parts = [f"update {self.version + 1} needs {gradients}{self._shrunk()}", holds]
        if self._fresh:
            parts.append(f"{names(self._fresh)} {_are(self._fresh)} computing")
        if self._late:
            parts.append(f"{names(self._late)} {_are(self._late)} still busy with an older version")
        if shortage := self._shortage():
            parts.append(shortage)
        return ", ".join(parts)

    def _join(self, worker: int) -> list[Decision]:
        assert not self._is_live(worker), f"worker {worker} joined twice"
        self._waiting.add(worker)
        return self._release([worker]) if not self.accumulate or self._room() > 0 else []

    def _drop(self, worker: int, version: int, handle: int) -> list[Decision]:
        assert worker in self._fresh or worker in self._late, f"worker {worker} pushed but was not released"
        self._late.discard(worker)
        self._fresh.discard(worker)
        self._waiting.add(worker)
        return [Drop(handle, f"computed at version {version}, now {self.version}"), *self._release([worker])]

    def _hold(self, worker: int, handle: int, group: int) -> list[Decision]:
        assert worker in self._fresh, f"worker {worker} pushed but was not released at version {self.version}"
        self._fresh.remove(worker)
        self._waiting.add(worker)
        self._held[handle] = worker
        self._group[handle] = group
        if len(self._held) >= self.needed and (full := self._full()) is not None:
            return self._update(full)
        if self.accumulate and self._room() > 0:
            return self._release([worker])
        return self._step_apart()

    def _leave(self, worker: int, ended: bool) -> list[Decision]:
        assert self._is_live(worker), f"worker {worker} left but was not here"
        for group in (self._fresh, self._late, self._waiting):
            group.discard(worker)
        if ended:
            self._ended.add(worker)
        orphans = [handle for handle, owner in self._held.items() if owner == worker]
        decisions = self._forget(orphans, "its worker left before the update")
        # elastic, or its loop has ended: the one who left was the last that was awaited
        if len(self._held) >= self.needed and (full := self._full()) is not None:
            return decisions + self._update(full)
        if self.accumulate:  # its share of the round falls to those who wait
            decisions += self._release(sorted(self._waiting)[: max(0, self._room())])
        return decisions + self._step_apart()

    def _drain(self, idle: frozenset[int]) -> list[Decision]:
        """The rest of an epoch is fewer gradients than an update needs: no more will come."""
        groups = sorted(set(self._group.values()))
        if len(groups) > 1:
            return self._drop_fewest()
        return self._update(groups[0], idle) if groups else []

    def _full(self) -> int | None:
        """A group of which enough gradients are held."""
        counts = Counter(self._group.values())
        return min((group for group, count in counts.items() if count >= self.needed), default=None)

    def _step_apart(self) -> list[Decision]:
        """Where all wait, but not for the same group, no further push could make an update."""
        return self._drop_fewest() if not self._fresh and not self._late and len(set(self._group.values())) > 1 else []

    def _drop_fewest(self) -> list[Decision]:
        """A script that came back in the middle of a batch is one optimizer behind: the few go on to the next one."""
        counts = Counter(self._group.values())
        fewest = min(counts, key=lambda group: (counts[group], group))
        handles = [handle for handle, group in self._group.items() if group == fewest]
        workers = sorted({self._held[handle] for handle in handles} & self._waiting)
        return [
            *self._forget(handles, "its script is at another optimizer than the others"),
            *self._release(workers),
        ]

    def _forget(self, handles: Iterable[int], reason: str) -> list[Decision]:
        gone = list(handles)
        for handle in gone:
            del self._held[handle], self._group[handle]
        return [Drop(handle, reason) for handle in gone]

    def _update(self, group: int, idle: frozenset[int] = frozenset()) -> list[Decision]:
        """Those who compute are late from now on; those who are idle look at the new parameters first."""
        handles = tuple(handle for handle in self._held if self._group[handle] == group)
        others = [handle for handle in self._held if self._group[handle] != group]
        drops = self._forget(others, f"computed at version {self.version}, now {self.version + 1}")
        self._held.clear()
        self._group.clear()
        self.version += 1
        late = sorted(self._fresh - idle)
        self._late.update(late)
        self._fresh &= idle
        return [Apply(handles), *drops, *map(Recall, late), *self._release(sorted(self._waiting))]

    def _release(self, workers: Iterable[int]) -> list[Decision]:
        ready = list(workers)
        self._waiting.difference_update(ready)
        self._fresh.update(ready)
        return [Release(worker) for worker in ready]

    def _room(self) -> int:
        """Further gradients of this version that the next update could use; below 0 with backup workers."""
        return self.replicas_to_aggregate - len(self._held) - len(self._fresh)

    # Asked at every event: neither may build a set, or an event among 16,000 workers costs 16,000 steps.
    def _is_live(self, worker: int) -> bool:
        return worker in self._fresh or worker in self._late or worker in self._waiting

    def _live_count(self) -> int:
        return len(self._fresh) + len(self._late) + len(self._waiting)

    def _shrunk(self) -> str:
        if self.needed == self.replicas_to_aggregate:
            return ""
        if self.elastic:
            return f" (elastic: {self.replicas_to_aggregate} were asked for)"
        have = "loop has" if len(self._ended) == 1 else "loops have"
        return f" (the {have} ended of {names(self._ended)})"

    def _shortage(self) -> str:
        here = self._fresh | self._late | self._waiting
        enough = 1 if self.accumulate else self.needed
        if len(here) >= enough:
            return ""
        missing = enough - len(here)
        if not here:
            return f"and no worker is here: start {'a worker' if missing == 1 else f'{missing} workers'}"
        more = "another worker" if missing == 1 else f"{missing} more workers"
        return f"and only {names(here)} {_are(here)} here: start {more} or use --elastic"


def _are(workers: set[int]) -> str:
    return "is" if len(workers) == 1 else "are"
