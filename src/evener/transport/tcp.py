"""The transport between hosts: TCP, by default on loopback only; with keys, each end proves who it is before it speaks.

A server has one thread and never blocks: all its sockets are in one epoll descriptor, a link that takes no more bytes
keeps what is left until it does. Whoever reaches the port may say anything, so a connection gets as much as it has
earned: eight bytes to greet, then (with keys) a few KB of handshake, then the sizes of its payloads, then words of one
header each, and memory for payloads when the server has admitted it. What fails is cut, and the log has one line about
it. How many may stand in each of these states is said by `tcp_limits`; there are always descriptors left for those who
belong. A peer that does not read what it is sent is cut before the second payload waits for it.

Why not ZeroMQ: its sockets collect a message of any size before we see one byte of it, have no limit for an address,
and an assertion of libzmq could be reached by a peer with a key (it aborted a ps). ARCHITECTURE.md tells more.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import resource
import select
import socket
import time
from collections.abc import Callable, Sequence

from evener.errors import ConfigError, PeerGone, ProtocolError
from evener.transport import tcp_silence
from evener.transport.channel import (
    MAX_HEADER,
    Arrived,
    Closed,
    Complaints,
    Incoming,
    Opened,
    check_header,
    check_sizes,
    flat,
)
from evener.transport.keys import Keys, said
from evener.transport.tcp_address import PREFIX, bind
from evener.transport.tcp_channel import connect
from evener.transport.tcp_handshake import Credentials, Handshake, Refused, Unproven, Untrusted
from evener.transport.tcp_limits import MOST_DESCRIPTORS, RESERVE, Caps, Door
from evener.transport.tcp_link import Link
from evener.transport.tcp_wire import (
    BYE,
    MAX_OPENING,
    OPEN,
    PAYLOAD,
    PLAIN,
    Greeting,
    Message,
    Reader,
    greeting,
    unpack_sizes,
)

__all__ = ["TcpListener", "connect", "listen"]

#: Connections that are taken in one go, so that a flood of them does not keep the peers waiting.
AT_ONCE = 64
#: Seconds between two looks at who is overdue or silent, and without new connections when there are no descriptors.
LOOK_SECONDS = 0.25
#: A farewell waits so long for its peer to read it; and so many may be under way at a time.
LINGER_SECONDS, MOST_PARTING = 1.0, 256
#: `close` waits so long for what was sent just before.
CLOSE_SECONDS = 0.25

ENDED = "its process ended or closed the link"
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
READ, BOTH = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class TcpListener:
    """A server's end of all its links."""

    def __init__(
        self,
        door: socket.socket,
        address: str,
        credentials: Credentials | None = None,
        *,
        heartbeat: float = 6.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self._socket, self._credentials, self._heartbeat, self._clock = door, credentials, heartbeat, clock
        self._me = said(credentials.name) if credentials else address
        self._descriptors = raise_descriptors()
        self._door = Door(Caps.of(self._descriptors))
        self._epoll = select.epoll()
        self._epoll.register(door, READ)
        self._paused = False  # is the door not watched, because there are no descriptors?
        self._links: dict[int, Link] = {}  # by descriptor
        self._peers: dict[int, Link] = {}
        self._parting: dict[int, Link] = {}  # by descriptor, oldest first
        self._numbers = itertools.count(1)
        self._looked = self._listened = clock()
        self._waste = bytearray(1 << 16)
        self._events: list[Incoming] = []
        self._complaints = Complaints(logging.getLogger(__name__))

    def fileno(self) -> int:
        return self._epoll.fileno()

    def pending(self) -> bool:
        return bool(self._events) or (bool(self._links or self._paused) and self._must_look(self._clock()))

    def _must_look(self, now: float) -> bool:
        return now - self._looked >= LOOK_SECONDS

    def receive(self) -> list[Incoming]:
        if self._must_look(now := self._clock()):
            self._look_after(now)
        for fd, mask in self._epoll.poll(0):
            link = self._links.get(fd)
            if link is None:
                if fd == self._socket.fileno():
                    self._accept()
                continue
            if mask & select.EPOLLOUT:
                self._flush(link)
            if mask & ~select.EPOLLOUT and self._links.get(fd) is link:
                self._hear(link)
        events, self._events = self._events, []
        return events

    # --- time

    def _look_after(self, now: float) -> None:
        """End what has been under way for too long."""
        self._looked = now
        if self._paused:
            self._epoll.register(self._socket, READ)
            self._paused = False
        for fd in self._door.overdue(now):
            self._turn_away(self._links[fd], "it said nothing that a peer of ours says first, for too long")
        for link in [link for link in self._parting.values() if now >= link.parting]:
            self._close(link)
        if now - self._listened >= self._heartbeat / 4:
            self._listened = now
            for link in list(self._peers.values()):
                if tcp_silence.silent(link.sock, self._heartbeat):
                    self._lose(link, f"its connection {tcp_silence.why(self._heartbeat)}")

    # --- who comes

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, where = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:  # it would be announced again and again
                    self._complaints.say(f"{self.address}: cannot accept a peer: {error}")
                    self._epoll.unregister(self._socket)
                    self._paused = True
                    return
                continue  # it left before we came
            self._enter(sock, str(where[0]))

    def _enter(self, sock: socket.socket, address: str) -> None:
        fd = sock.fileno()
        full = fd >= self._descriptors - RESERVE
        victim = self._door.come(fd, address, self._clock(), full=full)
        if victim == fd:
            self._complaints.say(f"{self.address}: refused {address}: there are no descriptors to spare")
            sock.close()
            return
        if victim is not None:
            self._turn_away(self._links[victim], "too many stand at the door who have not said who they are")
        try:
            tcp_silence.prepare(sock, self._heartbeat)
        except OSError:  # it is gone already
            self._door.leave(fd)
            sock.close()
            return
        link = self._links[fd] = Link(sock, address)
        self._epoll.register(sock, READ)
        self._hear(link)

    def _turn_away(self, link: Link, why: str) -> None:
        self._complaints.say(f"{self._me}: refused {link.address}: {why}")
        self._close(link, at_once=True)

    # --- what they say

    def _hear(self, link: Link) -> None:
        """Read until there is a message, or nothing more."""
        if link.parting:
            if link.drain(self._waste):
                self._close(link)
            return
        while True:
            try:
                nbytes = link.sock.recv_into(link.stage.target())
            except BlockingIOError:
                return
            except OSError as error:
                silent = isinstance(error, TimeoutError) or error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
                self._lose(link, f"its connection {tcp_silence.why(self._heartbeat)}" if silent else ENDED)
                return
            if not nbytes:
                self._lose(link, ENDED)
                return
            try:
                if self._took(link, nbytes):
                    return
            except ValueError as error:
                self._refuse(link, error)
                return
            except OSError:
                self._lose(link, ENDED)
                return

    def _took(self, link: Link, nbytes: int) -> bool:
        """Make something of the bytes that have come; was that a message? Raises ValueError."""
        stage = link.stage
        if isinstance(stage, Reader):
            if (message := stage.took(nbytes)) is not None:
                self._handle(link, message)
            return message is not None
        if isinstance(stage, Greeting):
            if (keys := stage.took(nbytes)) is not None:
                link.say([greeting(keys=self._credentials is not None)])
                if keys != (self._credentials is not None):
                    raise Untrusted("a greeting with keys, and here are none" if keys else "a greeting without keys")
                link.stage = Handshake(self._credentials) if self._credentials else Reader(None, MAX_OPENING)
            return False
        try:
            stage.took(nbytes)
        finally:
            if said_now := stage.outgoing():
                link.say([said_now])
        if stage.done:
            link.user, link.sealing = stage.task, stage.sealing
            link.stage = Reader(stage.opening, MAX_OPENING)
        return False

    def _handle(self, link: Link, message: Message) -> None:
        """Take a message as it is meant. Raises ValueError for one that an evener worker would not send now."""
        if not link.peer:
            if message.kind != OPEN:
                raise ValueError("a first message that opens no link")
            self._open(link, unpack_sizes(message.header))
        elif message.kind == PLAIN:
            self._events.append(Arrived(link.peer, message.header, False))
        elif message.kind == PAYLOAD:
            link.refuse_payload("a payload before its last one was answered")
            self._events.append(Arrived(link.peer, message.header, True))
        else:
            raise ValueError(f"a message of kind {message.kind}")

    def _open(self, link: Link, sizes: tuple[int, ...]) -> None:
        if refusal := self._door.opened(link.sock.fileno()):
            raise ValueError(refusal)
        link.peer, link.sizes = next(self._numbers), sizes
        if isinstance(link.stage, Reader):
            link.stage.limit = MAX_HEADER
        self._peers[link.peer] = link
        self._events.append(Opened(link.peer, link.address))

    # --- how it ends

    def _refuse(self, link: Link, error: ValueError) -> None:
        if isinstance(error, Unproven):
            said_of_it = "its key is no task's"
        elif isinstance(error, Refused):
            said_of_it = f"it does not take our key ({error})"
        else:
            said_of_it = f"it sent {error}"
        self._complaints.say(f"{self._me}: refused {link.address}: {said_of_it}")
        if isinstance(link.stage, Reader):
            self._say_bye(link, f"it got {error}")
        self._forget(link, said_of_it)
        self._part(link)

    def _say_bye(self, link: Link, reason: str) -> None:
        with contextlib.suppress(OSError):
            link.send(BYE, reason.encode())

    def _lose(self, link: Link, reason: str) -> None:
        """A connection is over."""
        if not link.peer and not isinstance(link.stage, Reader):
            self._complaints.say(f"{self.address}: {link.address} connected, is none of ours, and left or was cut")
        self._forget(link, link.broken or reason)
        self._close(link)

    def _forget(self, link: Link, reason: str = "") -> None:
        """End our dealings with a peer; with a reason it is news to the server."""
        if link.peer and reason:
            self._events.append(Closed(link.peer, reason))
        self._peers.pop(link.peer, None)
        link.peer, link.admitted, link.inbox = 0, False, []

    def _part(self, link: Link) -> None:
        """Close a connection when its peer has read what we said last, or has had some time to."""
        self._door.leave(link.sock.fileno())
        if len(self._parting) >= MOST_PARTING:
            self._close(next(iter(self._parting.values())))
        link.parting = self._clock() + LINGER_SECONDS
        self._parting[link.sock.fileno()] = link
        self._flush(link)

    def _close(self, link: Link, *, at_once: bool = False) -> None:
        fd = link.sock.fileno()
        self._door.leave(fd)
        self._parting.pop(fd, None)
        del self._links[fd]
        self._epoll.unregister(fd)
        link.close(at_once=at_once)

    # --- what we say

    def _flush(self, link: Link) -> None:
        try:
            link.flush()
        except OSError:
            link.broken = ENDED  # what it said before is read first
            self._watch(link, READ)
            if link.parting:
                self._close(link)
            return
        self._watch(link, BOTH if link.busy else READ)
        if link.parting and not link.busy:
            link.hang_up()

    def _watch(self, link: Link, mask: int) -> None:
        self._epoll.modify(link.sock, mask)

    def admit(self, peer: int, sizes: Sequence[int]) -> None:
        link = self._link(peer)
        check_sizes(link.sizes, sizes)
        if not link.admitted:
            link.make_inbox()
            link.admitted = True
            link.accept_payload()
            self._door.admitted(link.sock.fileno())

    def user(self, peer: int) -> str:
        """The task whose key a peer has proven ("worker-1"); nothing where no keys are asked."""
        return self._link(peer).user

    def inbox(self, peer: int) -> list[memoryview]:
        link = self._link(peer)
        if not link.admitted:
            raise ProtocolError(f"peer {peer} was not admitted.")
        return link.inbox

    def send(self, peer: int, header: bytes, payload: Sequence[memoryview] = ()) -> None:
        check_header(header)
        link = self._link(peer)
        views = flat(payload, link.sizes if link.admitted else ()) if payload else []
        if link.broken:
            raise PeerGone(f"peer {peer} ({link.address}) is gone: {link.broken}.")
        if link.crowded(header, views):
            reason = "it does not read what it is sent"
            self._forget(link, reason)
            self._close(link, at_once=True)
            raise PeerGone(f"peer {peer} ({link.address}) is gone: {reason}.")
        was_busy = link.busy
        try:
            link.send(PAYLOAD if payload else PLAIN, header, views)
        except OSError as error:
            link.broken = ENDED
            raise PeerGone(f"peer {peer} ({link.address}) is gone: {ENDED}.") from error
        if link.busy and not was_busy:
            self._watch(link, BOTH)
        link.accept_payload()

    def disconnect(self, peer: int) -> None:
        if (link := self._peers.get(peer)) is not None:
            self._say_bye(link, "it was disconnected")
            self._forget(link)
            self._part(link)

    def _link(self, peer: int) -> Link:
        if peer not in self._peers:
            raise PeerGone(f"peer {peer} is gone.")
        return self._peers[peer]

    def close(self) -> None:
        if self._epoll.closed:
            return
        self._socket.close()
        for link in self._peers.values():
            self._say_bye(link, "the server has closed")
        until = time.monotonic() + CLOSE_SECONDS
        while (late := [link for link in self._links.values() if link.busy]) and time.monotonic() < until:
            for link in late:
                self._flush(link)
            time.sleep(0.001)
        for link in list(self._links.values()):
            link.drain(self._waste)  # what is unread would make the kernel throw away what was sent
            self._close(link)
        self._peers.clear()
        self._epoll.close()


def raise_descriptors() -> int:
    """Ask for as many descriptors as we may have; gives their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


def listen(
    address: str = "tcp://127.0.0.1:0", *, keys: Keys | None = None, insecure: bool = False, heartbeat: float = 6.0
) -> TcpListener:
    """Listen for workers of any host that reaches the address; port 0 takes a free one, published in `address`.

    With keys only tasks of the cluster get in, and `TcpListener.user` tells which; without them only this machine does,
    unless `insecure`.
    """
    if not hasattr(select, "epoll"):
        raise ConfigError("links between hosts need Linux.", why="a server waits for all of them by epoll.")
    credentials = Credentials(keys) if keys else None
    address = address if address not in ("", PREFIX) else "tcp://127.0.0.1:0"
    door, bound = bind(address, open_to_all=keys is None, insecure=insecure)
    return TcpListener(door, bound, credentials, heartbeat=heartbeat)
