"""A launcher on the cluster: a run that was detached goes on when the process that has started it is gone.

The actor is Ray's to keep: where its node is lost it comes back elsewhere, and continues the logdir.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evener.control import control
from evener.control.interrupts import Interrupts
from evener.errors import EvenerError
from evener.report import AnyReport, Failed, Line, Progress, Status

#: Seconds that a run which is over can still be asked how it went; and that `hear` waits for something to tell.
LINGER, PATIENCE = 3600.0, 20.0
#: Lines and other events that are kept for who attaches.
KEPT = 2000


@dataclass(frozen=True, slots=True)
class RunEnded:
    """How a run has ended."""

    cut_short: bool = False
    failed: Failed | None = None
    block: str = ""  # what is shown of it


@dataclass(frozen=True, slots=True)
class News:
    """What has been reported, up to `until`; as it stands in a stream."""

    until: int
    reports: bytes
    over: RunEnded | None = None


class Journal:
    """The last events of a run, and the newest figures of each task.

    >>> journal = Journal()
    >>> journal.add(Line("ps:0", "one")); journal.add(Status("ps:0", "waiting")); journal.add(Status("ps:0", "serving"))
    >>> [type(report).__name__ for report in journal.since(0)], len(journal.since(1)), journal.since(3)
    (['Line', 'Status'], 1, [])
    """

    def __init__(self) -> None:
        self.until = 0
        self._events: deque[tuple[int, AnyReport]] = deque(maxlen=KEPT)
        self._figures: dict[str, tuple[int, AnyReport]] = {}

    def add(self, report: AnyReport) -> None:
        self.until += 1
        if isinstance(report, Status | Progress):
            self._figures[getattr(report, "task", "run")] = (self.until, report)
        else:
            self._events.append((self.until, report))

    def since(self, number: int) -> list[AnyReport]:
        """What came after the first `number` reports."""
        kept = sorted([*self._events, *self._figures.values()], key=lambda pair: pair[0])
        return [report for at, report in kept if at > number]


class Watcher:
    """Whom a run reports to, and who may end it. Two threads use it."""

    def __init__(self) -> None:
        self.interrupts = Interrupts()
        self._journal, self._lock = Journal(), threading.Lock()

    @property
    def until(self) -> int:
        """How many reports there were."""
        return self._journal.until

    def hear(self, report: AnyReport) -> None:
        with self._lock:
            self._journal.add(report)

    def say(self, text: str) -> None:
        self.hear(Line("run", text))

    def news(self, since: int, over: RunEnded | None) -> News:
        with self._lock:
            return News(self.until, b"".join(map(control.framed, self._journal.since(since))), over)


class RunHost:
    """The actor.

    Args:
        options: those of `Settings`.
        train: trains until the run is over; True: it was cut short.
        end: ends this actor for good.
    """

    def __init__(
        self, options: dict[str, Any], train: Callable[[dict[str, Any], Watcher], bool], end: Callable[[], None]
    ) -> None:
        self._options, self._train, self._end = options, train, end
        self._watcher = Watcher()
        self._over: RunEnded | None = None
        threading.Thread(target=self._run, name="run", daemon=True).start()

    def _run(self) -> None:
        try:
            over = RunEnded(self._train(self._options, self._watcher))
        except EvenerError as error:
            failed = Failed("run", type(error).__name__, error.what, error.why, error.fix)
            over = RunEnded(failed=failed, block=getattr(error, "block", ""))
        except Exception as error:  # whatever it is, who attaches is to know of it
            over = RunEnded(failed=Failed("run", type(error).__name__, str(error)))
        self._over = over
        time.sleep(LINGER)
        self._end()

    async def about(self) -> dict[str, Any]:
        """The options of the run."""
        return self._options

    async def hear(self, since: int) -> News:
        """What was reported after the first `since` reports; waits for something."""
        waited = 0.0
        while waited < PATIENCE and self._over is None and self._watcher.until <= since:
            await asyncio.sleep(0.1)
            waited += 0.1
        over = self._over  # asked before the rest is read: nothing comes after it
        return self._watcher.news(since, over)

    async def stop(self) -> None:
        """As Ctrl-C does: the parameters are saved, and the run ends. A second time: it ends at once."""
        self._watcher.interrupts.numbers.append(signal.SIGINT)
