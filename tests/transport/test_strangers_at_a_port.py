"""Strangers at a TCP port, with keys and without: half-open connections, and sessions that are played again.

What else they say to it is in `test_zeromq` and `test_keys`; many thousand frames more in `tests/properties`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from evener.transport.zeromq import ZeroMQListener
from transport_children import PATIENCE, boxes, closed, hear

from evener.transport import zeromq, zeromq_wire
from evener.transport.channel import Arrived, Closed, Opened, wait
from evener.transport.keys import Keys, load, new

Both = tuple[ZeroMQListener, Keys | None]


@pytest.fixture(params=["no keys", "keys"])
def door(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    """A listener, and the keys of a worker that belongs. Handshakes have 0.5 s instead of 5."""
    monkeypatch.setitem(zeromq_wire.SETTINGS, zmq.HANDSHAKE_IVL, 500)
    mine = theirs = None
    if request.param == "keys":
        new(tmp_path / "keys", ["ps-0", "worker-0"])
        mine, theirs = load(tmp_path / "keys", "ps-0"), load(tmp_path / "keys", "worker-0")
    listener = zeromq.listen(keys=mine)
    yield listener, theirs
    listener.close()


def port_of(listener: ZeroMQListener) -> int:
    return int(listener.address.rpartition(":")[2])


def session(listener: ZeroMQListener, keys: Keys | None, address: str = "") -> None:
    """A worker comes, is admitted, pushes, is answered and leaves."""
    channel = zeromq.connect(address or listener.address, *boxes(100), timeout=PATIENCE, keys=keys)
    (opened,) = hear(listener, lambda events: any(isinstance(event, Opened) for event in events))
    listener.admit(opened.peer, (100,))
    channel.send(b"push", payload=True)
    assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
    listener.send(opened.peer, b"release", [memoryview(bytes(100))])
    assert channel.receive(PATIENCE) == b"release"
    channel.close()
    hear(listener, closed(opened.peer))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"\xff", b"\xff" + bytes(8) + b"\x7f\x03"], ids=["nothing", "a byte", "eleven"])
def test_two_hundred_half_open_connections_keep_no_worker_out_and_are_cut(
    door: Both, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    listener, keys = door
    session(listener, keys)  # what is made once is made now
    before = descriptors()
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(listener)), 5.0)) for _ in range(200)
        ]
        for sock in crowd:
            sock.sendall(said)
        session(listener, keys)
        assert not listener._links or not listener._peers
        for sock in crowd:  # each is cut by the server: its descriptor is given back
            sock.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1000):
                    pass
        session(listener, keys)
    deadline = time.monotonic() + PATIENCE
    while descriptors() > before + 2 or listener._live:
        assert time.monotonic() < deadline, (descriptors(), before, listener._live)
        if wait([listener], 0.05):
            assert listener.receive() == []
    session(listener, keys)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 12


class Tap:
    """A TCP proxy that remembers what the client said."""

    def __init__(self, port: int) -> None:
        self.heard = b""
        self._port = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._door.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._door.accept()
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            back = threading.Thread(target=self._copy, args=(server, client, False))
            back.start()
            self._copy(client, server, True)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket, remember: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if remember:
                    self.heard += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._thread.join()
        self._door.close()


def test_the_bytes_of_a_session_played_again_are_no_member(door: Both) -> None:
    """With keys they are nothing at all. Without, they are a stranger's first words, and its payload is not taken."""
    listener, keys = door
    tap = Tap(port_of(listener))
    session(listener, keys, tap.address)
    tap.close()
    assert len(tap.heard) > 200

    with socket.create_connection(("127.0.0.1", port_of(listener)), 5.0) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(tap.heard[:64])
        # Without keys the server says READY unasked after its greeting; libzmq cuts who says a message before that.
        with sock.makefile("rb") as answer:
            assert len(answer.read(64 if keys else 65)) >= 64
        sock.sendall(tap.heard[64:])
        if keys is None:
            opened, gone = hear(listener, lambda events: len(events) == 2)
            assert isinstance(opened, Opened) and isinstance(gone, Closed)
            assert "payload before it was admitted" in gone.reason
        else:
            with contextlib.suppress(ConnectionError):
                while sock.recv(1000):  # until the server has cut it
                    pass
            while wait([listener], 0.1):
                assert listener.receive() == []
            assert not listener._links and not listener._peers
    session(listener, keys)


def test_a_handshake_may_not_be_larger_than_a_frame(door: Both) -> None:
    """Before a key is proven one frame is all that a connection can make us keep."""
    listener, keys = door
    name = b"CURVE" if keys else b"NULL"
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + name.ljust(20, b"\0") + bytes(32)
    with socket.create_connection(("127.0.0.1", port_of(listener)), 5.0) as sock:
        sock.sendall(greeting + b"\x06" + (2 << 20).to_bytes(8, "big") + b"\x05HELLO")
        sock.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            while sock.recv(1000):
                pass
    while wait([listener], 0.05):
        assert listener.receive() == []
    session(listener, keys)
