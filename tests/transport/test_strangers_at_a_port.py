"""Strangers at a TCP port, with keys and without: half-open connections, crowds, and sessions that are played again.

What else they say to it is in `test_tcp` and `test_keys`; many thousand frames more in `tests/properties`. Time is a
number here: what is overdue is so when the test says it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transport_children import PATIENCE, closed, connected, hear

from evener.transport import tcp, tcp_limits, tcp_reception
from evener.transport.channel import Arrived, Closed, Opened, wait
from evener.transport.keys import Keys, load, new
from evener.transport.tcp import TcpListener
from evener.transport.tcp_limits import HANDSHAKE_SECONDS, Caps
from evener.transport.tcp_wire import greeting

Both = tuple[TcpListener, Keys | None]


@pytest.fixture(params=["no keys", "keys"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    """A listener, and the keys of a worker that belongs."""
    mine = theirs = None
    if request.param == "keys":
        new(tmp_path / "keys", ["ps-0", "worker-0"])
        mine, theirs = load(tmp_path / "keys", "ps-0"), load(tmp_path / "keys", "worker-0")
    listener = tcp.listen(keys=mine, insecure=mine is None)
    yield listener, theirs
    listener.close()


def port_of(listener: TcpListener) -> int:
    return int(listener.address.rpartition(":")[2])


def session(listener: TcpListener, keys: Keys | None, address: str = "") -> None:
    """A worker comes, is admitted, pushes, is answered and leaves."""
    channel, opened = connected(listener, 100, address, keys=keys)
    listener.admit(opened.peer, (100,))
    channel.send(b"push", payload=True)
    assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
    listener.send(opened.peer, b"release", [memoryview(bytes(100))])
    assert channel.receive(PATIENCE) == b"release"
    channel.close()
    hear(listener, closed(opened.peer))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def until(listener: TcpListener, condition: Callable[[], bool]) -> None:
    """Serve, and hear nothing, until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        if wait([listener], 0.005):
            assert listener.receive() == []


@contextlib.contextmanager
def crowd(listener: TcpListener, count: int, words: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(stranger) for _ in range(count) if (stranger := said_by_stranger(listener, words))]


def said_by_stranger(listener: TcpListener, words: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port_of(listener)), PATIENCE)
    sock.sendall(words)
    return sock


HALVES = {
    "nothing": b"",
    "a byte": b"E",
    "a greeting": greeting(keys=False),
    "a secure greeting": greeting(keys=True),
    "half a record": greeting(keys=True) + b"\x16\x03\x01\x01\0half",
}


@pytest.mark.parametrize("words", HALVES.values(), ids=HALVES.keys())
def test_half_open_connections_keep_no_worker_out_and_are_cut_when_their_time_is_over(
    door: Both, words: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, keys = door
    session(listener, keys)
    before = descriptors()
    books = listener._reception.door
    with crowd(listener, 100, words):
        session(listener, keys)
        until(listener, lambda: books.half_open in (0, 100))  # 0: with these words they were refused
        monkeypatch.setattr(listener, "_clock", lambda: time.monotonic() + HANDSHAKE_SECONDS)
        until(listener, lambda: not books.half_open)
        monkeypatch.undo()
        session(listener, keys)
    until(listener, lambda: not listener._links and not listener._farewells)
    assert descriptors() <= before
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 12


def test_a_crowd_beyond_the_limit_loses_its_oldest_and_a_worker_still_gets_in(door: Both) -> None:
    listener, keys = door
    books = listener._reception.door
    books.caps = Caps(half_open=20, half_open_each=10, waiting=4, waiting_each=4)
    with crowd(listener, 50, b"E") as sockets:
        until(listener, lambda: gone(sockets) == 40)
        assert books.half_open == len(listener._links) == 10
        session(listener, keys)
    until(listener, lambda: not listener._links)


def gone(sockets: list[socket.socket]) -> int:
    """How many of these connections the server has closed."""
    count = 0
    for sock in sockets:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                count += not sock.recv(1)
            except ConnectionError:
                count += 1
    return count


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Lowers the limit of this process so that it may open just so many more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:

        def lower(more: int) -> None:
            gc.collect()  # else what other tests have left is closed later, and makes room
            highest = max(map(int, os.listdir("/proc/self/fd")))
            while (fd := os.open("/dev/null", os.O_RDONLY)) <= highest:  # leave no gaps
                stack.callback(os.close, fd)
            os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + more, limits[1]))

        yield lower
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_descriptors_nobody_is_taken_and_nothing_spins_until_there_are_some(
    few_descriptors: Callable[[int], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(tcp.listen(insecure=True)) as listener:
        ends = [socket.socket() for _ in range(5)]
        few_descriptors(0)
        for sock in ends:
            sock.connect(("127.0.0.1", port_of(listener)))
        monkeypatch.setattr(listener, "_clock", lambda: 0.0)  # so that it does not try again by itself
        assert wait([listener], PATIENCE)
        assert listener.receive() == []
        assert "Too many open files" in caplog.text
        assert listener._reception.paused and not wait([listener], 0.05)
        tcp_reception.raise_descriptors()
        monkeypatch.undo()
        until(listener, lambda: listener._reception.door.half_open == 5)
        for sock in ends:
            sock.close()
        until(listener, lambda: not listener._links)
        session(listener, None)


def test_some_descriptors_are_no_connections(
    few_descriptors: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tcp_reception, "raise_descriptors", lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    # The strangers' own ends are of this process, too. It may close some that other tests have left, but not so many.
    few_descriptors(tcp_limits.RESERVE + 60)
    with contextlib.closing(tcp.listen(insecure=True)) as listener, crowd(listener, 50, b"E") as sockets:
        books = listener._reception.door
        books.caps = Caps()
        until(listener, lambda: books.half_open + gone(sockets) == 50 and books.half_open > 0)
        assert books.half_open < 50
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(open("/proc/self/stat"))


def test_a_server_asks_for_as_many_descriptors_as_it_may_have(few_descriptors: Callable[[int], None]) -> None:
    few_descriptors(10)
    tcp.listen(insecure=True).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == min(hard, tcp_limits.MOST_DESCRIPTORS) or hard == resource.RLIM_INFINITY


class Tap:
    """A TCP proxy that remembers what the client said."""

    def __init__(self, port: int, at_once: int = 1 << 16) -> None:
        self.heard = b""
        self._port, self._at_once = port, at_once
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
            while data := source.recv(self._at_once):
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
    assert len(tap.heard) > 100

    with said_by_stranger(listener, tap.heard) as sock:
        if keys is None:
            opened, ended = hear(listener, lambda events: len(events) == 2)
            assert isinstance(opened, Opened) and isinstance(ended, Closed)
            assert "payload before it was admitted" in ended.reason
        else:
            until(listener, lambda: gone([sock]) == 1)
            assert not listener._peers
    session(listener, keys)


def test_a_session_cut_at_any_byte_leaves_nothing_behind(door: Both) -> None:
    """By a farewell or by a reset; and nobody is a peer who did not come as far as that."""
    listener, keys = door
    tap = Tap(port_of(listener))
    session(listener, keys, tap.address)
    tap.close()
    before = descriptors()
    for at in range(0, len(tap.heard), 1 if keys is None else 7):
        sock = said_by_stranger(listener, tap.heard[:at])
        if at % 2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        while wait([listener], 0.0):
            assert keys is None or listener.receive() == []
            listener.receive()
    deadline = time.monotonic() + PATIENCE
    while listener._links or listener._farewells:
        assert time.monotonic() < deadline
        if wait([listener], 0.005):
            listener.receive()
    assert descriptors() <= before and not listener._peers
    session(listener, keys)


def test_a_worker_that_says_one_byte_at_a_time_is_served_as_any_other(door: Both) -> None:
    listener, keys = door
    tap = Tap(port_of(listener), at_once=1)
    session(listener, keys, tap.address)
    tap.close()
