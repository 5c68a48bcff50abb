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

#: Seconds that an actor may take to end its process.
CLOSE = 5.0


class RayTask:
    """A task that a thread brings to life, and listens to: `bringing`.

    Args:
        task: "ps:0".
        log: what it writes where it runs.
        kill: ends an actor: first its process, with all that this has started, or (False) whatever it is doing.
        watch: gets every report too.
    """

    def __init__(
        self, task: str, log: str, kill: Callable[[Any, bool], None], watch: Callable[[AnyReport], None]
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
        self._thread: threading.Thread | None = None

    def begin(self, life: Callable[[], None]) -> None:
        """`life` brings it to where it stands, in a thread."""
        self._thread = threading.Thread(target=life, name=f"{self.task} on Ray", daemon=True)
        self._thread.start()

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
            if self._how is not None:
                return
            self.killed = True
            actor, stands = self._actor, self._send is not None
        if actor is not None:
            self._kill(actor, stands)

    def close(self) -> None:
        self.kill()
        self._end.close()
        if self._thread is not None:
            self._thread.join(CLOSE)
            if self._thread.is_alive() and self._actor is not None:
                self._kill(self._actor, False)

    # --- for the thread

    def stands_as(self, actor: Any) -> None:
        """This actor is now the one that `kill` ends."""
        with self._lock:
            self._actor = actor
            killed = self.killed
        if killed:
            self._kill(actor, False)

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
        """It has ended so; its actor is not needed any longer, and leaves its place to the next one."""
        with self._lock:
            self._how, actor = how, self._actor
        if actor is not None:
            self._kill(actor, False)
        self._theirs.close()
