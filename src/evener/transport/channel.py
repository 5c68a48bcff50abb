"""The seam between evener and whatever carries its bytes.

A worker holds one `Channel` to each server, a server one or more `Listener`s. A message is a *header* (bytes that
`wire.codec` understands) and, sometimes, a *payload*: the tensors of one shard. Payloads have one shape per link,
agreed when it opens, the same in both directions: a sequence of byte ranges (one per dtype). They are never packed: the
worker's payload lies in memory it computes on, the reply lands in memory that its model's parameters are views of.

One owner at a time. After `Channel.send(..., payload=True)` the worker must not touch the outbox until `receive`
returned; after `Listener.send(peer, ...)` the server must not touch the peer's inbox until its next message.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from evener.errors import ConfigError, ProtocolError

#: Longest header in bytes, on every transport: checked by the sender and by the receiver.
MAX_HEADER = 128 * 1024

#: Most ranges of one payload: a link needs one per dtype, a stranger may not make us read a list without end.
MAX_PARTS = 256

#: How long a worker's `send` waits for a server that does not read, before it takes it for dead.
SEND_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A peer has connected; it is a stranger until the server admits it."""

    peer: int
    description: str  # for people: "pid 812", "10.0.0.4:51234"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A peer's message; its payload, if it had one, lies in `Listener.inbox(peer)`."""

    peer: int
    header: bytes
    payload: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """A peer is gone, for good: a reconnecting peer is a new number."""

    peer: int
    reason: str


Incoming = Opened | Arrived | Closed


def seal(fd: int) -> None:
    """Fix the size of a memfd for ever: who maps it cannot be killed by SIGBUS when another process shrinks it."""
    import fcntl  # not everywhere where the rest of this module works

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


class Memory:
    """A block of bytes that other processes of this host can be given (a memfd: nameless, so nothing can leak)."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.fd = -1
        size = max(nbytes, 1)
        if sys.platform == "linux":
            self.fd = os.memfd_create("evener", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.posix_fallocate(self.fd, 0, size)  # an error here instead of SIGBUS later
            seal(self.fd)
            self._map = mmap.mmap(self.fd, size)
        else:
            self._map = mmap.mmap(-1, size)
        self.view = memoryview(self._map)[:nbytes]

    def close(self) -> None:
        """Give the descriptor back; the mapping lives as long as someone looks at it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()  # or the forgotten descriptor would keep all of its memory


@dataclass(frozen=True, slots=True)
class Ranges:
    """Parts of one memory block: the payload of one link, in order."""

    memory: Memory
    parts: tuple[tuple[int, int], ...]  # (offset, nbytes)

    def __post_init__(self) -> None:
        for offset, nbytes in self.parts:
            if offset < 0 or nbytes < 0 or offset + nbytes > self.memory.nbytes:
                raise ConfigError(
                    f"bytes {offset}..{offset + nbytes} do not lie in a memory of {self.memory.nbytes} bytes.",
                    why="a slice of it would be shorter than its peer expects.",
                    fix="make the Memory as large as its last part ends.",
                )

    def views(self) -> list[memoryview]:
        return [self.memory.view[offset : offset + nbytes] for offset, nbytes in self.parts]

    def sizes(self) -> tuple[int, ...]:
        return tuple(nbytes for _, nbytes in self.parts)


class Source(Protocol):
    """Something a loop can wait for."""

    def fileno(self) -> int: ...

    def pending(self) -> bool:
        """Is there something to receive that `fileno` may no longer announce? (As what is due.)"""
        ...


class Channel(Source, Protocol):
    """A worker's end of its link to one server. Made by `connect` of a transport."""

    def send(self, header: bytes, *, payload: bool = False) -> None:
        """Send a message, with the outbox as its payload if asked. Raises PeerGone."""
        ...

    def receive(self, timeout: float) -> bytes | None:
        """Wait up to `timeout` seconds for a message; its payload, if it has one, then lies in the inbox.

        Returns its header, or None when the time is over. Raises PeerGone when the link broke.
        """
        ...

    def close(self) -> None: ...


class Listener(Source, Protocol):
    """A server's end of the links to all its peers. Made by `listen` of a transport; peers connect to `address`."""

    address: str

    def receive(self) -> list[Incoming]:
        """What has happened since the last call; never blocks.

        At most one message of each peer, and its `Closed` not beside it, so that its inbox is there and not overwritten
        by the next one; while there is more, the listener stays ready for `wait`.
        """
        ...

    def admit(self, peer: int, sizes: Sequence[int]) -> None:
        """From now on `peer` may send and be sent payloads of exactly these sizes (bytes per range).

        Until then a payload from it closes the link, so a stranger costs no memory. Raises ProtocolError when
        the peer offered other sizes.
        """
        ...

    def inbox(self, peer: int) -> list[memoryview]:
        """Where the last payload of an admitted peer lies; the same list while it is the same memory.

        A transport may use other memory for each payload, and let go of it when the peer is sent one: then this is
        empty until the next. Usable after the peer closed, as long as someone holds it.
        """
        ...

    def send(self, peer: int, header: bytes, payload: Sequence[memoryview] = ()) -> None:
        """Answer a peer; the payload is copied before this returns.

        Raises PeerGone for a peer that is gone, or that does not read what it was sent; its `Closed` still comes
        (once) from `receive`, so that there is one place where a server forgets a peer.
        """
        ...

    def disconnect(self, peer: int) -> None:
        """Close one link; no `Closed` is reported for it. Unknown peers are ignored."""
        ...

    def close(self) -> None: ...


def check_header(header: bytes) -> None:
    """Refuse a header that the other side would refuse, here where the traceback helps."""
    if len(header) > MAX_HEADER:
        raise ProtocolError(
            f"a header of {len(header)} bytes is too long to send.",
            why=f"a header has at most {MAX_HEADER} bytes on every transport.",
            fix="send tensors as the payload; only names, numbers and settings belong in a header.",
        )


def check_ranges(outbox: Ranges, inbox: Ranges) -> None:
    """Refuse a link whose two directions differ, before a server does so with less to say."""
    if outbox.sizes() != inbox.sizes():
        raise ConfigError(
            f"the outbox has ranges of {outbox.sizes()} bytes, the inbox of {inbox.sizes()}.",
            why="gradients and parameters of one shard have the same dtypes and sizes.",
            fix="make both from the same layout.",
        )
    if len(outbox.parts) > MAX_PARTS:
        raise ConfigError(f"{len(outbox.parts)} ranges in one payload.", why=f"at most {MAX_PARTS}, one per dtype.")


def check_sizes(offered: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse to admit a peer whose payloads are not those of our shard."""
    if tuple(offered) != tuple(sizes):
        raise ProtocolError(
            f"the peer offers payloads of {tuple(offered)} bytes, this server holds {tuple(sizes)}.",
            why="both are counted from the layout of the model.",
            fix="start every task with the same recipe and the same number of servers.",
        )


def flat(payload: Sequence[memoryview], sizes: Sequence[int]) -> list[memoryview]:
    """The payload as plain bytes, after a check that it has the sizes of its link."""
    if tuple(view.nbytes for view in payload) != tuple(sizes):
        raise ProtocolError(
            f"a payload of {tuple(view.nbytes for view in payload)} bytes on a link of {tuple(sizes)}.",
            why="a peer may be sent payloads only after `admit`, and only of the sizes given there.",
        )
    return [view if view.format == "B" and view.ndim == 1 else view.cast("B") for view in payload]


class Complaints:
    """Log lines about strangers, few enough that a port scan cannot fill the disk.

    At most `burst` lines at once, then one every `seconds`; each line tells how many were left out before it.
    """

    def __init__(self, log: logging.Logger, *, burst: int = 10, seconds: float = 10.0) -> None:
        self._log, self._burst, self._seconds = log, burst, seconds
        self._tokens, self._last, self._left_out = float(burst), time.monotonic(), 0

    def say(self, what: str) -> None:
        now = time.monotonic()
        self._tokens = min(float(self._burst), self._tokens + (now - self._last) / self._seconds)
        self._last = now
        if self._tokens < 1:
            self._left_out += 1
            return
        self._tokens -= 1
        more = f" ({self._left_out} similar lines left out)" if self._left_out else ""
        self._left_out = 0
        self._log.warning("%s%s", what, more)


def milliseconds(timeout: float) -> float:
    """Seconds as `poll` wants them: never negative (that would mean "for ever"), never above its 32 bits."""
    return min(max(timeout, 0.0), 1e6) * 1000


AnySource = TypeVar("AnySource", bound=Source)


def wait(sources: Sequence[AnySource], timeout: float) -> list[AnySource]:
    """The sources that have something to receive; waits up to `timeout` seconds for the first.

    Never misses one; now and then it names one that turns out to have nothing (it looks after its links), so
    `receive` of what it names must allow for that.
    """
    ready = [source for source in sources if source.pending()]
    if ready:
        timeout = 0.0
    poll = select.poll()
    by_fd: dict[int, AnySource] = {}
    for source in sources:
        by_fd[source.fileno()] = source
        poll.register(source.fileno(), select.POLLIN)
    for fd, _ in poll.poll(milliseconds(timeout)):
        if by_fd[fd] not in ready:
            ready.append(by_fd[fd])
    return ready
