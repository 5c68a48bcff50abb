"""Towers on this machine: none can go on without the others, so they end together and start again together."""

from __future__ import annotations

from collections.abc import Callable

from evener.control.control import Stop
from evener.control.interrupts import Interrupts
from evener.control.told import LEFT
from evener.launch.fate import SOON, Budget
from evener.launch.run import SECONDARY, LocalRun, Task
from evener.report import AnyReport, Failed, Line
from evener.settings import Settings

#: Seconds that the others have to notice that a tower is gone, save and end.
GRACE = 10.0


class TowersRun(LocalRun):
    """One run of several towers, a task `worker:I` each. Arguments as for `LocalRun`."""

    def __init__(
        self,
        settings: Settings,
        *,
        hear: Callable[[AnyReport], None],
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(settings, hear=hear, say=say, clock=clock)
        self._budget = Budget(settings.max_restarts, clock())
        self._free = False  # they end because one was told to leave
        self._broken_at: float | None = None  # since when towers end that should not
        self._interrupts = Interrupts()

    def _publish(self, index: int, address: str) -> None:
        """Where tower 0 waits for the others."""
        self._addresses[index] = address
        for task in self.tasks:
            if task.running is not None:
                task.running.order(self._all_addresses())

    def _turn(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        super()._turn(interrupts)
        if self._broken_at is None:
            return
        if all(task.over for task in self.tasks) or self._clock() > self._broken_at + GRACE:
            self._kill_rest()
            self._broken_at = None
            self._again_or_fail()

    def _ended(self, task: Task, how: str, log: str) -> None:
        secondary = task.failed is not None and task.failed.kind in SECONDARY
        broken = bool(how) and (task.failed is None or secondary)
        if not broken or self._done or self._deadline is not None:
            super()._ended(task, how, log)
            return
        task.over = True
        self._free = self._free or how == LEFT
        if task.failed is None:
            task.died = True
            task.failed = Failed(task.name, "TaskFailed", f"{task.name} {how}.", fix=f"look at {log}.")
        if self._broken_at is None:
            self._broken_at = self._clock()
            for other in self.tasks:  # who waits for it need not find out by itself
                if other.running is not None and not other.over:
                    other.running.order(Stop(task.failed.what.rstrip(".")))

    def _again_or_fail(self) -> None:
        """All have ended because one did. Start them anew if that was no error of theirs."""
        causes = [task for task in self.tasks if task.failed and task.failed.kind not in SECONDARY]
        died = [task for task in self.tasks if task.died] or [task for task in self.tasks if task.failed]
        delay = None if causes or self._interrupts.numbers else self._delay()
        if delay is None:
            for task in [] if causes else died:
                self._first = self._first or task.failed
            for task in causes or died:
                assert task.failed is not None
                self._hear(task.failed)
            self._deadline = self._clock()
            return
        cost = "at no cost" if self._free else f"({self._budget.left} restarts left)"
        for task in died:
            assert task.failed is not None
            what = task.failed.what.rstrip(".")
            self._hear(Line(task.name, f"{what}; all towers start again in {delay:g} s {cost}"))
        self._free = False
        self._addresses.clear()
        self._first = None
        for task in self.tasks:
            task.failed, task.died, task.over, task.running = None, False, False, None
            task.restart_at = self._clock() + delay

    def _delay(self) -> float | None:
        """Seconds until they may start again; None: not again."""
        if self._free:
            return SOON
        now, first = self._clock(), self.tasks[0]
        return self._budget.spend(now=now, lived=now - first.born, progress=self._reached - first.reached)
