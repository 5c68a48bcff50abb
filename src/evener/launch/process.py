"""A task that was started, as its launcher sees it: here a process of this machine, elsewhere one of another."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from evener.launch.control import Assignment, LauncherEnd, Order
from evener.launch.environment import task_environment
from evener.report import AnyReport
from evener.settings import make
from evener.transport.channel import Source


class Running(Source, Protocol):
    """One life of one task. Ready to `receive` (as a `Source`) when reports have come or it has ended."""

    host: str  # where it runs,
    log: str  # and what it writes there
    pid: int  # of this machine; 0 for a task of another

    @property
    def open(self) -> bool:
        """Whether reports may still come; False at the end of its life."""
        ...

    def order(self, order: Order) -> None:
        """Never fails: a task that is gone shows it by its end."""
        ...

    def reports(self) -> list[AnyReport]:
        """What it has told since; never blocks."""
        ...

    def ended(self) -> str | None:
        """None while it lives; then "" if it ended as it should, else how: "was killed by SIGKILL"."""
        ...

    def kill(self) -> None:
        """Let it end at once, without waiting for that; its last reports can still be read."""
        ...

    def close(self) -> None:
        """Keep nothing of it. Waits until it is dead, if that is in our hand."""
        ...


class Starter(Protocol):
    """Starts tasks somewhere."""

    def start(self, assignment: Assignment) -> Running: ...

    def close(self) -> None:
        """The run is over."""
        ...


def log_of(assignment: Assignment) -> Path:
    """What a task writes for people to read later; relative to where it runs."""
    return Path(assignment.settings["logdir"]) / "logs" / f"{assignment.job}-{assignment.index}.log"


class Process:
    """A task in a process of this machine, and in a session of its own: Ctrl-C reaches its launcher alone."""

    def __init__(self, assignment: Assignment) -> None:
        """Raises OSError when the log cannot be written."""
        self.host, self.log = socket.gethostname(), str(log_of(assignment))
        mine, theirs = socket.socketpair()
        name = f"{assignment.job}:{assignment.index}"
        with Path(self.log).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "evener.launch.task", str(theirs.fileno()), name],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=task_environment(make(assignment.settings), assignment.job),
            )  # fmt: skip
        theirs.close()
        self.pid = self._process.pid
        self._end = LauncherEnd(mine)
        self._end.order(assignment)

    @property
    def open(self) -> bool:
        return self._end.open

    def fileno(self) -> int:
        return self._end.fileno()

    def pending(self) -> bool:
        return False

    def order(self, order: Order) -> None:
        self._end.order(order)

    def reports(self) -> list[AnyReport]:
        return self._end.reports() if self.open else []

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        if code == 0:
            return ""
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._end.close()


class Processes:
    """Starts tasks on this machine."""

    def start(self, assignment: Assignment) -> Process:
        return Process(assignment)

    def close(self) -> None:
        """Each process was closed by whoever started it."""
