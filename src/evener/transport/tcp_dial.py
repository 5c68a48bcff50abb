"""One attempt to reach a server and to know who answers: a connection, both greetings and, with keys, a handshake."""

from __future__ import annotations

import errno
import select
import socket
import time
from dataclasses import dataclass

from evener.transport.channel import milliseconds
from evener.transport.tcp_handshake import Credentials, Handshake, KeyRefused, Unproven, Untrusted
from evener.transport.tcp_seal import Sealing
from evener.transport.tcp_wire import Greeting, greeting

#: Why an attempt to connect failed.
SILENCE = "no packet came back."
NOBODY = "no process listens there."
SLOW = "whoever listens there took the connection and said nothing."
BROKEN_OFF = "whoever listens there hangs up without an answer: it is no evener server, or is ending."
FOREIGN = "whoever listens there is no evener server: it sent "
UNPROVEN = "whoever listens there did not prove its key."
MISMATCH = "one end has keys, the other has none."
REFUSED = "the server refused our key."


class AttemptFailed(Exception):
    """An attempt that failed; one of the reasons above."""


@dataclass(frozen=True, slots=True)
class TrustedConnection:
    """A connection to a server that is what it should be."""

    sock: socket.socket
    sealing: Sealing | None
    opening: Sealing | None


def dial(ip: str, port: int, credentials: Credentials | None, deadline: float) -> TrustedConnection:
    """Try once, until a moment of `time.monotonic`. Raises Failed or OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        _reach(sock, ip, port, deadline)
        return _shake_hands(sock, credentials, deadline)
    except BaseException:
        sock.close()
        raise


def _ready(sock: socket.socket, event: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(milliseconds(deadline - time.monotonic())))


def _reach(sock: socket.socket, ip: str, port: int, deadline: float) -> None:
    sock.setblocking(False)
    number = sock.connect_ex((ip, port))
    if number == errno.EINPROGRESS:
        if not _ready(sock, select.POLLOUT, deadline):
            raise AttemptFailed(SILENCE)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number == errno.ECONNREFUSED:
        raise AttemptFailed(NOBODY)
    if number in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        raise AttemptFailed(SILENCE)
    if number:
        raise OSError(number, errno.errorcode.get(number, str(number)))
    if sock.getsockname() == sock.getpeername():  # a port that nobody has, and the kernel gave it to ourselves
        raise AttemptFailed(NOBODY)


def _shake_hands(sock: socket.socket, credentials: Credentials | None, deadline: float) -> TrustedConnection:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.send(greeting(keys=credentials is not None))
    stage = Greeting()
    keys = None
    while keys is None:
        try:
            keys = stage.took(_some(sock, stage.target(), deadline))
        except ValueError as error:
            raise AttemptFailed(f"{FOREIGN}{error}.") from error
    if keys != (credentials is not None):
        raise AttemptFailed(MISMATCH)
    if credentials is None:
        return TrustedConnection(sock, None, None)
    handshake = Handshake(credentials)
    while not handshake.done:
        if said := handshake.outgoing():
            sock.sendall(said)  # less than any socket's buffer
        try:
            handshake.took(_some(sock, handshake.target(), deadline))
        except KeyRefused as error:
            raise AttemptFailed(REFUSED) from error
        except Unproven as error:
            _tell(sock, handshake.outgoing())
            raise AttemptFailed(UNPROVEN) from error
        except Untrusted as error:
            raise AttemptFailed(f"{FOREIGN}{error}.") from error
    if said := handshake.outgoing():
        sock.sendall(said)
    return TrustedConnection(sock, handshake.sealing, handshake.opening)


def _tell(sock: socket.socket, why: bytes) -> None:
    """The server should know why we leave."""
    try:
        sock.send(why)
    except OSError:
        return


def _some(sock: socket.socket, target: memoryview, deadline: float) -> int:
    """Bytes that came. Raises Failed."""
    while True:
        try:
            if nbytes := sock.recv_into(target):
                return nbytes
        except BlockingIOError:
            if not _ready(sock, select.POLLIN, deadline):
                raise AttemptFailed(SLOW) from None
            continue
        except OSError as error:
            raise AttemptFailed(BROKEN_OFF) from error
        raise AttemptFailed(BROKEN_OFF)
