"""Towers on this machine: none can go on without the others, so they end together and start again together."""

from __future__ import annotations

from collections.abc import Callable

from evener.control.control import Stop
from evener.control.interrupts import Interrupts
from evener.control.told import LEFT
from evener.launch.crew import SECONDARY, Crew, CrewTask
from evener.launch.fate import SOON, Budget, Ended, Fails, Standing, fate
from evener.launch.starters.process import Starter
from evener.report import AnyReport, Line
from evener.settings import Settings

#: Seconds that the others have to notice that a tower is gone, save and end.
GRACE = 10.0


class TowersRun:
    """One run of several towers, a task `worker:I` each. Arguments as for `Crew`."""

    def __init__(
        self,
        settings: Settings,
        *,
        hear: Callable[[AnyReport], None],
        say: Callable[[str], None],
        clock: Callable[[], float],
        starter: Starter | None = None,
    ) -> None:
        self.crew = Crew(settings, hear=hear, say=say, clock=clock, starter=starter)
        self._budget = Budget(settings.max_restarts, clock())
        self._free = False  # they end because one was told to leave
        self._broken_at: float | None = None  # since when towers end that should not

    def run(self) -> str:
        """Run to the end; returns and raises as `Crew.run`."""
        return self.crew.run(self)

    def turned(self, interrupts: Interrupts) -> None:
        """Once all have ended because one did, they start anew if they may."""
        crew = self.crew
        if self._broken_at is None:
            return
        if all(task.over for task in crew.tasks) or crew.clock() > self._broken_at + GRACE:
            crew.kill_rest()
            self._broken_at = None
            self._again_or_fail(interrupted=bool(interrupts.numbers))

    def ended(self, task: CrewTask, how: str) -> None:
        """Let the others end too, since none can go on without it."""
        crew = self.crew
        secondary = task.failed is not None and task.failed.kind in SECONDARY
        broken = bool(how) and (task.failed is None or secondary)
        if not broken or crew.done or crew.deadline is not None:
            self._ended_for_good(task, how)
            return
        self._free = self._free or how == LEFT
        failed = task.failed or crew.died(task, how)
        if self._broken_at is None:
            self._broken_at = crew.clock()
            for other in crew.tasks:  # who waits for it need not find out by itself
                if other.running is not None and not other.over:
                    other.running.order(Stop(failed.what.rstrip(".")))

    def _ended_for_good(self, task: CrewTask, how: str) -> None:
        """It is over, it is being ended, or this tower has failed by itself."""
        crew = self.crew
        standing = Standing(done=crew.done, ending=crew.deadline is not None, may_restart=False, spares=False)
        end = fate(Ended(how, task.failed is not None, 0.0, 0), standing, task.budget, crew.clock())
        if isinstance(end, Fails):
            crew.fails(task, end.told)

    def _again_or_fail(self, *, interrupted: bool) -> None:
        """All have ended because one did. Start them anew if that was no error of theirs."""
        crew = self.crew
        causes = [task for task in crew.tasks if task.failed and task.failed.kind not in SECONDARY]
        died = [task for task in crew.tasks if task.died] or [task for task in crew.tasks if task.failed]
        delay = None if causes or interrupted else self._delay()
        if delay is None:
            for task in causes or died:
                assert task.failed is not None
                crew.hear(task.failed)
            crew.deadline = crew.clock()
            return
        cost = "at no cost" if self._free else f"({self._budget.left} restarts left)"
        for task in died:
            assert task.failed is not None
            what = task.failed.what.rstrip(".")
            crew.hear(Line(task.name, f"{what}; all towers start again in {delay:g} s {cost}"))
        self._free = False
        crew.addresses.clear()
        crew.first = None
        for task in crew.tasks:
            task.failed, task.died, task.over, task.running = None, False, False, None
            task.restart_at = crew.clock() + delay

    def _delay(self) -> float | None:
        """Seconds until they may start again; None: not again."""
        if self._free:
            return SOON
        crew = self.crew
        now, first = crew.clock(), crew.tasks[0]
        return self._budget.spend(now=now, lived=now - first.born, progress=crew.reached - first.reached)
