"""What the system tells of processes, and does for them.

Tasks that were stopped (SIGSTOP, Ctrl-Z, a debugger) keep their links open, so only the system can say that they are.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from evener.report import Reporter, Status

#: Seconds between two looks.
PERIOD = 1.0


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped now; False where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


class Stopped:
    """Tells of stopped tasks, of each as long as it is stopped."""

    def __init__(self, report: Reporter, clock: Callable[[], float]) -> None:
        self._report, self._clock = report, clock
        self._since: dict[str, float] = {}
        self._last = clock()

    def look(self, pids: dict[str, int]) -> None:
        """Look at tasks, by name, once a second."""
        now = self._clock()
        if now - self._last < PERIOD:
            return
        self._last = now
        for task, pid in pids.items():
            if not is_stopped(pid):
                if self._since.pop(task, None) is not None:
                    self._report(Status(task, "training" if task.startswith("worker") else "serving"))
                continue
            since = self._since.setdefault(task, now)
            what = f"SIGCONT: process {pid} is stopped (kill -CONT {pid} lets it go on)"
            self._report(Status(task, "waiting", waiting_for=f"{what} ({now - since:.0f} s)"))


def die_with_parent() -> None:
    """Linux only, and besides the control line: a task that is stopped (SIGSTOP) cannot see that line's end."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def process_seconds() -> float:
    """Seconds since this process was started by its command; 0.0 where the system does not tell."""
    try:
        stat = Path("/proc/self/stat").read_text()
        ticks = float(stat.rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
