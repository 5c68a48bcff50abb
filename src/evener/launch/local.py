"""All tasks of a run on this machine: starts them, watches, restarts and ends them.

The launcher trains nothing and imports no PyTorch. Its tasks are processes of their own sessions, so that Ctrl-C
reaches the launcher alone; a socket pair to each carries orders and reports, and its end is the other side's death.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from evener.errors import RunFailed
from evener.launch.control import Addresses, Assignment, LauncherEnd, Stop
from evener.launch.view import failure_block
from evener.report import AnyReport, Failed, Line, Published
from evener.settings import Settings

#: Seconds that tasks have to save and leave when the run is cut short.
ORDERLY = 2.5
#: Seconds that tasks have to say why they end when no leader is left to end the run.
LAST_WORDS = 0.5
#: Errors that tasks make because another one failed: never the first cause if there is another.
SECONDARY = ("PeerGone", "Unavailable", "TaskFailed")


@dataclass(slots=True, eq=False)
class Task:
    """One task and its present process."""

    job: str
    index: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    end: LauncherEnd | None = None
    restarts: int = 0
    restart_at: float | None = None
    failed: Failed | None = None
    died: bool = False  # without a word, and not by our hand
    over: bool = False

    @property
    def name(self) -> str:
        return f"{self.job}:{self.index}"


@dataclass(slots=True)
class Interrupts:
    """Signals that asked the launcher to end."""

    numbers: list[int] = field(default_factory=list)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.numbers.append(number)


class LocalRun:
    """One run of several tasks on this machine.

    Args:
        hear: gets every report of every task.
        say: gets lines of the launcher itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        hear: Callable[[AnyReport], None],
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._hear, self._say, self._clock = settings, hear, say, clock
        self._run = secrets.token_hex(8)
        logs = Path(settings.logdir) / "logs"
        jobs = [("ps", settings.ps), ("worker", settings.workers)]
        self.tasks = [Task(job, i, logs / f"{job}-{i}.log") for job, count in jobs for i in range(count)]
        self._addresses: dict[int, str] = {}
        self._first: Failed | None = None
        self._done = False  # the leader ended as it should
        self._deadline: float | None = None  # when the rest is killed, once the run is being cut short

    def run(self) -> str:
        """Run to the end; returns "" or the name of the signal that cut it short.

        Raises:
            RunFailed: a task failed.
        """
        with _interrupts() as interrupts:
            try:
                for task in self.tasks:
                    self._start(task)
                while not all(task.over for task in self.tasks):
                    self._turn(interrupts)
            finally:
                self._kill_rest()
        if failure := self.failure(excused=self._done or bool(interrupts.numbers)):
            log = next(str(task.log) for task in self.tasks if task.name == failure.task)
            raise RunFailed(
                f"{failure.task} failed: {failure.what}",
                why=failure.why,
                fix=failure.fix,
                kind=failure.kind,
                block=failure_block(failure, socket.gethostname(), log),
            )
        return signal.Signals(interrupts.numbers[0]).name if interrupts.numbers and not self._done else ""

    def failure(self, *, excused: bool) -> Failed | None:
        """The first cause: the first failure that is not the consequence of another task's.

        Args:
            excused: the run ended as it should or was told to end, so that tasks may lose each other.
        """
        failures = [task for task in self.tasks if task.failed]
        causes = [task for task in failures if task.failed and task.failed.kind not in SECONDARY]
        if not excused:
            causes = causes or [task for task in failures if task.died] or failures
        reports = [task.failed for task in causes]
        return self._first if self._first in reports else next(iter(reports), None)

    # --- starting

    def _start(self, task: Task) -> None:
        mine, theirs = socket.socketpair()
        with task.log.open("ab") as log:
            task.process = subprocess.Popen(
                [sys.executable, "-m", "evener.launch.task", str(theirs.fileno()), task.name],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        theirs.close()
        task.end = LauncherEnd(mine)
        task.restart_at = None
        task.end.order(Assignment(task.job, task.index, asdict(self._settings), self._run))
        if len(self._addresses) == self._settings.ps:
            task.end.order(self._all_addresses())

    def _all_addresses(self) -> Addresses:
        return Addresses([self._addresses[index] for index in sorted(self._addresses)])

    # --- watching

    def _turn(self, interrupts: Interrupts) -> None:
        ends = {task.end.fileno(): task for task in self.tasks if task.end is not None}
        poll = select.poll()
        for fd in ends:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(100):
            self._read(ends[fd])
        for task in self.tasks:
            self._look_after(task)
        if interrupts.numbers and self._deadline is None:
            self._say("stopping: the parameters are being saved; press Ctrl-C again to end at once")
            self._cut_short("interrupted", ORDERLY)
        if len(interrupts.numbers) > 1 or (self._deadline is not None and self._clock() > self._deadline):
            self._kill_rest()

    def _read(self, task: Task) -> None:
        assert task.end is not None
        for report in task.end.reports():
            match report:
                case Published(name, address):
                    self._publish(int(name.partition(":")[2]), address)
                case Failed():
                    task.failed = report
                    self._first = self._first or report
            self._hear(report)
        if not task.end.open:
            task.end.close()
            task.end = None

    def _publish(self, index: int, address: str) -> None:
        self._addresses[index] = address
        if len(self._addresses) == self._settings.ps:
            for task in self.tasks:
                if task.end is not None and (task.job == "worker" or task.index > 0):
                    task.end.order(self._all_addresses())

    def _look_after(self, task: Task) -> None:
        """Notice a task's end; start it again if it was killed and may."""
        if task.over:
            return
        if task.restart_at is not None:
            if self._deadline is not None:
                task.over = True
            elif self._clock() >= task.restart_at:
                self._start(task)
            return
        if task.process is None or task.process.poll() is None or task.end is not None:
            return  # it lives, or its last words are not read yet
        self._ended(task, task.process.returncode)

    def _ended(self, task: Task, code: int) -> None:
        task.over = True
        if code == 0 and task is self.tasks[0] and self._deadline is None:
            # The run is done. Who was started again too late to join must not wait for it, nor make it fail.
            self._done = True
            self._deadline = self._clock() + ORDERLY
        if code == 0 or self._done:
            return
        if task.failed is None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            restarts = self._settings.max_restarts if task.job == "worker" and self._deadline is None else 0
            if task.restarts < restarts:
                self._restart(task, how)
                return
            task.died = True
            limit = f" and was restarted {task.restarts} times" if task.restarts else ""
            task.failed = Failed(task.name, "TaskFailed", f"{task.name} {how}{limit}.", fix=f"look at {task.log}.")
            self._first = self._first or task.failed
            self._hear(task.failed)
        self._cut_short(f"{task.name} failed", ORDERLY * 2)

    def _restart(self, task: Task, how: str) -> None:
        delay = min(0.25 * 2**task.restarts, 10.0)
        task.restarts += 1
        task.over = False
        task.restart_at = self._clock() + delay
        left = self._settings.max_restarts - task.restarts
        self._hear(Line(task.name, f"{how}; it starts again in {delay:g} s ({left} restarts left)"))

    # --- ending

    def _cut_short(self, reason: str, seconds: float) -> None:
        """Let the servers save and everybody leave; whoever does not is killed after `seconds`."""
        if self._deadline is not None:
            return
        self._deadline = self._clock() + seconds
        leader = self.tasks[0]
        if leader.end is not None and not leader.over and 0 in self._addresses:
            leader.end.order(Stop(reason))
        else:  # nobody is there to save; who has just died is still to be heard of
            self._deadline = self._clock() + (LAST_WORDS if 0 in self._addresses else 0.0)

    def _kill_rest(self) -> None:
        for task in self.tasks:
            if task.process is not None and task.process.poll() is None:
                task.process.kill()
                task.process.wait()
            if task.end is not None:
                self._read(task)
            if task.end is not None:
                task.end.close()
                task.end = None
            task.over = True


@contextmanager
def _interrupts() -> Iterator[Interrupts]:
    """Collect SIGINT and SIGTERM instead of dying of them. Outside the main thread signals stay as they are."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def process_seconds() -> float:
    """Seconds since this process was started by its command; 0.0 where the system does not tell."""
    try:
        stat = Path("/proc/self/stat").read_text()
        ticks = float(stat.rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
