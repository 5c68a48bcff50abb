"""A transport inside one process, for tests: the same promises as the real ones, and nothing to clean up.

Threads take the place of processes. What a worker writes is what the server reads (as in shared memory); messages
lie in a queue whose descriptor is readable exactly while the queue is not empty, so `wait` works as with sockets.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from evener.errors import BindError, PeerGone, ProtocolError, Unavailable
from evener.transport.channel import (
    Arrived,
    Closed,
    Incoming,
    Opened,
    Ranges,
    check_header,
    check_ranges,
    check_sizes,
    flat,
    wait,
)

Item = TypeVar("Item")

#: Who listens now, by address; guarded by the condition, which is notified when somebody starts to listen.
_listeners: dict[str, MemoryListener] = {}
_changed = threading.Condition()
_numbers = itertools.count(1)


class Mailbox(Generic[Item]):
    """A queue between threads with a descriptor that is readable while there is something in it."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def pending(self) -> bool:
        return False  # the descriptor says it all

    def put(self, item: Item) -> bool:
        """False when the mailbox is closed: nobody will read it."""
        with self._lock:
            if self._fd < 0:
                return False
            if not self._items:
                os.eventfd_write(self._fd, 1)
            self._items.append(item)
            return True

    def first(self) -> Item | None:
        """What `take` would give; only its one reader may rely on it."""
        with self._lock:
            return self._items[0] if self._items else None

    def take(self) -> Item | None:
        with self._lock:
            if not self._items:
                return None
            item = self._items.popleft()
            if not self._items:
                os.eventfd_read(self._fd)
            return item

    def close(self) -> list[Item]:
        """Give the descriptor back, and what nobody has taken."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            left = list(self._items)
            self._items.clear()
            return left


class MemoryChannel:
    """A worker's end: its mailbox, and the listener's."""

    def __init__(self, listener: MemoryListener, outbox: Ranges, inbox: Ranges) -> None:
        self.mail: Mailbox[bytes | PeerGone] = Mailbox()
        self.outbox, self.inbox = outbox.views(), inbox.views()
        self._address, self._server, self._peer = listener.address, listener.mail, next(listener.peers)
        self._cut: PeerGone | None = None
        self._gone: PeerGone | None = None
        self._server.put(Letter(Opened(self._peer, f"thread {threading.current_thread().name}"), self))

    def fileno(self) -> int:
        return self.mail.fileno()

    def pending(self) -> bool:
        return self._gone is not None

    def send(self, header: bytes, *, payload: bool = False) -> None:
        check_header(header)
        if self._cut:
            raise self._cut
        if not self._server.put(Letter(Arrived(self._peer, header, payload), self)):
            raise PeerGone(f"{self._address} closed this link.")

    def receive(self, timeout: float) -> bytes | None:
        if self._gone is None and wait([self.mail], timeout):
            item = self.mail.take()
            if not isinstance(item, PeerGone):
                return item
            self._gone = item
        if self._gone is not None:
            raise self._gone
        return None

    def cut(self, reason: str) -> None:
        """The listener's way to close the link: what it sent before is still read first."""
        self._cut = PeerGone(f"{self._address} closed this link: {reason}.")
        self.mail.put(self._cut)

    def close(self) -> None:
        if self.mail.fileno() >= 0:
            self._cut = self._gone = PeerGone("this channel was closed here.")
            self.mail.close()
            self._server.put(Letter(Closed(self._peer, "closed its end"), self))


@dataclass(frozen=True, slots=True)
class Letter:
    """An event in a listener's mailbox, and whose."""

    event: Incoming
    channel: MemoryChannel


class MemoryListener:
    """A server's end: one mailbox that all its channels write to."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.mail: Mailbox[Letter] = Mailbox()
        self.peers = itertools.count(1)
        self._links: dict[int, MemoryChannel] = {}  # of the peers that were reported and not closed since
        self._admitted: set[int] = set()

    def fileno(self) -> int:
        return self.mail.fileno()

    def pending(self) -> bool:
        return False

    def receive(self) -> list[Incoming]:
        events: list[Incoming] = []
        heard: set[int] = set()
        while (letter := self.mail.first()) is not None:
            event = letter.event
            if event.peer in heard:
                break  # its inbox holds the message before this one
            if isinstance(event, Arrived):
                heard.add(event.peer)
            self.mail.take()
            if (news := self._accept(event, letter.channel)) is not None:
                events.append(news)
        return events

    def _accept(self, event: Incoming, channel: MemoryChannel) -> Incoming | None:
        """Keep the books; None for what a peer did before it noticed that it was disconnected."""
        peer = event.peer
        if isinstance(event, Opened):
            self._links[peer] = channel
        elif peer not in self._links:
            return None
        elif isinstance(event, Closed):
            self._forget(peer)
        elif event.payload and peer not in self._admitted:
            reason = "it sent a payload before it was admitted"
            self.disconnect(peer)
            return Closed(peer, reason)
        return event

    def admit(self, peer: int, sizes: Sequence[int]) -> None:
        check_sizes([view.nbytes for view in self._link(peer).outbox], sizes)
        self._admitted.add(peer)

    def inbox(self, peer: int) -> list[memoryview]:
        channel = self._link(peer)
        if peer not in self._admitted:
            raise ProtocolError(f"peer {peer} was not admitted.")
        return channel.outbox

    def send(self, peer: int, header: bytes, payload: Sequence[memoryview] = ()) -> None:
        check_header(header)
        channel = self._link(peer)
        if payload:
            inbox = channel.inbox if peer in self._admitted else []
            for target, source in zip(inbox, flat(payload, [view.nbytes for view in inbox]), strict=True):
                target[:] = source
        if not channel.mail.put(header):
            raise PeerGone(f"peer {peer} closed its end.")

    def disconnect(self, peer: int) -> None:
        if peer in self._links:
            self._links[peer].cut("it was disconnected")
            self._forget(peer)

    def _link(self, peer: int) -> MemoryChannel:
        if peer not in self._links:
            raise PeerGone(f"peer {peer} is gone.")
        return self._links[peer]

    def _forget(self, peer: int) -> None:
        del self._links[peer]
        self._admitted.discard(peer)

    def close(self) -> None:
        with _changed:
            if _listeners.get(self.address) is self:
                del _listeners[self.address]
        for letter in self.mail.close():  # those that we never heard of wait too
            self._links[letter.event.peer] = letter.channel
        for channel in self._links.values():
            channel.cut("the server stopped")
        self._links.clear()


def listen(address: str = "") -> MemoryListener:
    """Listen under a name of this process; without one, under a new one."""
    with _changed:
        address = address or f"memory:{next(_numbers)}"
        if address in _listeners:
            raise BindError(
                f"{address} is taken.", why="a listener of this process has it.", fix="close that one first."
            )
        listener = _listeners[address] = MemoryListener(address)
        _changed.notify_all()
        return listener


def connect(address: str, outbox: Ranges, inbox: Ranges, *, timeout: float = 10.0) -> MemoryChannel:
    """Connect to a listener of this process; waits up to `timeout` seconds for it to exist."""
    check_ranges(outbox, inbox)
    with _changed:
        if not _changed.wait_for(lambda: address in _listeners, timeout):
            raise Unavailable(
                f"{address} has not answered for {timeout:g} s.", why="nobody in this process listens there."
            )
        return MemoryChannel(_listeners[address], outbox, inbox)
