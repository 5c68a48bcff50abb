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
import time
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from evener.errors import ProtocolError, TaskFailed
from evener.report import AnyReport, Progress, Status


class Assignment(msgspec.Struct, frozen=True, tag=True):
    """Who you are and what to do. `settings` are those of `evener.settings.Settings`, as a dictionary."""

    job: str
    index: int
    settings: dict[str, Any]
    run: str
    life: int = 1  # how often this task was started


class Addresses(msgspec.Struct, frozen=True, tag=True):
    """Where the ps tasks listen, in the order of their indices. Comes again when one has started anew."""

    ps: list[str]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the run early: save and leave."""

    reason: str


Order = Assignment | Addresses | Stop
Heard = TypeVar("Heard")
_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_reports: msgspec.msgpack.Decoder[AnyReport] = msgspec.msgpack.Decoder(AnyReport)
_LENGTH = struct.Struct("<I")
#: Most bytes of one message; a longer one is no order and no report.
LONGEST = 4 << 20


def log_of(assignment: Assignment) -> Path:
    """What a task writes for people to read later; relative to where it runs."""
    return Path(assignment.settings["logdir"]) / "logs" / f"{assignment.job}-{assignment.index}.log"


def framed(message: Order | AnyReport) -> bytes:
    """One message as it stands in the stream."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class MessageStream(Generic[Heard]):
    """Puts the messages of a stream together, in whatever pieces it comes."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Heard]) -> None:
        self._decoder, self._buffer = decoder, b""

    def feed(self, data: bytes) -> list[Heard]:
        """The messages that are whole now. Raises ProtocolError for what is none."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if end > LONGEST:
                raise ProtocolError(f"a message of {end} bytes on the line of a task.")
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(self._buffer[_LENGTH.size : end]))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ProtocolError(f"the line of a task brought what cannot be read: {error}.") from error
            self._buffer = self._buffer[end:]
        return messages


def orders() -> MessageStream[Order]:
    """For who takes orders."""
    return MessageStream(_orders)


def reports() -> MessageStream[AnyReport]:
    """For who hears reports."""
    return MessageStream(_reports)


class TaskEnd:
    """A task's end. A thread reads it, so that the launcher's death is seen whatever the task is doing."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._orders: queue.Queue[Order] = queue.Queue()
        self._addresses: list[str] = []
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
                elif isinstance(order, Addresses):
                    self._addresses = order.ps
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

    def addresses(self, timeout: float) -> list[str]:
        """Where the ps tasks listen now. Raises TaskFailed when they are not known in time, or the run is to stop."""
        waited = 0.0
        while not self._addresses:
            if self._stop:
                raise TaskFailed(f"the run was stopped at its start: {self._stop}.")
            if waited >= timeout:
                raise TaskFailed(f"the ps tasks did not all say within {timeout:g} s where they listen.")
            time.sleep(0.02)
            waited += 0.02
        return self._addresses

    def stop_asked(self) -> str:
        """A reason if the launcher wants the run to end early; empty otherwise."""
        return self._stop

    def report(self, report: AnyReport) -> None:
        """Send a report. Figures that nobody reads in time are dropped, events are not."""
        if isinstance(report, Status | Progress):
            self.offer(report)
            return
        data = framed(report)
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def offer(self, report: AnyReport) -> bool:
        """Send a report if nobody has to wait for that; whether it went.

        A signal's handler that reports may have interrupted a report of its own thread, which then holds the lock.
        """
        data = framed(report)
        if not self._lock.acquire(timeout=0.1):
            return False
        try:
            if not select.select([], [self._socket], [], 0)[1]:
                return False
            with contextlib.suppress(OSError):
                self._socket.sendall(data)
            return True
        finally:
            self._lock.release()


class LauncherEnd:
    """The launcher's end of the line to one task."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._stream = reports()
        self.open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    def order(self, order: Order) -> None:
        with contextlib.suppress(OSError):
            self._socket.setblocking(True)
            self._socket.sendall(framed(order))
        with contextlib.suppress(OSError):
            self._socket.setblocking(False)

    def reports(self) -> list[AnyReport]:
        """What has come; `open` turns False when the task's end is closed and all was read."""
        heard: list[AnyReport] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self._socket.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    self.open = False
                    break
                heard += self._stream.feed(data)
        return heard

    def close(self) -> None:
        self._socket.close()
        self.open = False
