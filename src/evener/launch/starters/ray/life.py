"""One life of a task on a Ray cluster, as its launcher sees it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from evener.control import control
from evener.control.control import LauncherEnd, Order
from evener.report import AnyReport


class RayTask:
    """A task that a thread brings to life, and listens to: `bringing`.

    Args:
        task: "ps:0".
        log: what it writes where it runs.
        kill: ends an actor at once.
        watch: gets every report too.
    """

    def __init__(
        self, task: str, log: str, kill: Callable[[Any], None], watch: Callable[[AnyReport], None] = lambda report: None
    ) -> None:
        self.task, self.host, self.log = task, "the Ray cluster", log
        self.pid = 0  # not of this machine
        self.killed = False
        self._how: str | None = None
        self._line, self._theirs = socket.socketpair()
        self._end = LauncherEnd(self._line)
        self._kill, self._actor, self._watch = kill, None, watch
        self._lock = threading.Lock()
        self._send: Callable[[bytes], object] | None = None
        self._unsent: list[bytes] = []

    # --- for the launcher

    @property
    def open(self) -> bool:
        return self._end.open

    def fileno(self) -> int:
        return self._end.fileno()

    def pending(self) -> bool:
        return False

    def order(self, order: Order) -> None:
        with self._lock:
            self._unsent.append(control.framed(order))
            self._pass_on()

    def reports(self) -> list[AnyReport]:
        heard = self._end.reports() if self.open else []
        for report in heard:
            self._watch(report)
        return heard

    def ended(self) -> str | None:
        return None if self.open else self._how

    def kill(self) -> None:
        with self._lock:
            self.killed = self.killed or self._how is None
            actor = self._actor
        if actor is not None and self._how is None:
            self._kill(actor)

    def close(self) -> None:
        """The thread leaves when it hears of its actor's end."""
        self.kill()
        self._end.close()

    # --- for the thread

    def stands_as(self, actor: Any) -> None:
        """This actor is now the one that `kill` ends."""
        with self._lock:
            self._actor = actor
            killed = self.killed
        if killed:
            self._kill(actor)

    def stands(self, host: str, send: Callable[[bytes], object]) -> None:
        """It stands on this machine: `send` brings it orders, from now on and those that wait."""
        with self._lock:
            self.host, self._send = host, send
            self._pass_on()

    def _pass_on(self) -> None:
        if self._send is not None:
            for data in self._unsent:
                self._send(data)
            self._unsent = []

    def heard(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the launcher has closed it
            self._theirs.sendall(data)

    def tell(self, *reports: AnyReport) -> None:
        self.heard(b"".join(map(control.framed, reports)))

    def over(self, how: str) -> None:
        """It has ended so."""
        with self._lock:
            self._how = how
        self._theirs.close()
