"""A server's end of one connection: what has come by it so far, and what still waits to be sent."""

from __future__ import annotations

import contextlib
import errno
import mmap
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from evener.transport.channel import MAX_HEADER
from evener.transport.tcp_handshake import Credentials, Handshake, Untrusted
from evener.transport.tcp_seal import Sealing
from evener.transport.tcp_wire import MAX_OPENING, Greeting, Reader, Received, greeting, written, written_bytes

#: Bytes of words that wait to be sent to one peer, beside one payload; who has not read so many does not read.
WORDS = 1 << 20
#: The same before it is admitted: two of the longest headers.
STRANGERS_WORDS = 2 * MAX_HEADER + 4096
#: Most buffers in one call to the kernel.
IOV = 256

#: While a payload comes, we are woken for so many bytes, not for each packet.
WAKE_BYTES = 1 << 18

Buffers = list[bytes | memoryview]


class ConnectionOver(Exception):
    """A connection is over."""


class HostSilent(ConnectionOver):
    """A connection is over, and nobody said so: its host is silent."""


def push(sock: socket.socket, parts: Buffers) -> Buffers:
    """Send as much as the socket takes at once; the rest. Raises OSError when the connection broke."""
    while parts:
        try:
            sent = sock.sendmsg(parts[:IOV])
        except BlockingIOError:
            return parts
        parts = after(parts, sent)
    return parts


def wake_for(sock: socket.socket, missing: int, before: int) -> int:
    """Have the kernel wake us when a good part of what is missing is there; gives how many bytes (last: `before`)."""
    nbytes = min(missing, WAKE_BYTES) if missing > WAKE_BYTES // 8 else 1
    if nbytes != before:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes)
    return nbytes


def after(parts: Buffers, sent: int) -> Buffers:
    """What follows on the first so many bytes."""
    for at, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[at + 1 :]]
        sent -= len(part)
    return []


@dataclass(slots=True, eq=False)
class TcpLink:
    """One connection. `peer` is 0 before it has opened a link, and again when we no longer deal with it."""

    sock: socket.socket
    address: str  # of its host
    stage: Greeting | Handshake | Reader = field(default_factory=Greeting)
    peer: int = 0
    user: str = ""  # the task whose key it has proven, if it had to
    sizes: tuple[int, ...] = ()
    admitted: bool = False
    inbox: list[memoryview] = field(default_factory=list)
    sealing: Sealing | None = None
    broken: str = ""  # why nothing can be sent any more; what it said before may still be read
    _wakes_for: int = 1  # bytes
    _queue: deque[memoryview] = field(default_factory=deque)
    _queued: int = 0

    @property
    def busy(self) -> bool:
        """Does something wait to be sent?"""
        return bool(self._queue)

    def crowded(self, kind: int, header: bytes, payload: Sequence[memoryview]) -> bool:
        """Is there too much that it has not read to add this?"""
        size = written_bytes(kind, header, payload, sealed=self.sealing is not None)
        most = sum(self.sizes) + WORDS if self.admitted else STRANGERS_WORDS
        return self.busy and self._queued + size > most

    def send(self, kind: int, header: bytes, payload: Sequence[memoryview] = ()) -> None:
        """Send what the socket takes now, and keep a copy of the rest. Raises OSError when the connection broke."""
        for parts in written(kind, header, payload, self.sealing):
            self.say(parts)

    def say(self, parts: Buffers) -> None:
        for part in parts if self._queue else push(self.sock, parts):
            self._queue.append(memoryview(bytes(part)))
            self._queued += len(part)

    def flush(self) -> None:
        """Send more of what waits. Raises OSError when the connection broke."""
        while self._queue:
            try:
                sent = self.sock.sendmsg([self._queue[at] for at in range(min(len(self._queue), IOV))])
            except BlockingIOError:
                return
            self._queued -= sent
            while sent and sent >= len(self._queue[0]):
                sent -= len(self._queue.popleft())
            if sent:
                self._queue[0] = self._queue[0][sent:]

    def hear(self, credentials: Credentials | None) -> Received | None:
        """Read until there is a message, or nothing more.

        Raises:
            ValueError: it sent what no peer of ours would.
            Ended: it is gone.
        """
        while True:
            try:
                nbytes = self.sock.recv_into(self.stage.target())
            except BlockingIOError:
                self._wakes_for = wake_for(self.sock, self.stage.missing, self._wakes_for)
                return None
            except OSError as error:
                silent = error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
                raise (HostSilent if silent else ConnectionOver) from error
            if not nbytes:
                raise ConnectionOver
            stage = self.stage
            if isinstance(stage, Reader):
                if (message := stage.took(nbytes)) is not None:
                    self._wakes_for = wake_for(self.sock, 1, self._wakes_for)
                    return message
            elif isinstance(stage, Greeting):
                self._greet(stage, nbytes, credentials)
            else:
                self._shake_hands(stage, nbytes)

    def _greet(self, stage: Greeting, nbytes: int, credentials: Credentials | None) -> None:
        keys = stage.took(nbytes)
        if keys is None:
            return
        self._answer([greeting(keys=credentials is not None)])  # also to who is refused: so it knows why
        if keys != (credentials is not None):
            raise Untrusted("a greeting with keys, and here are none" if keys else "a greeting without keys")
        self.stage = Handshake(credentials) if credentials else Reader(None, MAX_OPENING)

    def _shake_hands(self, stage: Handshake, nbytes: int) -> None:
        try:
            stage.took(nbytes)
        finally:
            if answer := stage.outgoing():
                self._answer([answer])
        if stage.done:
            self.user, self.sealing = stage.task, stage.sealing
            self.stage = Reader(stage.opening, MAX_OPENING)

    def _answer(self, parts: Buffers) -> None:
        try:
            self.say(parts)
        except OSError as error:
            raise ConnectionOver from error

    def open(self, peer: int, sizes: tuple[int, ...]) -> None:
        """It has become a peer: it may say words."""
        self.peer, self.sizes = peer, sizes
        if isinstance(self.stage, Reader):
            self.stage.limit = MAX_HEADER

    def make_inbox(self) -> None:
        """Memory for payloads, one block for all ranges; the kernel gives it when the first one comes."""
        starts, at = [], 0
        for nbytes in self.sizes:
            starts.append(at)
            at += -(-nbytes // 64) * 64
        block = memoryview(mmap.mmap(-1, max(at, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.inbox = [block[start : start + nbytes] for start, nbytes in zip(starts, self.sizes, strict=True)]

    def accept_payload(self) -> None:
        if isinstance(self.stage, Reader) and self.admitted:
            self.stage.targets = self.inbox

    def refuse_payload(self, reason: str) -> None:
        if isinstance(self.stage, Reader):
            self.stage.targets, self.stage.refusal = None, reason

    def drain(self, into: bytearray) -> bool:
        """Throw away what comes from a peer that we are done with; is the connection over?"""
        for _ in range(16):  # then others have their turn
            try:
                if not self.sock.recv_into(into):
                    return True
            except BlockingIOError:
                return False
            except OSError:
                return True
        return False

    def hang_up(self) -> None:
        """Say that nothing more will come; it may go on."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, at_once: bool = False) -> None:
        """With `at_once` the kernel throws away what it has not sent, and tells the peer so."""
        with contextlib.suppress(OSError):
            if at_once:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.shutdown(socket.SHUT_RDWR)  # not left to `close`: a forked child may hold the socket open
        self.sock.close()
        self.forget_unsent()

    def forget_unsent(self) -> None:
        self._queue.clear()
        self._queued = 0
