"""The tasks of a run, whatever joins them: they start, are heard, and end.

What becomes of the run when one of them ends is for its `Rules`: `run` has those of ps tasks and workers, and of the
stages of a pipeline, `towers` has those of towers.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from evener.control.control import Addresses, Assignment, Stop
from evener.control.interrupts import Interrupts, collected
from evener.control.proc import Stopped
from evener.control.told import TOLD
from evener.errors import Preempted, RunFailed
from evener.launch.fate import Budget
from evener.launch.starters.process import Processes, Running, Starter
from evener.launch.unheard import Unheard
from evener.report import AnyReport, Failed, Leaves, Progress, Published, Status
from evener.settings import Settings, as_options
from evener.transport.channel import wait
from evener.view.texts import failure_block

#: Seconds that tasks have to leave once the run has ended as it should.
ORDERLY = 2.5
#: Seconds that tasks have to say why they end when no leader is left to end the run.
LAST_WORDS = 0.5
#: Errors that tasks make because another one failed: never the first cause if there is another.
SECONDARY = ("PeerGone", "Unavailable", "TaskFailed", "ServerLost")


@dataclass(slots=True, eq=False)
class CrewTask:
    """One task and its present life."""

    job: str
    index: int
    budget: Budget
    running: Running | None = None
    lives: int = 0
    heard: bool = False  # in this life
    left: bool = False  # in this life its program has ended, as it said itself
    born: float = 0.0  # when this life began,
    reached: int = 0  # and the furthest step that the run had reached then
    restart_at: float | None = None
    failed: Failed | None = None
    died: bool = False  # without a word, and not by our hand
    over: bool = False
    unsure: bool = False  # a ps task died since this one was started: ending well may have been too early

    @property
    def name(self) -> str:
        return f"{self.job}:{self.index}"


class Rules(Protocol):
    """What becomes of a run."""

    def ended(self, task: CrewTask, how: str) -> None:
        """A task's life is over. `how`: as `Running.ended` says it."""
        ...

    def turned(self, interrupts: Interrupts) -> None:
        """All that has come by now was seen to."""
        ...


class Crew:
    """The tasks of one run, and how far it is.

    Args:
        hear: gets every report of every task.
        say: gets lines of the launcher itself.
        starter: starts the tasks; on this machine if None.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        hear: Callable[[AnyReport], None],
        say: Callable[[str], None],
        clock: Callable[[], float],
        starter: Starter | None = None,
    ) -> None:
        self.settings, self.hear, self.clock = settings, hear, clock
        self._say, self._starter = say, starter or Processes(tell=say)
        self._run = secrets.token_hex(8)
        jobs = [("ps", settings.ps), ("worker", settings.processes)]
        #: Who says where it listens: the ps tasks, a pipeline's first stage, or tower 0.
        self._publishers = settings.ps or 1
        restarts, now = settings.max_restarts, clock()
        self.tasks = [CrewTask(job, i, Budget(restarts, now)) for job, count in jobs for i in range(count)]
        self.reached = 0  # global steps
        self.addresses: dict[int, str] = {}  # of those who listen, by index
        self._stopped, self._unheard = Stopped(hear, clock), Unheard(hear, clock)
        self.first: Failed | None = None
        self._going: set[str] = set()  # hosts whose tasks were told that it goes away
        self._left = ""  # a task that was told to leave, and with it the run
        self.done = False  # the leader ended as it should
        self.deadline: float | None = None  # when the rest is killed, once the run is being cut short

    def run(self, rules: Rules, asked: Interrupts | None = None) -> str:
        """Run to the end; returns "" or the name of the signal that cut it short.

        Args:
            asked: gets the signals of this process; another thread may ask here that the run ends.

        Raises:
            RunFailed: a task failed.
            Preempted: a task was told to leave that the others cannot do without.
        """
        with collected(asked) as interrupts:
            try:
                for task in sorted(self.tasks, key=lambda task: task.job == "ps"):  # these take longest to import
                    self.start(task)
                while not all(task.over for task in self.tasks):
                    self.turn(rules, interrupts)
            finally:
                try:
                    self.kill_rest()
                finally:
                    self._starter.close()
        if failure := self.failure(excused=self.done or bool(self._left or interrupts.numbers)):
            running = next(task.running for task in self.tasks if task.name == failure.task)
            host, log = (running.host, running.log) if running else ("", "")
            raise RunFailed(
                f"{failure.task} failed: {failure.what}",
                why=failure.why,
                fix=failure.fix,
                kind=failure.kind,
                block=failure_block(failure, host, log),
            )
        if self._left and not interrupts.numbers:
            raise Preempted(f"{self._left} {TOLD}: all is saved, and the same command with --logdir continues")
        return signal.Signals(interrupts.numbers[0]).name if interrupts.numbers and not self.done else ""

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
        return self.first if self.first in reports else next(iter(reports), None)

    # --- starting

    def start(self, task: CrewTask) -> None:
        task.lives += 1
        task.born, task.reached = self.clock(), self.reached
        assignment = Assignment(task.job, task.index, as_options(self.settings), self._run, task.lives)
        if task.running is not None:
            task.running.close()
        task.running = self._starter.start(assignment)
        task.restart_at, task.unsure, task.heard, task.left = None, False, False, False
        if len(self.addresses) == self._publishers:
            task.running.order(self._all_addresses())

    def _all_addresses(self) -> Addresses:
        return Addresses([self.addresses[index] for index in sorted(self.addresses)])

    # --- watching

    def turn(self, rules: Rules, interrupts: Interrupts) -> None:
        self._listen(0.1)
        for task in self.tasks:
            self._look_after(task, rules)
        here = {task.name: task.running.pid for task in self.tasks if task.running is not None and not task.over}
        self._stopped.look({name: pid for name, pid in here.items() if pid})
        going = [task for task in self.tasks if not task.over and task.restart_at is None]
        self._unheard.look({task.name: task.born for task in going if not task.heard})
        if interrupts.numbers and self.deadline is None:
            self._say("stopping: the parameters are being saved; press Ctrl-C again to end at once")
            self.cut_short("interrupted", self.settings.grace)
        if len(interrupts.numbers) > 1 or (self.deadline is not None and self.clock() > self.deadline):
            self.kill_rest()
        rules.turned(interrupts)

    def _listen(self, seconds: float) -> None:
        """Hear what tasks report; wait up to so long for the first of it."""
        ears = {id(task.running): task for task in self.tasks if task.running is not None and task.running.open}
        for source in wait([task.running for task in ears.values() if task.running is not None], seconds):
            self._read(ears[id(source)], source)

    def _read(self, task: CrewTask, running: Running) -> None:
        for report in running.reports():
            task.heard = True
            match report:
                case Published(name, address):
                    self._publish(int(name.partition(":")[2]), address)
                case Progress():
                    self.reached = max(self.reached, report.global_step)
                case Leaves():
                    self._leaves(task, report)
                case Status(state="done"):
                    task.left = True
                case Failed():
                    task.failed = report
                    self.first = self.first or report
            self.hear(report)

    def _leaves(self, task: CrewTask, report: Leaves) -> None:
        """End the run, unless some of its tasks are on machines that stay: those go on, and this one comes back."""
        if report.machine:
            self._going.add(task.running.host if task.running is not None else "")
            lives = [other.running for other in self.tasks if not other.over and other.running is not None]
            if any(running.host not in self._going for running in lives):
                return
        self._left = report.task
        self.cut_short(f"{report.task} {TOLD}", self.settings.grace)

    def _publish(self, index: int, address: str) -> None:
        self.addresses[index] = address
        if len(self.addresses) == self._publishers:
            for task in self.tasks:
                if task.running is not None:
                    task.running.order(self._all_addresses())

    def _look_after(self, task: CrewTask, rules: Rules) -> None:
        """Notice a task's end; start it again if it was killed and may."""
        if task.over:
            return
        if task.restart_at is not None:
            if self.deadline is not None:
                task.over = True
            elif self.clock() >= task.restart_at:
                self.start(task)
            return
        if task.running is None or task.running.open or (how := task.running.ended()) is None:
            return  # it lives, or its last words are not read yet
        if not how and task.job == "worker" and self.settings.script and not task.left and self.deadline is None:
            how = "ended with status 0 before its program was over, as by os._exit"
        task.over = True
        if not how and task is self.tasks[0] and self.deadline is None:
            # The run is done. Who was started again too late to join must not wait for it, nor make it fail.
            self.done = True
            self.deadline = self.clock() + ORDERLY
        rules.ended(task, how)

    # --- ending

    def died(self, task: CrewTask, how: str) -> Failed:
        """It ended without a word; what is to be said of it."""
        log = task.running.log if task.running is not None else ""
        task.died = True
        task.failed = Failed(task.name, "TaskFailed", f"{task.name} {how}.", fix=f"look at {log}.")
        return task.failed

    def fails(self, task: CrewTask, told: str) -> None:
        """The run ends because of this task. `told`: why; empty if it has said so itself."""
        if told:
            failed = self.died(task, told)
            self.first = self.first or failed
            self.hear(failed)
        self.cut_short(f"{task.name} failed", min(self.settings.grace, ORDERLY * 2))

    def cut_short(self, reason: str, seconds: float) -> None:
        """Let the servers save and everybody leave; whoever does not is killed after `seconds`."""
        if self.deadline is not None:
            return
        self.deadline = self.clock() + seconds
        leader = self.tasks[0]
        if leader.running is not None and leader.running.open and not leader.over and 0 in self.addresses:
            leader.running.order(Stop(reason))
        else:  # nobody is there to save; who has just died is still to be heard of
            self.deadline = self.clock() + (LAST_WORDS if 0 in self.addresses else 0.0)

    def kill_rest(self) -> None:
        lives = [task.running for task in self.tasks if task.running is not None]
        for running in lives:
            if running.ended() is None:
                running.kill()
        deadline = self.clock() + LAST_WORDS
        while any(running.open for running in lives) and self.clock() < deadline:
            self._listen(0.1)
        for running in lives:
            running.close()
        for task in self.tasks:
            task.over = True
