"""What the system tells of processes, and does for them.

Tasks that were stopped (SIGSTOP, Ctrl-Z, a debugger) keep their links open, so only the system can say that they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
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


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Linux only, and besides the control line: a task that is stopped (SIGSTOP) cannot see that line's end.

    Args:
        number: the signal that the kernel gives this process then. SIGCONT wakes one that has something to do yet.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def session_of(leader: int) -> list[int]:
    """The other processes of a session; none where the system does not tell."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # it has just ended
        if int(session) == leader and int(entry.name) != leader and state != "Z":
            members.append(int(entry.name))
    return members


def end_session(leader: int) -> None:
    """Kill what a task leaves: the processes that its recipe has started, and that are of its session still.

    Call it while the number of the task can be nobody else's: it is dead and nobody has waited for it, or dies now.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    for _ in range(10):  # those in groups of their own; what they fork meanwhile comes in the next round
        if not (members := session_of(leader)):
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def guard(task: int, launcher: int) -> None:
    """Be the process that waits for the end of either, and then ends the task's whole session; it does not return.

    For tasks that no fork server looks after. The kernel kills the task itself when its launcher dies, too soon for it
    to end what it has started.
    """
    poll = select.poll()
    with contextlib.suppress(OSError):  # it is gone already
        for pid in (task, launcher):
            poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.poll()
    for pid in {task, *session_of(task)} - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def process_seconds() -> float:
    """Seconds since this process was started by its command; 0.0 where the system does not tell."""
    try:
        stat = Path("/proc/self/stat").read_text()
        ticks = float(stat.rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
