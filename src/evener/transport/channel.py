"""The seam between evener and whatever carries its bytes.

A worker holds one `Channel` to each server, a server holds one or more `Listener`s. A message is a *header* (bytes that
`wire.codec` understands) and, sometimes, a *payload*: the tensors of one shard. Payloads have one shape per link, agreed when
it opens, the same in both directions: a sequence of byte ranges (one per dtype). They are never packed: the worker's
payload lies in memory it computes on, the reply lands in memory that its model's parameters are views of.

One owner at a time. After `Channel.send(..., payload=True)` the worker must not touch the outbox until `receive` returned; after
`Listener.send(peer, ...)` the server must not touch the peer's inbox until its next message.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

#: Longest header in bytes, on every transport: checked by the sender and by the receiver.
MAX_HEADER = 128 * 1024


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


class Memory:
    """A block of bytes that other processes of this host can be given (a memfd: nameless, so nothing can leak)."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        size = max(nbytes, 1)
        if sys.platform == "linux":
            self.fd = os.memfd_create("evener", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.posix_fallocate(self.fd, 0, size)  # an error here instead of SIGBUS later
            self._map = mmap.mmap(self.fd, size)
        else:
            self.fd = -1
            self._map = mmap.mmap(-1, size)
        self.view = memoryview(self._map)[:nbytes]

    def close(self) -> None:
        """Give the descriptor back; the mapping lives as long as someone looks at it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True, slots=True)
class Ranges:
    """Parts of one memory block: the payload of one link, in order."""

    memory: Memory
    parts: tuple[tuple[int, int], ...]  # (offset, nbytes)

    def views(self) -> list[memoryview]:
        return [self.memory.view[offset : offset + nbytes] for offset, nbytes in self.parts]

    def sizes(self) -> tuple[int, ...]:
        return tuple(nbytes for _, nbytes in self.parts)


class Source(Protocol):
    """Something a loop can wait for."""

    def fileno(self) -> int: ...

    def pending(self) -> bool:
        """Is there something to receive that `fileno` may no longer announce? (ZeroMQ's descriptor is edge-triggered.)"""
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
    """A server's end of the links to all its peers. Made by `listen` of a transport; `address` is what peers connect to."""

    address: str

    def receive(self) -> list[Incoming]:
        """Everything that has happened since the last call; never blocks."""
        ...

    def admit(self, peer: int, sizes: Sequence[int]) -> None:
        """From now on `peer` may send and be sent payloads of exactly these sizes (bytes per range).

        Until then a payload from it closes the link, so a stranger costs no memory. Raises ProtocolError when
        the peer offered other sizes.
        """
        ...

    def inbox(self, peer: int) -> list[memoryview]:
        """Where the payloads of an admitted peer land. Usable after the peer closed, as long as someone holds it."""
        ...

    def send(self, peer: int, header: bytes, payload: Sequence[memoryview] = ()) -> None:
        """Answer a peer; the payload is copied before this returns. Raises PeerGone."""
        ...

    def disconnect(self, peer: int) -> None:
        """Close one link; no `Closed` is reported for it. Unknown peers are ignored."""
        ...

    def close(self) -> None: ...


AnySource = TypeVar("AnySource", bound=Source)


def wait(sources: Sequence[AnySource], timeout: float) -> list[AnySource]:
    """The sources that have something to receive; waits up to `timeout` seconds for the first."""
    ready = [source for source in sources if source.pending()]
    if ready:
        timeout = 0.0
    poll = select.poll()
    by_fd: dict[int, AnySource] = {}
    for source in sources:
        by_fd[source.fileno()] = source
        poll.register(source.fileno(), select.POLLIN)
    for fd, _ in poll.poll(max(0.0, timeout) * 1000):
        if by_fd[fd] not in ready:
            ready.append(by_fd[fd])
    return ready
