"""Tells what a worker is busy with when that takes long: data that block cannot say so themselves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from evener.report import Reporter, Status

log = logging.getLogger(__name__)

#: Seconds between two looks.
PERIOD = 0.5


class Watch:
    """One worker's present occupation, and since when. A thread tells it once it has lasted too long.

    Args:
        task: the worker's name, "worker:0".
        clock: seconds, monotonic.
    """

    def __init__(self, task: str, report: Reporter, clock: Callable[[], float]) -> None:
        self._task, self._report, self._clock = task, report, clock
        self._now: tuple[str, float, float] = ("", 0.0, 0.0)  # one tuple: another thread reads it
        self._told = ""
        self._over = threading.Event()

    def busy(self, what: str, limit: float) -> None:
        """From now on it is busy with this, which is told after `limit` seconds."""
        self._now = (what, self._clock(), limit)

    def idle(self) -> None:
        """Whoever is waited for now tells that himself."""
        self._now = ("", 0.0, 0.0)

    def look(self) -> None:
        """Tell of an occupation that lasts."""
        what, since, limit = self._now
        seconds = self._clock() - since
        if not what or seconds < limit:
            self._told = self._told if what else ""
            return
        self._report(Status(self._task, "waiting", waiting_for=f"{what} ({seconds:.0f} s)"))
        if what != self._told:
            self._told = what
            log.warning("%s waits for %s (%.0f s)", self._task, what, seconds)

    def start(self) -> None:
        threading.Thread(target=self._look_often, name="watch", daemon=True).start()

    def _look_often(self) -> None:
        while not self._over.wait(PERIOD):
            self.look()

    def stop(self) -> None:
        self._over.set()
