"""Tasks that have said nothing since they were started: nobody else could say for whom a run waits then."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evener.report import Reporter, Status

#: Seconds that a task may take to its first words, and between two times that they are missed.
SILENT, PERIOD = 10.0, 1.0


class Unheard:
    """Tells of such tasks, of each as long as it is silent."""

    def __init__(self, report: Reporter, clock: Callable[[], float]) -> None:
        self._report, self._clock = report, clock
        self._last = clock()

    def look(self, born: Mapping[str, float]) -> None:
        """Look once a second at tasks that were not heard of. `born`: by name, when they were started."""
        now = self._clock()
        if now - self._last < PERIOD:
            return
        self._last = now
        for task, since in born.items():
            if now - since >= SILENT:
                seconds = f"({now - since:.0f} s)"
                what = f"its first words {seconds}: it still imports, or its program is not at prepare() yet"
                self._report(Status(task, "starting", waiting_for=what))
