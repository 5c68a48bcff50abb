"""A task that was started, as its launcher sees it: here a process of this machine, elsewhere one of another."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from evener.cluster.environment import task_environment
from evener.control.control import Assignment, LauncherEnd, Order, log_of
from evener.control.proc import end_session
from evener.control.told import LEFT
from evener.errors import PREEMPTED
from evener.launch.starters.forked import ForkServer, possible
from evener.launch.starters.never import NotStarted
from evener.report import AnyReport
from evener.settings import make
from evener.transport.channel import Source

log = logging.getLogger(__name__)


class Running(Source, Protocol):
    """One life of one task. Ready to `receive` (as a `Source`) when reports have come or it has ended."""

    host: str  # where it runs,
    log: str  # and what it writes there

    @property
    def pid(self) -> int:
        """Of this machine; 0 for a task of another, and for one that is not born yet."""
        ...

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

    def start(self, assignment: Assignment) -> Running:
        """Never fails for want of a process: that is a life which has ended, and says so."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Child(Protocol):
    """A process of this machine: `subprocess.Popen`, or a fork."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


class Process:
    """A task in a process of this machine, and in a session of its own: Ctrl-C reaches its launcher alone."""

    def __init__(self, assignment: Assignment, child: Child, line: socket.socket) -> None:
        self.host, self.log = socket.gethostname(), str(log_of(assignment))
        self._child = child
        self._end = LauncherEnd(line)
        self._end.order(assignment)

    @property
    def pid(self) -> int:
        return self._child.pid

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
        code = self._child.poll()
        if code is None:
            return None
        if code == 0:
            return ""
        if code == PREEMPTED:
            return LEFT
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def kill(self) -> None:
        self._child.kill()

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self._end.close()


class Processes:
    """Starts tasks on this machine: off a fork server where that is possible, else one by one."""

    def __init__(self, *, forks: bool | None = None, tell: Callable[[str], None] = log.warning) -> None:
        self.forks = possible() if forks is None else forks
        self._tell = tell
        self._server: ForkServer | None = None

    def start(self, assignment: Assignment) -> Running:
        log = str(log_of(assignment))
        try:
            return self._start(assignment)
        except OSError as error:  # the system makes no more processes, or Python is not where it was
            return NotStarted(socket.gethostname(), log, str(error))

    def _start(self, assignment: Assignment) -> Process:
        name, settings = f"{assignment.job}:{assignment.index}", make(assignment.settings)
        environment = task_environment(settings, assignment.job, assignment.index)
        with self._log(log_of(assignment)) as log:
            mine, theirs = socket.socketpair()
            with theirs, contextlib.ExitStack() as unless_started:
                unless_started.callback(mine.close)
                child = self._child(name, environment, theirs.fileno(), log.fileno())
                unless_started.pop_all()
        return Process(assignment, child, mine)

    def _log(self, path: Path) -> BinaryIO:
        """Where a task writes for later: nowhere, and told, where a file cannot be opened. Training needs none."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # the logdir may have been deleted since
            return path.open("ab")
        except OSError as error:
            self._tell(f"{path} cannot be opened ({error.strerror}): what its task writes there is lost")
            return open(os.devnull, "ab")

    def _child(self, name: str, environment: dict[str, str], line: int, log: int) -> Child:
        if self.forks:
            with contextlib.suppress(OSError):  # it has just ended, or there is too much to tell it
                return self._living_server(environment, log).fork(name, environment, line, log)
        return _spawn(name, environment, line, log)

    def _living_server(self, environment: dict[str, str], log: int) -> ForkServer:
        if self._server is not None and not self._server.alive:
            self._server.close()
            self._server = None
        self._server = self._server or ForkServer(environment, log)
        return self._server

    def close(self) -> None:
        """Each process was closed by whoever started it."""
        if self._server is not None:
            self._server.close()
            self._server = None


class Spawned:
    """A task that was started by itself. What it leaves in its session ends before its number is free."""

    def __init__(self, started: subprocess.Popen[bytes]) -> None:
        self._started = started

    @property
    def pid(self) -> int:
        return self._started.pid

    def poll(self) -> int | None:
        return self._end(os.WNOHANG)

    def wait(self) -> int:
        self._end(0)
        return self._started.wait()

    def kill(self) -> None:
        self._started.kill()

    def _end(self, options: int) -> int | None:
        """Its status once it is dead."""
        if self._started.returncode is None:
            with contextlib.suppress(
                ChildProcessError
            ):  # the system waits for children itself, where SIGCHLD is ignored
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | options) is None:
                    return None
            end_session(self.pid)
        return self._started.poll()


def _spawn(name: str, environment: dict[str, str], line: int, log: int) -> Child:
    return Spawned(subprocess.Popen(
        [sys.executable, "-P", "-m", "evener.task.main", str(line), name],
        pass_fds=[line], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment,
    ))  # fmt: skip
