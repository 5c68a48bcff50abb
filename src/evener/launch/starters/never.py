"""A task that could not be started: a life that is over before it begins, and says why."""

from __future__ import annotations

from evener.control.control import Order
from evener.report import AnyReport


class NotStarted:
    """Its launcher treats it as one that has ended: it may start it again, or go on without it.

    Args:
        host, log: where it should have been, and written.
        why: "No such file or directory: 'python'".
    """

    pid, open = 0, False

    def __init__(self, host: str, log: str, why: str) -> None:
        self.host, self.log = host, log
        self._how = f"cannot start: {why.rstrip('.')}"

    def fileno(self) -> int:
        raise AssertionError("nothing is heard of a task that was not started")

    def pending(self) -> bool:
        return False

    def order(self, order: Order) -> None: ...

    def reports(self) -> list[AnyReport]:
        return []

    def ended(self) -> str:
        return self._how

    def kill(self) -> None: ...

    def close(self) -> None: ...
