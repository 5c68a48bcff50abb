"""Ps tasks and workers, or the stages of a pipeline: what becomes of their run when one of them ends.

The launcher trains nothing and imports no PyTorch. Where a task runs is its starter's business: `process` starts it on
this machine, `remote` on a standing server. A line to each carries orders and reports, and its end is the other side's
death.
"""

from __future__ import annotations

from collections.abc import Callable

from evener.control.interrupts import Interrupts
from evener.launch.crew import Crew, CrewTask
from evener.launch.fate import Again, Ended, Fails, Standing, Without, fate
from evener.launch.starters.process import Starter
from evener.report import AnyReport, Line
from evener.settings import Settings

#: Seconds that a run may take to end after a task has left it, before that task is taken to be needed again.
SECOND_THOUGHTS = 2.0


class LocalRun:
    """One run of such tasks. Arguments as for `Crew`."""

    def __init__(
        self,
        settings: Settings,
        *,
        hear: Callable[[AnyReport], None],
        say: Callable[[str], None],
        clock: Callable[[], float],
        starter: Starter | None = None,
    ) -> None:
        self._settings = settings
        self.crew = Crew(settings, hear=hear, say=say, clock=clock, starter=starter)

    def run(self, asked: Interrupts | None = None) -> str:
        """Run to the end; takes, returns and raises as `Crew.run`."""
        return self.crew.run(self, asked)

    def turned(self, interrupts: Interrupts) -> None:
        """Each task's end is seen to when it comes."""

    def ended(self, task: CrewTask, how: str) -> None:
        """Start it again if it was killed and may."""
        crew, now = self.crew, self.crew.clock()
        if not how and task.unsure and not crew.done and crew.deadline is None:
            self._again(task, SECOND_THOUGHTS)
        ended = Ended(how, task.failed is not None, now - task.born, crew.reached - task.reached)
        match fate(ended, self._standing(task), task.budget, now):
            case Again(seconds, told):
                self._restart(task, seconds)
                crew.hear(Line(task.name, told))
            case Without(told):
                task.died = True
                crew.hear(Line(task.name, told))
            case Fails(told):
                crew.fails(task, told)

    def _standing(self, task: CrewTask) -> Standing:
        return Standing(
            done=self.crew.done,
            ending=self.crew.deadline is not None,
            may_restart=self._settings.ps > 0,  # a stage cannot come back alone
            spares=task.job == "worker" and self._can_spare(task),
        )

    def _restart(self, task: CrewTask, delay: float) -> None:
        self._again(task, delay)
        for other in self.crew.tasks if task.job == "ps" else []:
            if not other.over:
                other.unsure = True
            elif not other.died and other.failed is None:  # it had left at the end of the run, which is not the end
                self._again(other, delay)

    def _again(self, task: CrewTask, delay: float) -> None:
        """Start a task that ended once more, unless the run is over by then."""
        task.over, task.restart_at = False, self.crew.clock() + delay
        if task.job == "ps":
            self.crew.addresses.pop(task.index, None)

    def _can_spare(self, dead: CrewTask) -> bool:
        """Whether the run goes on without this worker."""
        settings = self._settings
        if not settings.ps:
            return False
        alive = sum(task.job == "worker" and not task.over for task in self.crew.tasks if task is not dead)
        return alive >= settings.terms.fewest
