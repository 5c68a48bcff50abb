"""A wait that is not silent: when it is told, when it is given up, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from evener.errors import TaskFailed, Unavailable
from evener.report import Reporter, Status


@dataclass(slots=True)
class Waiting:
    """One wait of a task, from now on. Who waits calls `still` again and again.

    Args:
        who: "worker:1".
        patience: seconds.
        silent: seconds that need not be told.
        bounded: tell how long it will be at most.
        stopped: a reason to wait no longer, once there is one.
    """

    who: str
    patience: float
    report: Reporter
    clock: Callable[[], float]
    silent: float = -1.0
    bounded: bool = True
    stopped: Callable[[], str] = lambda: ""
    since: float = field(init=False)
    told: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.since = self.clock()

    @property
    def seconds(self) -> float:
        return self.clock() - self.since

    def still(self, what: str, fix: str) -> None:
        """It has not come yet. `what`: "ps:0 to answer"; `fix`: what a person can do about it.

        Raises:
            TaskFailed: the wait is to end.
            Unavailable: it was too long.
        """
        seconds = self.seconds
        if reason := self.stopped():
            raise TaskFailed(f"{self.who} was stopped while it waited for {what}: {reason}.")
        if seconds > self.patience:
            raise Unavailable(f"{self.who} has waited {seconds:.0f} s for {what}.", fix=fix)
        if seconds > self.silent:
            limit = f" of {self.patience:.0f} s" if self.bounded else ""
            self.told = True
            self.report(Status(self.who, "waiting", waiting_for=f"{what} ({seconds:.0f} s{limit})"))

    def over(self) -> None:
        """What was waited for has come: who was told of the wait is told of that."""
        if self.told:
            self.report(Status(self.who, "training"))
