"""The transport between hosts: a ROUTER socket at the server, a DEALER at each worker; by default on loopback only.

Whoever reaches the port may say anything, so a message is looked at in this order: who sent it, is it of our protocol,
has it as many frames of as many bytes as this peer was admitted with. What fails is dropped, its peer is ignored from
then on, and the log has one line about it. ZeroMQ gives no way to close one connection of many; a peer of ours that is
refused or disconnected is told so (BYE) and closes its end itself.

What ZeroMQ itself does with a message comes before all that: it collects every frame, without a limit on their number.
So a port without keys trusts whoever reaches it (this machine) not to fill its memory; at one with keys nobody can say
a message who has proven none, and a connection costs at most one frame of a handshake for five seconds.

ZeroMQ names a peer by a routing id and reports a broken connection by its descriptor. The two meet in the first
message of each connection, which tells both (SRCFD); a descriptor is used again by later connections, so the monitor's
news are always read before a new one is entered.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq

from evener.errors import PeerGone, ProtocolError
from evener.transport import zeromq_curve
from evener.transport.channel import Arrived, Closed, Complaints, Incoming, Opened, check_header, check_sizes, flat
from evener.transport.keys import Keys
from evener.transport.zeromq_address import PREFIX, bind
from evener.transport.zeromq_channel import connect
from evener.transport.zeromq_wire import (
    BYE,
    LINGER_MILLISECONDS,
    OPEN,
    PAYLOAD,
    PLAIN,
    Origin,
    Wire,
    check_frames,
    check_library,
    chunks,
    first_frame,
    frame_sizes,
    heartbeats,
    joined,
    origin_of,
    read_first,
    read_frames,
    unpack_sizes,
)

__all__ = ["ZeroMQListener", "connect", "listen"]

check_library(zmq.zmq_version_info(), curve=bool(zmq.has("curve")))

#: MANDATORY: a send to a peer that is gone fails instead of vanishing. What we send is one payload per push, so
#: its queue may be long: it holds bursts of words, and a peer is only given up when it does not read at all.
SETTINGS: dict[zmq.SocketOption, int | bytes] = {zmq.ROUTER_MANDATORY: 1, zmq.SNDHWM: 1024}
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH

#: Peers that are connected and not admitted; a large cluster may start all at once. Each costs 15-25 KB (measured).
MAX_STRANGERS = 1024


@dataclass(slots=True, eq=False)
class _Link:
    """One connection, as far as it has spoken. `peer` is 0 while (and once again when) we do not deal with it."""

    routing_id: bytes
    origin: Origin
    peer: int = 0
    sizes: tuple[int, ...] = ()
    admitted: bool = False
    frames: list[int] = field(default_factory=list)  # bytes of each frame of a payload
    inbox: list[memoryview] = field(default_factory=list)  # the last payload, until it is answered


class ZeroMQListener:
    """A server's end of all its links. With a gatekeeper, only tasks whose keys it knows get as far as here."""

    def __init__(self, wire: Wire, address: str, gatekeeper: zeromq_curve.Gatekeeper | None = None) -> None:
        self.address = address
        self._wire, self._gatekeeper = wire, gatekeeper
        self._numbers = itertools.count(1)
        self._live: set[int] = set()  # descriptors of all connections, of strangers too
        self._links: dict[bytes, _Link] = {}  # by routing id
        self._by_fd: dict[int, _Link] = {}
        self._peers: dict[int, _Link] = {}
        self._lost: list[_Link] = []  # connections that broke; their last messages may wait still
        self._strangers: set[int] = set()
        self._held = b""  # routing id of a message that is read in the next round
        self._shaken = 0  # connections that shook hands, or failed to in the gatekeeper's log, and said nothing yet
        self._events: list[Incoming] = []
        self._complaints = Complaints(logging.getLogger(__name__))

    def fileno(self) -> int:
        return self._wire.fileno()

    def pending(self) -> bool:
        return bool(self._events or self._held or self._lost) or self._wire.readable()

    def receive(self) -> list[Incoming]:
        self._watch()
        heard: set[bytes] = set()
        while self._held or self._wire.has_message():
            routing_id = self._held or self._wire.socket.recv(zmq.NOBLOCK)
            if routing_id in heard:
                self._held = routing_id
                break
            self._held = b""
            heard.add(routing_id)
            self._read(routing_id)
        else:
            self._bury(heard)
        events, self._events = self._events, []
        return events

    def _watch(self) -> None:
        """Follow which connections live."""
        for event, fd in self._wire.news():
            if event == zmq.EVENT_ACCEPTED:
                self._live.add(fd)
            elif event == zmq.EVENT_DISCONNECTED:
                self._live.discard(fd)
                if (link := self._by_fd.pop(fd, None)) is not None:
                    self._lost.append(link)
                elif self._shaken:
                    self._shaken -= 1
                else:
                    self._complaints.say(f"{self.address}: someone connected who is none of ours, and left or was cut")
            else:
                self._shaken += 1

    def _bury(self, heard: set[bytes]) -> None:
        """Report broken connections, now that all they sent before is read; the next time if it was read just now."""
        buried = [link for link in self._lost if link.routing_id not in heard]
        self._lost = [link for link in self._lost if link.routing_id in heard]
        for link in buried:
            self._end(link)

    def _end(self, link: _Link) -> None:
        del self._links[link.routing_id]
        self._forget(link, f"its connection {self._wire.broke}")

    def _read(self, routing_id: bytes) -> None:
        link = self._links.get(routing_id)
        frames = read_frames(self._wire.socket, 1 + len(link.frames) if link else 1)
        origin = origin_of(frames[0])
        if link is not None and link.origin != origin:  # the name of a connection that ended, taken by another
            self._watch()
            if link not in self._lost:
                return
            self._lost.remove(link)
            self._end(link)
            link = None
        if link is None:
            link = self._enter(routing_id, origin)
        elif not link.peer:
            return  # refused or disconnected before
        if link is not None:
            try:
                self._handle(link, frames)
            except ValueError as error:
                self._refuse(link, str(error))

    def _enter(self, routing_id: bytes, origin: Origin) -> _Link | None:
        """Start to keep a connection's books; None when it is broken already."""
        fd = origin.fd
        self._watch()  # what happened to this descriptor before belongs to others
        if fd < 0:
            self._complaints.say(f"{self.address}: dropped a message of something older than ZeroMQ 3")
        if fd not in self._live:
            return None
        if (old := self._by_fd.pop(fd, None)) is not None:
            self._lost.append(old)  # its descriptor has a new owner
        self._shaken = max(0, self._shaken - 1)
        link = self._links[routing_id] = self._by_fd[fd] = _Link(routing_id, origin)
        return link

    def _handle(self, link: _Link, frames: list[zmq.Frame]) -> None:
        """Take a message as it is meant; ValueError for one that an evener worker would not send now."""
        kind, header = read_first(frames[0])
        if not link.peer:
            if kind != OPEN or len(frames) > 1:
                raise ValueError("a first message that opens no link")
            self._open(link, unpack_sizes(header))
        elif kind == PLAIN:
            check_frames([], frames[1:])
            self._events.append(Arrived(link.peer, header, False))
        elif kind == PAYLOAD and link.admitted:
            check_frames(link.frames, frames[1:])
            link.inbox = joined(frames[1:], link.sizes)
            self._events.append(Arrived(link.peer, header, True))
        else:
            raise ValueError("a payload before it was admitted" if kind == PAYLOAD else f"a message of kind {kind}")

    def _open(self, link: _Link, sizes: tuple[int, ...]) -> None:
        if len(self._strangers) >= MAX_STRANGERS:
            raise ValueError(f"a first message while {MAX_STRANGERS} others wait to be admitted")
        link.peer, link.sizes = next(self._numbers), sizes
        self._peers[link.peer] = link
        self._strangers.add(link.peer)
        self._events.append(Opened(link.peer, link.origin.description))

    def _refuse(self, link: _Link, what: str) -> None:
        self._complaints.say(f"{self.address}: ignoring {link.origin.description} from now on: it sent {what}")
        self._say_bye(link, f"it got {what}")
        self._forget(link, f"it sent {what}")

    def _say_bye(self, link: _Link, reason: str) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._transmit(link, [first_frame(BYE, reason.encode())])

    def _forget(self, link: _Link, reason: str = "") -> None:
        """End our dealings with a peer; with a reason it is news to the server."""
        if link.peer and reason:
            self._events.append(Closed(link.peer, reason))
        self._peers.pop(link.peer, None)
        self._strangers.discard(link.peer)
        link.peer, link.admitted, link.frames, link.inbox = 0, False, [], []

    def admit(self, peer: int, sizes: Sequence[int]) -> None:
        link = self._link(peer)
        check_sizes(link.sizes, sizes)
        if not link.admitted:
            link.frames = frame_sizes(sizes)
            link.admitted = True
            self._strangers.discard(peer)

    def user(self, peer: int) -> str:
        """The task whose key a peer has proven ("worker-1"); nothing where no keys are asked."""
        return self._link(peer).origin.user

    def inbox(self, peer: int) -> list[memoryview]:
        link = self._link(peer)
        if not link.admitted:
            raise ProtocolError(f"peer {peer} was not admitted.")
        return link.inbox

    def send(self, peer: int, header: bytes, payload: Sequence[memoryview] = ()) -> None:
        check_header(header)
        link = self._link(peer)
        frames: list[bytes | memoryview] = [first_frame(PAYLOAD if payload else PLAIN, header)]
        if payload:
            frames += chunks(flat(payload, link.sizes if link.admitted else ()))
        try:
            self._transmit(link, frames)
        except zmq.ZMQError as error:
            reason = "it does not read what it is sent" if error.errno == zmq.EAGAIN else "its connection broke"
            self._forget(link, reason)
            raise PeerGone(f"peer {peer} ({link.origin.description}) is gone: {reason}.") from error
        if payload:
            link.inbox = []  # so that a peer costs memory for one payload: its own, or the one that waits to be sent

    def _transmit(self, link: _Link, frames: list[bytes | memoryview]) -> None:
        # Only the routing id can fail: it finds the peer gone (EHOSTUNREACH) or its queue full (EAGAIN).
        self._wire.socket.send_multipart([link.routing_id, *frames], zmq.NOBLOCK)

    def disconnect(self, peer: int) -> None:
        if (link := self._peers.get(peer)) is not None:
            self._say_bye(link, "it was disconnected")
            self._forget(link)

    def _link(self, peer: int) -> _Link:
        if peer not in self._peers:
            raise PeerGone(f"peer {peer} is gone.")
        return self._peers[peer]

    def close(self) -> None:
        self._wire.close(LINGER_MILLISECONDS)
        if self._gatekeeper is not None:
            self._gatekeeper.join()


def listen(
    address: str = "tcp://127.0.0.1:0", *, keys: Keys | None = None, insecure: bool = False, heartbeat: float = 6.0
) -> ZeroMQListener:
    """Listen for workers of any host that reaches the address; port 0 takes a free one, published in `address`.

    With keys only tasks of the cluster get in, and `ZeroMQListener.user` tells which; without them only this machine
    does, unless `insecure`.
    """
    address = address if address not in ("", PREFIX) else "tcp://127.0.0.1:0"
    settings = SETTINGS | heartbeats(heartbeat) | (zeromq_curve.server_settings(keys) if keys else {})
    wire = Wire(zmq.ROUTER, settings, events=EVENTS)
    try:
        gatekeeper = zeromq_curve.Gatekeeper(wire.context, keys) if keys else None
        bound = bind(wire.socket, address, open_to_all=keys is None, insecure=insecure)
    except BaseException:
        wire.close()
        raise
    return ZeroMQListener(wire, bound, gatekeeper)
