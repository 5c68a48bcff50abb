"""A worker's end of a shared link: how it is made, and the two calls of each step."""

from __future__ import annotations

import os
import select
import socket
import time

from evener.errors import PeerGone, ProtocolError, Unavailable
from evener.transport.channel import SEND_SECONDS, Ranges, check_header, check_ranges, milliseconds
from evener.transport.packets import (
    MAX_PACKET,
    PAYLOAD,
    PLAIN,
    SOCKET_BUFFER,
    abstract,
    credentials_of,
    read_packet,
    send_offer,
)


class SharedChannel:
    """A worker's end. Its memory is the payload, so `send` and `receive` move nothing but headers."""

    def __init__(self, address: str, sock: socket.socket) -> None:
        self._address, self._socket = address, sock
        self._buffer = bytearray(MAX_PACKET + 1)
        self._view = memoryview(self._buffer)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._gone: PeerGone | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def pending(self) -> bool:
        return self._gone is not None

    def send(self, header: bytes, *, payload: bool = False) -> None:
        check_header(header)
        packet = (PAYLOAD if payload else PLAIN) + header
        try:
            self._socket.send(packet)
        except BlockingIOError:
            self._send_slowly(packet)
        except OSError as error:
            raise self._gone or PeerGone(f"{self._address} closed this link.") from error

    def _send_slowly(self, packet: bytes) -> None:
        """The server has not read for a while: give it time, but not for ever."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        deadline = time.monotonic() + SEND_SECONDS
        while poll.poll(milliseconds(deadline - time.monotonic())):
            try:
                self._socket.send(packet)
                return
            except BlockingIOError:
                continue
            except OSError as error:
                raise PeerGone(f"{self._address} closed this link.") from error
        raise PeerGone(f"{self._address} has not read its messages for {SEND_SECONDS:g} s.")

    def receive(self, timeout: float) -> bytes | None:
        if self._gone is not None:
            raise self._gone
        if not self._poll.poll(milliseconds(timeout)):
            return None
        nbytes = read_packet(self._socket, self._buffer)
        if nbytes is None:
            return None
        if not 0 < nbytes <= MAX_PACKET:
            self._gone = PeerGone(f"{self._address} closed this link.")
            raise self._gone
        return bytes(self._view[1:nbytes])

    def close(self) -> None:
        self._gone = PeerGone("this channel was closed here.")
        self._socket.close()


def connect(address: str, outbox: Ranges, inbox: Ranges, *, timeout: float = 10.0) -> SharedChannel:
    """Connect to a listener of this host and give it the memory of both boxes."""
    check_ranges(outbox, inbox)
    deadline = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(abstract(address))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            _check_server(address, sock)
            send_offer(sock, outbox, inbox)
            return SharedChannel(address, sock)
        except OSError as error:
            sock.close()
            if time.monotonic() >= deadline:
                busy = isinstance(error, BlockingIOError)
                seen = "too many wait there to be let in" if busy else "no process of this host takes a link there"
                raise Unavailable(
                    f"{address} has not answered for {timeout:g} s.",
                    why=f"{seen} ({error}).",
                    fix="check that the server runs, on this host, and that the address is the one it published.",
                ) from error
        except BaseException:
            sock.close()
            raise
        time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))


def _check_server(address: str, sock: socket.socket) -> None:
    """Anyone may bind an abstract name, so make sure of the user before we hand over our memory."""
    pid, uid = credentials_of(sock)
    if uid != os.getuid():
        raise ProtocolError(
            f"{address} belongs to pid {pid} of user {uid}, not {os.getuid()}.",
            why="whoever listens there may read and write the memory of this worker.",
            fix="use the address that your own server published.",
        )
