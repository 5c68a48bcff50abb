"""The transport between hosts: TCP, by default on loopback only; with keys, each end proves who it is before it speaks.

A server has one thread and never blocks: all its sockets are in one epoll descriptor, and a link that takes no more
bytes keeps the rest until it does. Whoever reaches the port may say anything, so a connection gets what it has earned:
eight bytes to greet, then (with keys) a few KB of handshake, then the sizes of its payloads, then words of one header
each, and memory for payloads when it is admitted. What fails is cut, with one line in the log. How many may stand in
each of these states says `tcp_limits`. A peer that does not read is cut before a second payload waits for it.
Why not ZeroMQ, and not TLS to the end: ARCHITECTURE.md, "Between hosts".
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import time
from collections.abc import Callable, Sequence

from evener.errors import ConfigError, PeerGone, ProtocolError, SecurityError
from evener.transport import tcp_silence
from evener.transport.channel import Arrived, Closed, Complaints, Incoming, Opened, check_header, check_sizes, flat
from evener.transport.keys import Keys, said
from evener.transport.tcp_address import PREFIX, bind
from evener.transport.tcp_channel import connect
from evener.transport.tcp_farewell import Farewells
from evener.transport.tcp_handshake import Credentials, complaint
from evener.transport.tcp_link import ConnectionOver, HostSilent, TcpLink
from evener.transport.tcp_reception import Reception
from evener.transport.tcp_wire import BYE, OPEN, PAYLOAD, PLAIN, Reader, Received, unpack_sizes

__all__ = ["TcpListener", "connect", "listen"]

#: Seconds between two looks at who is overdue or silent, and without new connections when there are no descriptors.
LOOK_SECONDS = 0.25

ENDED = "its process ended or closed the link"
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
        self._credentials, self._heartbeat, self._clock = credentials, heartbeat, clock
        self._me = said(credentials.name) if credentials else address
        self._complaints = Complaints(logging.getLogger(__name__))
        self._epoll = select.epoll()
        self._reception = Reception(door, self._epoll, heartbeat, self._complain, self._turn_away)
        self._links: dict[int, TcpLink] = {}  # by descriptor
        self._peers: dict[int, TcpLink] = {}
        self._farewells = Farewells(self._epoll)
        self._numbers = itertools.count(1)
        self._looked = self._listened = clock()
        self._events: list[Incoming] = []

    def _complain(self, what: str) -> None:
        self._complaints.say(f"{self._me}: {what}")

    def fileno(self) -> int:
        return self._epoll.fileno()

    def pending(self) -> bool:
        waiting = self._links or self._farewells or self._reception.paused
        return bool(self._events) or (bool(waiting) and self._must_look(self._clock()))

    def _must_look(self, now: float) -> bool:
        return now - self._looked >= LOOK_SECONDS

    def receive(self) -> list[Incoming]:
        if self._must_look(now := self._clock()):
            self._look_after(now)
        for fd, mask in self._epoll.poll(0):
            link = self._links.get(fd)
            if link is None:
                if fd == self._reception.fileno():
                    self._accept()
                else:
                    self._farewells.hear(fd)
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
        self._reception.resume()
        for fd in self._reception.door.overdue(now):
            self._turn_away(fd, "it has not said for too long what a peer of ours says first")
        self._farewells.end_overdue(now)
        if now - self._listened >= self._heartbeat / 4:
            self._listened = now
            for link in list(self._peers.values()):
                if tcp_silence.silent(link.sock, self._heartbeat):
                    self._lose(link, f"its connection {tcp_silence.why(self._heartbeat)}")

    # --- who comes

    def _accept(self) -> None:
        if self._credentials is not None:
            try:
                self._credentials = self._credentials.renewed()
            except SecurityError as error:  # the old ones go on to count
                self._complain(f"cannot read the keys anew: {error}")
        for sock, address in self._reception.newcomers(self._clock()):
            link = self._links[sock.fileno()] = TcpLink(sock, address)
            self._epoll.register(sock, READ)
            self._hear(link)

    def _turn_away(self, fd: int, why: str) -> None:
        link = self._links[fd]
        self._complain(f"refused {link.address}: {why}")
        self._close(link)

    # --- what they say

    def _hear(self, link: TcpLink) -> None:
        """Take what has come by a connection: one message at most."""
        try:
            if (message := link.hear(self._credentials)) is not None:
                self._handle(link, message)
        except ValueError as error:
            self._refuse(link, error)
        except HostSilent:
            self._lose(link, f"its connection {tcp_silence.why(self._heartbeat)}")
        except ConnectionOver:
            self._lose(link, ENDED)

    def _handle(self, link: TcpLink, message: Received) -> None:
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

    def _open(self, link: TcpLink, sizes: tuple[int, ...]) -> None:
        if refusal := self._reception.door.opened(link.sock.fileno()):
            raise ValueError(refusal)
        link.open(next(self._numbers), sizes)
        self._peers[link.peer] = link
        self._events.append(Opened(link.peer, link.address))

    # --- how it ends

    def _refuse(self, link: TcpLink, error: ValueError) -> None:
        said_of_it = complaint(error)
        self._complain(f"refused {link.address}: {said_of_it}")
        if isinstance(link.stage, Reader):
            self._say_bye(link, f"it got {error}")
        self._forget(link, said_of_it)
        self._part(link)

    def _say_bye(self, link: TcpLink, reason: str) -> None:
        with contextlib.suppress(OSError):
            link.send(BYE, reason.encode())

    def _lose(self, link: TcpLink, reason: str) -> None:
        """A connection is over."""
        if not link.peer and not isinstance(link.stage, Reader):
            self._complain(f"{link.address} connected, is none of ours, and left")
        self._forget(link, link.broken or reason)
        self._close(link)

    def _forget(self, link: TcpLink, reason: str = "") -> None:
        """End our dealings with a peer; with a reason it is news to the server."""
        if link.peer and reason:
            self._events.append(Closed(link.peer, reason))
        self._peers.pop(link.peer, None)
        link.peer, link.admitted, link.inbox = 0, False, []

    def _part(self, link: TcpLink) -> None:
        """Close a connection when its peer has read what we said last, or has had some time to."""
        del self._links[link.sock.fileno()]
        self._reception.door.leave(link.sock.fileno())
        self._farewells.begin(link, self._clock())

    def _close(self, link: TcpLink) -> None:
        """Close it now; what waits to be sent is not sent."""
        fd = link.sock.fileno()
        self._reception.door.leave(fd)
        del self._links[fd]
        self._epoll.unregister(fd)
        link.close(at_once=True)

    # --- what we say

    def _flush(self, link: TcpLink) -> None:
        try:
            link.flush()
        except OSError:
            link.broken = ENDED  # what it said before is read first
            link.forget_unsent()
        if not link.busy:
            self._epoll.modify(link.sock, READ)

    def admit(self, peer: int, sizes: Sequence[int]) -> None:
        link = self._link(peer)
        check_sizes(link.sizes, sizes)
        if not link.admitted:
            link.make_inbox()
            link.admitted = True
            link.accept_payload()
            self._reception.door.admitted(link.sock.fileno())

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
        kind = PAYLOAD if payload else PLAIN
        if link.crowded(kind, header, views):
            reason = "it does not read what it is sent"
            self._forget(link, reason)
            self._close(link)
            raise PeerGone(f"peer {peer} ({link.address}) is gone: {reason}.")
        was_busy = link.busy
        try:
            link.send(kind, header, views)
        except OSError as error:
            link.broken = ENDED
            link.forget_unsent()
            raise PeerGone(f"peer {peer} ({link.address}) is gone: {ENDED}.") from error
        if link.busy and not was_busy:
            self._epoll.modify(link.sock, BOTH)
        link.accept_payload()

    def disconnect(self, peer: int) -> None:
        if (link := self._peers.get(peer)) is not None:
            self._say_bye(link, "it was disconnected")
            self._forget(link)
            self._part(link)

    def _link(self, peer: int) -> TcpLink:
        if peer not in self._peers:
            raise PeerGone(f"peer {peer} is gone.")
        return self._peers[peer]

    def close(self) -> None:
        if self._epoll.closed:
            return
        self._reception.close()
        for link in self._peers.values():
            self._say_bye(link, "the server has closed")
        self._farewells.end(self._links.values())
        self._peers.clear()
        self._links.clear()
        self._epoll.close()


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
