"""The line between a launcher and one of its tasks: messages over a socket pair (length, then msgpack).

Its end is news too: when the launcher is gone, by whatever death, the task ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import struct
import threading
from typing import Any

import msgspec

from evener.errors import TaskFailed
from evener.report import AnyReport, Progress, Status


class Assignment(msgspec.Struct, frozen=True, tag=True):
    """Who you are and what to do. `settings` are those of `evener.settings.Settings`, as a dictionary."""

    job: str
    index: int
    settings: dict[str, Any]
    run: str


class Addresses(msgspec.Struct, frozen=True, tag=True):
    """Where the ps tasks listen, in the order of their indices; for ps tasks themselves: of ps:0 alone."""

    ps: list[str]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the run early: save and leave."""

    reason: str


Order = Assignment | Addresses | Stop
_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_reports = msgspec.msgpack.Decoder(AnyReport)
_LENGTH = struct.Struct("<I")


def _framed(message: Order | AnyReport) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class TaskEnd:
    """A task's end. A thread reads it, so that the launcher's death is seen whatever the task is doing."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._orders: queue.Queue[Order] = queue.Queue()
        self._stop = ""
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            stream = self._socket.makefile("rb")
            while len(length := stream.read(_LENGTH.size)) == _LENGTH.size:
                order = _orders.decode(stream.read(*_LENGTH.unpack(length)))
                if isinstance(order, Stop):
                    self._stop = order.reason
                else:
                    self._orders.put(order)
        os._exit(70)  # the launcher is gone: nobody is left to report to, and nothing may stay behind

    def next(self, timeout: float) -> Order:
        """The next order. Raises TaskFailed when none comes in time, or when the run is to stop."""
        waited = 0.0
        while waited < timeout:
            if self._stop:
                raise TaskFailed(f"the run was stopped at its start: {self._stop}.")
            try:
                return self._orders.get(timeout=0.1)
            except queue.Empty:
                waited += 0.1
        raise TaskFailed(f"the launcher gave no order within {timeout:g} s.")

    def stop_asked(self) -> str:
        """A reason if the launcher wants the run to end early; empty otherwise."""
        return self._stop

    def report(self, report: AnyReport) -> None:
        """Send a report. Figures that nobody reads in time are dropped, events are not."""
        data = _framed(report)
        with self._lock:
            if isinstance(report, Status | Progress) and not select.select([], [self._socket], [], 0)[1]:
                return
            with contextlib.suppress(OSError):
                self._socket.sendall(data)


class LauncherEnd:
    """The launcher's end of the line to one task."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._buffer = b""
        self.open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    def order(self, order: Order) -> None:
        with contextlib.suppress(OSError):
            self._socket.setblocking(True)
            self._socket.sendall(_framed(order))
        with contextlib.suppress(OSError):
            self._socket.setblocking(False)

    def reports(self) -> list[AnyReport]:
        """What has come; `open` turns False when the task's end is closed and all was read."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self._socket.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    self.open = False
                    break
                self._buffer += data
        reports: list[AnyReport] = []
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            reports.append(_reports.decode(self._buffer[_LENGTH.size : end]))
            self._buffer = self._buffer[end:]
        return reports

    def close(self) -> None:
        self._socket.close()
