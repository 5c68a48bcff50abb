"""A worker's end of a link between hosts."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time

from evener.errors import ConfigError, PeerGone, Unavailable
from evener.transport import tcp_silence
from evener.transport.channel import SEND_SECONDS, Ranges, check_header, check_ranges, milliseconds
from evener.transport.keys import Keys
from evener.transport.tcp_address import parse, resolve
from evener.transport.tcp_dial import (
    MISMATCH,
    NOBODY,
    REFUSED,
    SILENCE,
    SLOW,
    UNPROVEN,
    AttemptFailed,
    TrustedConnection,
    dial,
)
from evener.transport.tcp_handshake import Credentials, one_sided, refused, unproven
from evener.transport.tcp_link import Buffers, push, wake_for
from evener.transport.tcp_wire import BYE, OPEN, PAYLOAD, PLAIN, Reader, Received, pack_sizes, written

RETRY_SECONDS = 0.05
#: An attempt that heard nothing and was shorter than this tells nothing either.
TELLING_SECONDS = 0.5


class TcpChannel:
    """One connection. The payload is sent from the worker's own memory, and an answer lands in it, without a copy."""

    def __init__(
        self, address: str, line: TrustedConnection, outbox: Ranges, inbox: Ranges, heartbeat: float = 6.0
    ) -> None:
        self._address, self._socket, self._heartbeat = address, line.sock, heartbeat
        self._sealing = line.sealing
        self._reader = Reader(line.opening)
        self._reader.targets = inbox.views()
        self._outgoing = outbox.views()
        self._gone: PeerGone | None = None
        self._wakes_for = 1  # bytes
        self._listened = time.monotonic()
        self._in, self._out = select.poll(), select.poll()
        self._in.register(line.sock, select.POLLIN)
        self._out.register(line.sock, select.POLLOUT)
        self._transmit(OPEN, pack_sizes(outbox.sizes()), payload=False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def pending(self) -> bool:
        self._notice()
        return self._gone is not None

    def send(self, header: bytes, *, payload: bool = False) -> None:
        check_header(header)
        if self._gone is not None:
            raise self._gone
        self._transmit(PAYLOAD if payload else PLAIN, header, payload=payload)

    def _transmit(self, kind: int, header: bytes, *, payload: bool) -> None:
        for parts in written(kind, header, self._outgoing if payload else [], self._sealing):
            try:
                rest = push(self._socket, parts)
                if rest:
                    self._push_slowly(rest)
            except OSError as error:
                raise PeerGone(f"{self._address} closed this link.") from error

    def _push_slowly(self, rest: Buffers) -> None:
        """The socket is full: wait for the server to read, which never waits for us."""
        patience = max(SEND_SECONDS, self._heartbeat)
        deadline = time.monotonic() + patience
        while rest:
            remaining = deadline - time.monotonic()
            if self._out.poll(milliseconds(min(remaining, self._heartbeat / 4))):
                rest = push(self._socket, rest)
                deadline = time.monotonic() + patience
                continue
            self._notice()
            if self._gone is None and remaining <= 0:
                self._gone = PeerGone(f"{self._address} has not read its messages for {patience:g} s.")
            if self._gone is not None:
                raise self._gone

    def receive(self, timeout: float) -> bytes | None:
        deadline = time.monotonic() + timeout
        while True:
            if self._gone is not None:
                raise self._gone
            if (message := self._read()) is not None:
                return message.header
            if self._gone is not None:
                continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            if not self._in.poll(milliseconds(min(remaining, self._heartbeat / 4))):
                self._notice()

    def _read(self) -> Received | None:
        """The next message that is there."""
        try:
            while True:
                if not (nbytes := self._socket.recv_into(self._reader.target())):
                    self._gone = PeerGone(f"{self._address} closed this link.")
                    return None
                if (message := self._reader.took(nbytes)) is not None:
                    self._wakes_for = wake_for(self._socket, 1, self._wakes_for)
                    return self._judge(message)
        except BlockingIOError:
            self._wakes_for = wake_for(self._socket, self._reader.missing, self._wakes_for)
            return None
        except TimeoutError:
            self._gone = PeerGone(f"the connection to {self._address} {tcp_silence.why(self._heartbeat)}.")
        except OSError as error:
            self._gone = PeerGone(f"{self._address} closed this link ({error.strerror}).")
        except ValueError as error:
            self._gone = PeerGone(f"{self._address} is no server of ours: it sent {error}.")
        return None

    def _judge(self, message: Received) -> Received | None:
        """Raises ValueError for what no server of ours says."""
        if message.kind == BYE:
            self._gone = PeerGone(f"{self._address} closed this link: {message.header.decode(errors='replace')}.")
            return None
        if message.kind not in (PLAIN, PAYLOAD):
            raise ValueError(f"a message of kind {message.kind}")
        return message

    def _notice(self) -> None:
        """Is the other host silent? The kernel is asked now and then."""
        now = time.monotonic()
        if self._gone is None and now - self._listened >= self._heartbeat / 4:
            self._listened = now
            if tcp_silence.silent(self._socket, self._heartbeat):
                self._gone = PeerGone(f"the connection to {self._address} {tcp_silence.why(self._heartbeat)}.")

    def close(self) -> None:
        self._gone = PeerGone("this channel was closed here.")
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(1 << 16):  # unread, it would make the kernel throw away what was sent
                pass
        self._socket.close()


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
) -> TcpChannel:
    """Connect to a listener on any host, again and again for `timeout` seconds; returns when it has answered.

    With keys, `server` is the task whose key whoever listens there must prove.
    """
    check_ranges(outbox, inbox)
    credentials = Credentials(keys, server) if keys is not None else None
    parsed = parse(address)
    if parsed is None or not parsed[1]:
        raise ConfigError(f"'{address}' is not an address.", fix="write tcp://HOST:PORT with a port from 1 to 65535.")
    start, why = time.monotonic(), ""
    deadline = start + timeout
    while True:
        began = time.monotonic()
        try:
            line = dial(resolve(parsed[0]), parsed[1], credentials, deadline)
            tcp_silence.prepare(line.sock, heartbeat)
            return TcpChannel(address, line, outbox, inbox, heartbeat)
        except AttemptFailed as failure:
            seen = str(failure)
        except socket.gaierror:
            seen = f"the name '{parsed[0]}' does not resolve."
        except (PeerGone, OSError) as error:
            seen = str(error)
        if seen == MISMATCH:
            raise one_sided(address, keys, server)
        if keys is not None and seen == REFUSED:
            raise refused(address, keys, server)
        if keys is not None and seen == UNPROVEN:
            raise unproven(address, keys, server)
        cut_short = seen in (SILENCE, SLOW) and time.monotonic() - began < TELLING_SECONDS
        why = why if why and cut_short else seen
        waited = time.monotonic() - start
        if waited >= (min(timeout, absent) if seen == NOBODY else timeout):
            raise Unavailable(
                f"{address} has not answered for {waited:.1f} s.",
                why=why,
                fix="check that the server runs and published this address, and that no firewall lies between.",
            )
        time.sleep(min(RETRY_SECONDS, max(0.0, deadline - time.monotonic())))
