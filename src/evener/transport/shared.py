"""The transport of one host: tensors lie in memory that two processes map, words on a UNIX socket hand them over.

A worker connects to an abstract UNIX socket (no file, so nothing to leak) and gives its memfds to the server with its
first packet. From then on a message is one packet: a byte that says whether the payload changes hands, then the
header. The payload itself never moves on a push; on a release it is copied once, from the server's parameters into
the worker's memory. The kernel tells at once when a process dies: its socket closes.

A server trusts nothing that a stranger sends (`packets`). A link has its own mapping, never one used before.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import secrets
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evener.errors import BindError, PeerGone, ProtocolError
from evener.transport.channel import Arrived, Closed, Complaints, Incoming, Opened, check_header, check_sizes, flat
from evener.transport.packets import (
    MAX_PACKET,
    PAYLOAD,
    PLAIN,
    PREFIX,
    SOCKET_BUFFER,
    Offer,
    abstract,
    credentials_of,
    read_packet,
    receive_offer,
)
from evener.transport.shared_channel import connect

__all__ = ["SharedListener", "connect", "listen"]

#: Peers that are connected and not admitted; more than these stay in the kernel's queue.
MAX_STRANGERS = 64

Credentials = Callable[[socket.socket], tuple[int, int]]


@dataclass(slots=True, eq=False)
class _Peer:
    """What a server knows of one peer."""

    sock: socket.socket
    pid: int
    peer: int = 0  # 0 until its first packet came
    offer: Offer = field(default_factory=lambda: Offer((), ()))
    admitted: bool = False
    inbox: list[memoryview] = field(default_factory=list)  # ours: what the peer pushes
    replies: list[memoryview] = field(default_factory=list)  # where our payloads for it go
    sizes: tuple[int, ...] = ()


class SharedListener:
    """A server's end. One epoll descriptor stands for the door and all links, so that a loop waits for one number."""

    def __init__(self, address: str, *, credentials: Credentials = credentials_of) -> None:
        self.address = address
        self._credentials = credentials
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        _bind(self._door, address)
        self._door.listen(128)
        self._epoll = select.epoll()
        self._epoll.register(self._door, select.EPOLLIN)
        self._open = True  # False while the door is not watched because too many strangers stand in it
        self._buffer = bytearray(MAX_PACKET + 1)
        self._view = memoryview(self._buffer)
        self._numbers = itertools.count(1)
        self._links: dict[int, _Peer] = {}  # by descriptor
        self._peers: dict[int, _Peer] = {}
        self._strangers: dict[int, _Peer] = {}  # by descriptor, oldest first: connected and not admitted
        self._events: list[Incoming] = []
        self._complaints = Complaints(logging.getLogger(__name__))

    def fileno(self) -> int:
        return self._epoll.fileno()

    def pending(self) -> bool:
        return bool(self._events)

    def receive(self) -> list[Incoming]:
        for fd, _ in self._epoll.poll(0):
            link = self._links.get(fd)
            if link is None:
                self._accept()
            elif link.peer:
                self._read(link)
            else:
                self._meet(link)
        events, self._events = self._events, []
        return events

    def _accept(self) -> None:
        """Let in who waits at the door, up to the limit; a stranger that says nothing makes room for the next."""
        while True:
            if len(self._strangers) >= MAX_STRANGERS:
                silent = next((link for link in self._strangers.values() if not link.peer), None)
                if silent is None:
                    self._epoll.unregister(self._door)
                    self._open = False
                    return
                self._complaints.say(f"{self.address}: dropped pid {silent.pid}, which connected and said nothing")
                self._drop(silent)
            try:
                sock, _ = self._door.accept()
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    self._complaints.say(f"{self.address}: cannot accept a peer: {error}")
                return
            self._admit_stranger(sock)

    def _admit_stranger(self, sock: socket.socket) -> None:
        pid, uid = self._credentials(sock)
        if uid != os.getuid():
            sock.close()
            self._complaints.say(f"{self.address}: refused pid {pid}, which runs as user {uid}, not {os.getuid()}")
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        link = _Peer(sock, pid)
        self._links[sock.fileno()] = self._strangers[sock.fileno()] = link
        self._epoll.register(sock, select.EPOLLIN)
        self._meet(link)

    def _meet(self, link: _Peer) -> None:
        """Read a stranger's first packet."""
        try:
            link.offer = receive_offer(link.sock)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self._complaints.say(f"{self.address}: dropped pid {link.pid}: {error}")
            self._drop(link)
            return
        link.peer = next(self._numbers)
        self._peers[link.peer] = link
        self._events.append(Opened(link.peer, f"pid {link.pid}"))

    def _read(self, link: _Peer) -> None:
        nbytes = read_packet(link.sock, self._buffer)
        if nbytes is None:
            return
        if nbytes == 0:
            self._drop(link, "its process ended or closed the link")
        elif nbytes > MAX_PACKET or self._buffer[0] > 1:
            self._drop(link, "it sent a malformed packet")
        elif self._buffer[0] and not link.admitted:
            self._drop(link, "it sent a payload before it was admitted")
        else:
            self._events.append(Arrived(link.peer, bytes(self._view[1:nbytes]), self._buffer[0] == 1))

    def admit(self, peer: int, sizes: Sequence[int]) -> None:
        link = self._link(peer)
        check_sizes([nbytes for _, nbytes in link.offer.outbox], sizes)
        check_sizes([nbytes for _, nbytes in link.offer.inbox], sizes)
        if not link.admitted:
            link.inbox, link.replies = link.offer.map()
            link.sizes, link.admitted = tuple(sizes), True
            self._leave_door(link)

    def inbox(self, peer: int) -> list[memoryview]:
        link = self._link(peer)
        if not link.admitted:
            raise ProtocolError(f"peer {peer} was not admitted.")
        return link.inbox

    def send(self, peer: int, header: bytes, payload: Sequence[memoryview] = ()) -> None:
        check_header(header)
        link = self._link(peer)
        if payload:
            for target, source in zip(link.replies, flat(payload, link.sizes), strict=True):
                target[:] = source
        try:
            link.sock.send((PAYLOAD if payload else PLAIN) + header)
        except BlockingIOError:
            self._drop(link, "it does not read what it is sent")
            raise PeerGone(f"peer {peer} (pid {link.pid}) does not read what it is sent.") from None
        except OSError as error:
            self._drop(link, "its process ended or closed the link")
            raise PeerGone(f"peer {peer} (pid {link.pid}) is gone.") from error

    def disconnect(self, peer: int) -> None:
        if peer in self._peers:
            self._drop(self._peers[peer])

    def _link(self, peer: int) -> _Peer:
        if peer not in self._peers:
            raise PeerGone(f"peer {peer} is gone.")
        return self._peers[peer]

    def _drop(self, link: _Peer, reason: str = "") -> None:
        """Close a link; with a reason it is news to the server."""
        if reason:
            self._events.append(Closed(link.peer, reason))
        self._leave_door(link)
        self._peers.pop(link.peer, None)
        del self._links[link.sock.fileno()]
        self._epoll.unregister(link.sock)  # not left to `close`: a forked child may hold the socket open
        link.sock.close()
        link.offer.close()

    def _leave_door(self, link: _Peer) -> None:
        if self._strangers.pop(link.sock.fileno(), None) and not self._open:
            self._epoll.register(self._door, select.EPOLLIN)
            self._open = True

    def close(self) -> None:
        if not self._epoll.closed:
            for link in list(self._links.values()):
                self._drop(link)
            self._door.close()
            self._epoll.close()


def _bind(door: socket.socket, address: str) -> None:
    try:
        door.bind(abstract(address))
    except OSError as error:
        door.close()
        raise BindError(
            f"{address} is taken." if error.errno == errno.EADDRINUSE else f"cannot listen on {address}.",
            why=f"the kernel says: {error.strerror or error}.",
            fix="give no address: a free one is chosen and published.",
        ) from error


def listen(address: str = "") -> SharedListener:
    """Listen for processes of this host and user; without an address, at a new one that nobody can guess."""
    return SharedListener(address if address not in ("", PREFIX) else f"{PREFIX}evener-{secrets.token_hex(8)}")
