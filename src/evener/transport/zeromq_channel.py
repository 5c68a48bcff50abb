"""A worker's end of a link between hosts."""

from __future__ import annotations

import math
import time

import zmq

from evener.errors import ConfigError, PeerGone, Unavailable
from evener.transport import zeromq_curve
from evener.transport.channel import SEND_SECONDS, Ranges, check_header, check_ranges
from evener.transport.keys import Keys
from evener.transport.zeromq_address import parse, resolve, route
from evener.transport.zeromq_wire import (
    BYE,
    LINGER_MILLISECONDS,
    OPEN,
    PAYLOAD,
    PLAIN,
    Wire,
    chunks,
    fill,
    first_frame,
    heartbeats,
    pack_sizes,
    read_first,
    read_frames,
)

#: A broken connection must not take with it what the server sent last and we have not read: often the reason why it
#: broke. ZeroMQ throws that away with IMMEDIATE=1 and also with RECONNECT_IVL=-1; so it may connect again, in an hour.
#: By then this channel is closed, and a server ignores a connection that does not begin with OPEN.
SETTINGS: dict[zmq.SocketOption, int | bytes] = {zmq.IMMEDIATE: 0, zmq.RECONNECT_IVL: 3_600_000}
EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
RETRY_SECONDS = 0.05

#: Why an attempt to connect failed.
SILENCE = "no packet came back."
NOBODY = "no process listens there."
FOREIGN = "whoever listens there does not speak ZeroMQ."
BROKEN_OFF = "whoever listens there speaks ZeroMQ and broke off."
UNPROVEN = "whoever listens there did not prove its key."
MISMATCH = "one end has keys, the other has none."
REFUSED = "the server refused our key."
SLOW = "whoever listens there took the connection and said nothing."

#: So many attempts in a row must break off before we say that a server lacks its key: it may just have been killed.
#: An attempt that broke off after more seconds than this says nothing of keys: the server is stuck.
UNPROVEN_ATTEMPTS, UNPROVEN_SECONDS = 3, 3.0


class ZeroMQChannel:
    """A DEALER socket with exactly one connection in its life.

    The payload is sent from the worker's own memory, without a copy: ZeroMQ's thread reads it until the server has it
    all, which is sure when the answer is here.
    """

    def __init__(self, address: str, wire: Wire, outbox: Ranges, inbox: Ranges) -> None:
        self._address, self._wire = address, wire
        self._outgoing, self._incoming = chunks(outbox.views()), chunks(inbox.views())
        self._gone: PeerGone | None = None
        self._transmit([first_frame(OPEN, pack_sizes(outbox.sizes()))])

    def fileno(self) -> int:
        return self._wire.fileno()

    def pending(self) -> bool:
        return self._gone is not None or self._wire.readable()

    def send(self, header: bytes, *, payload: bool = False) -> None:
        check_header(header)
        if self._gone is not None:
            raise self._gone
        if payload:
            self._transmit([first_frame(PAYLOAD, header), *self._outgoing])
        else:
            self._transmit([first_frame(PLAIN, header)])

    def _transmit(self, frames: list[bytes | memoryview]) -> None:
        """Hand a message to ZeroMQ, all of it or nothing; a full queue gets some time to drain."""
        deadline = 0.0
        while True:
            try:
                self._wire.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
                return
            except zmq.Again:
                self._notice()
            if self._gone is not None:
                raise self._gone
            deadline = deadline or time.monotonic() + SEND_SECONDS
            if not self._wire.sleep(deadline):
                raise PeerGone(f"{self._address} has not read its messages for {SEND_SECONDS:g} s.")

    def receive(self, timeout: float) -> bytes | None:
        deadline = time.monotonic() + timeout
        while True:
            while self._wire.has_message():
                if (header := self._read()) is not None:
                    return header
            if self._gone is not None:
                raise self._gone
            self._notice()
            # Just gone? What it sent before is here now: read that first.
            if self._gone is None and not self._wire.sleep(deadline):
                return None

    def _notice(self) -> None:
        for event, _ in self._wire.news():
            if event == zmq.EVENT_DISCONNECTED and self._gone is None:
                self._gone = PeerGone(f"the connection to {self._address} {self._wire.broke}.")

    def _read(self) -> bytes | None:
        """The next header; None for a message that ends the link."""
        frames = read_frames(self._wire.socket, 1 + len(self._incoming))
        try:
            kind, header = read_first(frames[0])
            if kind == BYE:
                self._gone = PeerGone(f"{self._address} closed this link: {header.decode(errors='replace')}.")
                return None
            if kind not in (PLAIN, PAYLOAD):
                raise ValueError(f"a message of kind {kind}")
            fill(self._incoming if kind == PAYLOAD else [], frames[1:])
            return header
        except ValueError as error:
            self._gone = PeerGone(f"{self._address} is no server of ours: it sent {error}.")
            return None

    def close(self) -> None:
        """Afterwards nobody reads the outbox any more: until then ZeroMQ's thread might."""
        self._gone = PeerGone("this channel was closed here.")
        self._wire.close(LINGER_MILLISECONDS)


def connect(  # noqa: PLR0913 - what a link is made of, each once
    address: str,
    outbox: Ranges,
    inbox: Ranges,
    *,
    timeout: float = 10.0,
    absent: float = math.inf,
    keys: Keys | None = None,
    server: str = "ps-0",
    heartbeat: float = 6.0,
) -> ZeroMQChannel:
    """Connect to a listener on any host; each attempt is a new socket, for ZeroMQ gives up one that was refused.

    With keys, `server` is the task whose key whoever listens there must prove.
    """
    check_ranges(outbox, inbox)
    settings = SETTINGS | heartbeats(heartbeat) | (zeromq_curve.client_settings(keys, server) if keys else {})
    start, why, unproven = time.monotonic(), "", 0
    deadline = start + timeout
    while True:
        wire = Wire(zmq.DEALER, settings, events=EVENTS)
        try:
            failure = _shake_hands(wire, address, deadline, curve=keys is not None)
            if not failure:
                return ZeroMQChannel(address, wire, outbox, inbox)
        except PeerGone as error:
            failure = str(error)
        except BaseException:
            wire.close()
            raise
        wire.close()
        if failure == MISMATCH:
            raise zeromq_curve.one_sided(address, keys, server)
        if keys is not None:
            unproven = unproven + 1 if failure == UNPROVEN else 0
            if failure == REFUSED:
                raise zeromq_curve.refused(address, keys, server)
            if unproven == UNPROVEN_ATTEMPTS:
                raise zeromq_curve.unproven(address, keys, server)
        why = failure if failure != SILENCE or not why else why  # the last attempt may be cut short: it tells nothing
        waited = time.monotonic() - start
        if waited >= (min(timeout, absent) if failure == NOBODY else timeout):
            raise Unavailable(
                f"{address} has not answered for {waited:.1f} s.",
                why=why,
                fix="check that the server runs and published this address, and that no firewall lies between.",
            )
        time.sleep(min(RETRY_SECONDS, max(0.0, deadline - time.monotonic())))


def _shake_hands(wire: Wire, address: str, deadline: float, *, curve: bool) -> str:
    """One attempt to connect; why it failed, or nothing when it did not."""
    parsed = parse(address)
    if parsed is None or not parsed[1]:
        raise ConfigError(f"'{address}' is not an address.", fix="write tcp://HOST:PORT with a port from 1 to 65535.")
    host, port = parsed
    try:
        ip = resolve(host)
    except OSError:
        return f"the name '{host}' does not resolve."
    wire.socket.connect(route(wire.socket, ip, port))
    start = time.monotonic()
    while True:
        for event, _ in wire.news():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return ""
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return REFUSED
            if event == zmq.EVENT_CLOSED:
                return NOBODY
            return _broken(ip, port, curve) if time.monotonic() < start + UNPROVEN_SECONDS else SLOW
        wire.has_message()  # takes note of what its descriptor announced, or that would wake us again and again
        if not wire.sleep(deadline):
            return SILENCE


def _broken(ip: str, port: int, curve: bool) -> str:
    """Why a handshake broke off. ZeroMQ tells only if our end saw first that the two do not match, so we ask again."""
    spoken = zeromq_curve.mechanism(ip, port)
    if not spoken:
        return FOREIGN
    if spoken != (b"CURVE" if curve else b"NULL"):
        return MISMATCH
    return UNPROVEN if curve else BROKEN_OFF
