"""Which waits a person is shown: those that last. A wait of a moment is how a cluster works, and no news."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec.structs import replace

from evener.report import AnyReport, Progress, Status

#: Seconds that a wait must last to be shown.
LASTING = 2.0


class LastingWaits:
    """Takes out of the reports of a run what waits have not lasted.

    The run waits when no step has been made for so long, whatever its sentence says meanwhile: a sync run waits for
    another gradient many times a second. A task tells of its wait again and again, and of its next step after it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._step: int | None = None
        self._stepped = math.inf  # when that step was first heard of
        self._tasks: dict[str, float] = {}  # since when a task waits

    def seen(self, report: AnyReport) -> AnyReport | None:
        """What is to be shown of a report; None: nothing new."""
        match report:
            case Progress():
                return self._of_run(report)
            case Status(task, "waiting"):
                since = self._tasks.setdefault(task, self._clock())
                return report if self._clock() - since >= LASTING else None
            case Status(task):
                self._tasks.pop(task, None)
        return report

    def _of_run(self, progress: Progress) -> Progress:
        if progress.global_step != self._step:
            self._step, self._stepped = progress.global_step, self._clock()
        lasts = self._clock() - self._stepped >= LASTING
        return progress if lasts or not progress.waiting_for else replace(progress, waiting_for="")
