"""What both ends of a link between hosts share: the socket with its settings, and the frames that travel on it.

A message is one ZeroMQ message. Its first frame is a small preamble and the header; the payload follows, each range cut
into frames of at most 256 KB. A larger one would look like death on a slow line, since no heartbeat passes it; and with
keys one frame is encrypted while the one before it travels: 11 % less CPU than with frames of 1 MB for 1.6 MB there
and back, and the same without keys (two network namespaces, a busy machine). Both ends know the sizes of all frames
from the sizes of the link's ranges, so everything else is refused.
"""

from __future__ import annotations

import itertools
import select
import struct
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import zmq

from evener.errors import ConfigError
from evener.transport.channel import MAX_HEADER, MAX_PARTS

CHUNK = 1 << 18
PREAMBLE = struct.Struct("<4sBBI")  # magic, version, kind, bytes of the header that follows in the same frame
MAGIC, VERSION = b"EVZQ", 2

#: Kinds of messages. OPEN is a worker's first, its header the sizes it offers; BYE a server's last, with its reason.
OPEN, PLAIN, PAYLOAD, BYE = range(4)

#: A close waits this long for what was sent just before: an answer that says why the link is closed should arrive.
LINGER_MILLISECONDS = 250

#: On both ends, as measured to work (silent death is noticed after 6 s). A high-water mark counts messages, not frames.
SETTINGS: dict[zmq.SocketOption, int | bytes] = {
    zmq.LINGER: 0,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 5000,
    zmq.HEARTBEAT_TTL: 5000,
    zmq.HANDSHAKE_IVL: 5000,
    zmq.CONNECT_TIMEOUT: 5000,
    zmq.RCVHWM: 16,
    zmq.SNDHWM: 16,
    zmq.MAXMSGSIZE: CHUNK + (1 << 12),  # of one frame, which costs memory before we know whose it is; CURVE adds 33
}


def heartbeats(seconds: float) -> dict[zmq.SocketOption, int | bytes]:
    """Settings by which a peer that says nothing for so long counts as gone, on both ends."""
    interval = min(1000, int(seconds * 250))
    silence = int(seconds * 1000) - interval
    return {zmq.HEARTBEAT_IVL: interval, zmq.HEARTBEAT_TIMEOUT: silence, zmq.HEARTBEAT_TTL: silence}


def check_library(version: tuple[int, ...], *, curve: bool) -> None:
    """Refuse a ZeroMQ whose links nobody should trust. Raises ConfigError."""
    told = ".".join(map(str, version))
    if version < (4, 3, 5):
        raise ConfigError(
            f"libzmq {told} is too old.",
            why="older ones let strangers crash a server (CVE-2019-13132, CVE-2020-15166); tested: 4.3.5.",
            fix="install a newer pyzmq: its wheels bring their own libzmq.",
        )
    if not curve:
        raise ConfigError(
            f"libzmq {told} was built without CURVE.",
            why="evener encrypts with it what leaves this machine.",
            fix="install pyzmq from a wheel, or libzmq with libsodium.",
        )


class Wire:
    """One ZeroMQ socket, its monitor (who connected, who is gone) and one descriptor that stands for both.

    It has its own context, so that `close` returns when no thread, port or memory of it is left. One that is forgotten
    is closed too: left to the garbage collector, a context may wait for ever for sockets that are garbage beside it.

    ZeroMQ's descriptors are edge-triggered: they speak when something changed, and any call on the socket may swallow
    that. Hence the order everywhere: ask `readable`, and only if it says no, wait for the descriptor, then ask again.
    """

    def __init__(self, kind: int, settings: Mapping[zmq.SocketOption, int | bytes], *, events: int) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(kind)
        every = SETTINGS | dict(settings)
        for option, value in every.items():
            self.socket.setsockopt(option, value)
        #: Why a connection ended, as far as can be known: ZeroMQ does not tell a broken one from a silent one.
        silence = (int(every[zmq.HEARTBEAT_IVL]) + int(every[zmq.HEARTBEAT_TIMEOUT])) / 1000
        self.broke = f"broke, or nothing came by it for {silence:g} s"
        self._monitor = self.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # with a limit, a full monitor would stop the I/O thread
        self.socket.monitor("inproc://monitor", events)
        self._monitor.connect("inproc://monitor")
        self._epoll = select.epoll()
        for socket in (self.socket, self._monitor):
            self._epoll.register(socket.fileno(), select.EPOLLIN)
        self._forgotten = weakref.finalize(self, _close, self._epoll, self.socket, self._monitor)
        self._forgotten.atexit = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def readable(self) -> bool:
        """Is there a message, or news of the monitor? Asks ZeroMQ itself, not the descriptor."""
        return bool((self._state(self.socket) | self._state(self._monitor)) & zmq.POLLIN)

    def has_message(self) -> bool:
        return bool(self._state(self.socket) & zmq.POLLIN)

    @staticmethod
    def _state(socket: zmq.Socket[bytes]) -> int:
        return 0 if socket.closed else int(socket.get(zmq.EVENTS))

    def news(self) -> Iterator[tuple[int, int]]:
        """(event, value) of all that the monitor saw since the last call."""
        while self._state(self._monitor) & zmq.POLLIN:
            event, value = struct.unpack("=Hi", self._monitor.recv_multipart()[0])
            yield event, value

    def sleep(self, until: float) -> bool:
        """Wait for the descriptor until a moment of `time.monotonic`; False when that has passed."""
        remaining = min(until - time.monotonic(), 1e6)  # its limit is a little over two million
        if remaining <= 0:
            return False
        self._epoll.poll(remaining)
        return True

    def close(self, linger: int = 0) -> None:
        """Returns when all is gone; waits up to `linger` milliseconds for what was sent and is still on its way."""
        if self._forgotten.detach():
            _close(self._epoll, self.socket, self._monitor, linger)


def _close(epoll: select.epoll, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], linger: int = 0) -> None:
    epoll.close()
    socket.disable_monitor()
    monitor.close(0)
    socket.close(linger)
    socket.context.term()


@dataclass(frozen=True, slots=True)
class Origin:
    """The connection that a message came by."""

    fd: int  # -1 for one so old that it is not told
    description: str  # its address
    user: str  # the task whose key it has proven, if it had to


def origin_of(frame: zmq.Frame) -> Origin:
    try:
        fd, address = int(frame.get(zmq.SRCFD)), str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return Origin(-1, "?", "")
    try:
        return Origin(fd, address, str(frame.get("User-Id")))
    except zmq.ZMQError:
        return Origin(fd, address, "")


def first_frame(kind: int, header: bytes) -> bytes:
    return PREAMBLE.pack(MAGIC, VERSION, kind, len(header)) + header


def read_first(frame: zmq.Frame) -> tuple[int, bytes]:
    """(kind, header). Raises ValueError for anything that `first_frame` would not make."""
    data = frame.buffer
    if not PREAMBLE.size <= len(data) <= PREAMBLE.size + MAX_HEADER:
        raise ValueError(f"a first frame of {len(data)} bytes")
    magic, version, kind, nbytes = PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("not an evener peer")
    if version != VERSION:
        raise ValueError(f"a peer of transport version {version}, we speak {VERSION}")
    if nbytes != len(data) - PREAMBLE.size:
        raise ValueError(f"a header of {len(data) - PREAMBLE.size} bytes that says it has {nbytes}")
    return kind, bytes(data[PREAMBLE.size :])


def pack_sizes(sizes: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(sizes)}Q", *sizes)


def unpack_sizes(header: bytes) -> tuple[int, ...]:
    count, rest = divmod(len(header), 8)
    if rest or count > MAX_PARTS:
        raise ValueError(f"a list of sizes of {len(header)} bytes")
    return struct.unpack(f"<{count}Q", header)


def chunks(ranges: Sequence[memoryview]) -> list[memoryview]:
    """The ranges as frames: `CHUNK` each, the last of a range shorter; an empty range needs none."""
    return [view[at : at + CHUNK] for view in ranges for at in range(0, view.nbytes, CHUNK)]


def read_frames(socket: zmq.Socket[bytes], limit: int) -> list[zmq.Frame]:
    """The frames of one message; at most one more than `limit` is kept, so that an endless one costs nothing here."""
    frames: list[zmq.Frame] = []
    more = True
    while more:
        frame = socket.recv(zmq.NOBLOCK, copy=False)
        more = frame.more
        if len(frames) <= limit:
            frames.append(frame)
    return frames


def frame_sizes(sizes: Sequence[int]) -> list[int]:
    """Bytes of each frame of a payload whose ranges have these sizes."""
    return [min(CHUNK, nbytes - at) for nbytes in sizes for at in range(0, nbytes, CHUNK)]


def check_frames(expected: Sequence[int], frames: Sequence[zmq.Frame]) -> None:
    """Look at all of a payload before anything is done with it. Raises ValueError."""
    if [len(frame) for frame in frames] != list(expected):
        raise ValueError("a payload of other sizes than those of its link")


def fill(targets: Sequence[memoryview], frames: Sequence[zmq.Frame]) -> None:
    """Copy a payload to where it belongs; nothing is written of a wrong one."""
    check_frames([target.nbytes for target in targets], frames)
    for target, frame in zip(targets, frames, strict=True):
        target[:] = frame.buffer


def joined(frames: Sequence[zmq.Frame], sizes: Sequence[int]) -> list[memoryview]:
    """A payload that was checked, copied into memory of its own: one block for each range."""
    rest = iter(frames)
    return [
        memoryview(bytearray().join(frame.buffer for frame in itertools.islice(rest, -(-nbytes // CHUNK))))
        for nbytes in sizes
    ]
