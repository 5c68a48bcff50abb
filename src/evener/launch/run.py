"""All tasks of a run: starts them, watches, restarts and ends them.

The launcher trains nothing and imports no PyTorch. Where a task runs is its starter's business: `process` starts it on
this machine, `remote` on a standing server. A line to each carries orders and reports, and its end is the other side's
death.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass

from evener.control.control import Addresses, Assignment, Stop
from evener.control.interrupts import Interrupts, collected
from evener.control.proc import Stopped
from evener.control.told import TOLD
from evener.errors import Preempted, RunFailed
from evener.launch.fate import Again, Budget, Ended, Fails, Standing, Without, fate
from evener.launch.starters.process import Processes, Running, Starter
from evener.report import AnyReport, Failed, Leaves, Line, Progress, Published
from evener.settings import Settings, as_options
from evener.transport.channel import wait
from evener.view.texts import failure_block

#: Seconds that tasks have to leave once the run has ended as it should.
ORDERLY = 2.5
#: Seconds that tasks have to say why they end when no leader is left to end the run.
LAST_WORDS = 0.5
#: Seconds that a run may take to end after a task has left it, before that task is taken to be needed again.
SECOND_THOUGHTS = 2.0
#: Errors that tasks make because another one failed: never the first cause if there is another.
SECONDARY = ("PeerGone", "Unavailable", "TaskFailed", "ServerLost")


@dataclass(slots=True, eq=False)
class Task:
    """One task and its present life."""

    job: str
    index: int
    budget: Budget
    running: Running | None = None
    lives: int = 0
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


class LocalRun:
    """One run of several tasks.

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
        self._settings, self._hear, self._say, self._clock = settings, hear, say, clock
        self._starter = starter or Processes(tell=say)
        self._run = secrets.token_hex(8)
        jobs = [("ps", settings.ps), ("worker", settings.processes)]
        #: Who says where it listens: the ps tasks, or a pipeline's first stage.
        self._publishers = settings.ps or 1
        restarts, now = settings.max_restarts, clock()
        self.tasks = [Task(job, i, Budget(restarts, now)) for job, count in jobs for i in range(count)]
        self._reached = 0  # global steps
        self._addresses: dict[int, str] = {}
        self._stopped = Stopped(hear, clock)
        self._first: Failed | None = None
        self._left = ""  # a task that was told to leave, and with it the run
        self._done = False  # the leader ended as it should
        self._deadline: float | None = None  # when the rest is killed, once the run is being cut short

    def run(self) -> str:
        """Run to the end; returns "" or the name of the signal that cut it short.

        Raises:
            RunFailed: a task failed.
        Preempted: a task was told to leave that the others cannot do without.
        """
        with collected() as interrupts:
            try:
                for task in sorted(self.tasks, key=lambda task: task.job == "ps"):  # these take longest to import
                    self._start(task)
                while not all(task.over for task in self.tasks):
                    self._turn(interrupts)
            finally:
                try:
                    self._kill_rest()
                finally:
                    self._starter.close()
        if failure := self.failure(excused=self._done or bool(self._left or interrupts.numbers)):
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
        task.lives += 1
        task.born, task.reached = self._clock(), self._reached
        assignment = Assignment(task.job, task.index, as_options(self._settings), self._run, task.lives)
        if task.running is not None:
            task.running.close()
        task.running = self._starter.start(assignment)
        task.restart_at, task.unsure = None, False
        if len(self._addresses) == self._publishers:
            task.running.order(self._all_addresses())

    def _all_addresses(self) -> Addresses:
        return Addresses([self._addresses[index] for index in sorted(self._addresses)])

    # --- watching

    def _turn(self, interrupts: Interrupts) -> None:
        self._listen(0.1)
        for task in self.tasks:
            self._look_after(task)
        here = {task.name: task.running.pid for task in self.tasks if task.running is not None and not task.over}
        self._stopped.look({name: pid for name, pid in here.items() if pid})
        if interrupts.numbers and self._deadline is None:
            self._say("stopping: the parameters are being saved; press Ctrl-C again to end at once")
            self._cut_short("interrupted", self._settings.grace)
        if len(interrupts.numbers) > 1 or (self._deadline is not None and self._clock() > self._deadline):
            self._kill_rest()

    def _listen(self, seconds: float) -> None:
        """Hear what tasks report; wait up to so long for the first of it."""
        ears = {id(task.running): task for task in self.tasks if task.running is not None and task.running.open}
        for source in wait([task.running for task in ears.values() if task.running is not None], seconds):
            self._read(ears[id(source)], source)

    def _read(self, task: Task, running: Running) -> None:
        for report in running.reports():
            match report:
                case Published(name, address):
                    self._publish(int(name.partition(":")[2]), address)
                case Progress():
                    self._reached = max(self._reached, report.global_step)
                case Leaves():
                    self._left = report.task
                    self._cut_short(f"{report.task} {TOLD}", self._settings.grace)
                case Failed():
                    task.failed = report
                    self._first = self._first or report
            self._hear(report)

    def _publish(self, index: int, address: str) -> None:
        self._addresses[index] = address
        if len(self._addresses) == self._publishers:
            for task in self.tasks:
                if task.running is not None:
                    task.running.order(self._all_addresses())

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
        if task.running is None or task.running.open or (how := task.running.ended()) is None:
            return  # it lives, or its last words are not read yet
        self._ended(task, how, task.running.log)

    def _ended(self, task: Task, how: str, log: str) -> None:
        task.over = True
        if not how and task is self.tasks[0] and self._deadline is None:
            # The run is done. Who was started again too late to join must not wait for it, nor make it fail.
            self._done = True
            self._deadline = self._clock() + ORDERLY
        if not how and task.unsure and not self._done and self._deadline is None:
            self._again(task, SECOND_THOUGHTS)
        now = self._clock()
        ended = Ended(how, task.failed is not None, now - task.born, self._reached - task.reached)
        match fate(ended, self._standing(task), task.budget, now):
            case Again(seconds, told):
                self._restart(task, seconds)
                self._hear(Line(task.name, told))
            case Without(told):
                task.died = True
                self._hear(Line(task.name, told))
            case Fails(told):
                if told:
                    task.died = True
                    task.failed = Failed(task.name, "TaskFailed", f"{task.name} {told}.", fix=f"look at {log}.")
                    self._first = self._first or task.failed
                    self._hear(task.failed)
                self._cut_short(f"{task.name} failed", min(self._settings.grace, ORDERLY * 2))

    def _standing(self, task: Task) -> Standing:
        return Standing(
            done=self._done,
            ending=self._deadline is not None,
            may_restart=self._settings.ps > 0,  # a stage cannot come back alone
            spares=task.job == "worker" and self._can_spare(task),
        )

    def _restart(self, task: Task, delay: float) -> None:
        self._again(task, delay)
        for other in self.tasks if task.job == "ps" else []:
            if not other.over:
                other.unsure = True
            elif not other.died and other.failed is None:  # it had left at the end of the run, which is not the end
                self._again(other, delay)

    def _again(self, task: Task, delay: float) -> None:
        """Start a task that ended once more, unless the run is over by then."""
        task.over, task.restart_at = False, self._clock() + delay
        if task.job == "ps":
            self._addresses.pop(task.index, None)

    def _can_spare(self, dead: Task) -> bool:
        """Whether the run goes on without this worker."""
        settings = self._settings
        if not settings.ps:
            return False
        alive = sum(task.job == "worker" and not task.over for task in self.tasks if task is not dead)
        return alive >= settings.terms.fewest

    # --- ending

    def _cut_short(self, reason: str, seconds: float) -> None:
        """Let the servers save and everybody leave; whoever does not is killed after `seconds`."""
        if self._deadline is not None:
            return
        self._deadline = self._clock() + seconds
        leader = self.tasks[0]
        if leader.running is not None and leader.running.open and not leader.over and 0 in self._addresses:
            leader.running.order(Stop(reason))
        else:  # nobody is there to save; who has just died is still to be heard of
            self._deadline = self._clock() + (LAST_WORDS if 0 in self._addresses else 0.0)

    def _kill_rest(self) -> None:
        lives = [task.running for task in self.tasks if task.running is not None]
        for running in lives:
            if running.ended() is None:
                running.kill()
        deadline = self._clock() + LAST_WORDS
        while any(running.open for running in lives) and self._clock() < deadline:
            self._listen(0.1)
        for running in lives:
            running.close()
        for task in self.tasks:
            task.over = True
