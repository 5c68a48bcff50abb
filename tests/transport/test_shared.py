"""Shared memory between processes: death at any instant, nothing left behind, strangers turned away."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transport_children import PATIENCE, boxes, closed, hear, serve, worker

from evener import transport
from evener.errors import BindError, PeerGone, ProtocolError, Unavailable
from evener.transport import packets, shared, shared_channel
from evener.transport.channel import Arrived, Closed, Memory, Opened, Ranges, wait
from evener.transport.shared import SharedListener


@pytest.fixture
def listener() -> Iterator[SharedListener]:
    listener = shared.listen()
    yield listener
    listener.close()


def stranger(listener: SharedListener, packet: bytes = b"", fds: list[int] | None = None) -> socket.socket:
    """A raw connection, with a first packet if there is one."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(5.0)
    sock.connect(packets.abstract(listener.address))
    if packet:
        socket.send_fds(sock, [packet], fds or [])
    return sock


def offer(*parts: tuple[int, int], magic: bytes = packets.MAGIC, version: int = packets.VERSION) -> bytes:
    """A first packet with the same parts for both directions."""
    body = b"".join(packets.PART.pack(*part) for part in parts + parts)
    return packets.HEAD.pack(magic, version, len(parts)) + body


def drops(listener: SharedListener, sock: socket.socket) -> bool:
    """Does the listener close this connection, without an event?"""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if wait([listener], 0.02) and (events := listener.receive()):
            raise AssertionError(f"a stranger was taken for a peer: {events}")
        try:
            return sock.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            continue
        except ConnectionError:
            return True
    return False


def still_serves(listener: SharedListener) -> bool:
    channel = transport.connect(listener.address, *boxes(100))
    (opened,) = hear(listener, bool)
    listener.admit(opened.peer, (100,))
    channel.send(b"push", payload=True)
    assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
    listener.send(opened.peer, b"release", [memoryview(bytes(100))])
    assert channel.receive(PATIENCE) == b"release"
    channel.close()
    assert hear(listener, bool) == [Closed(opened.peer, "its process ended or closed the link")]
    return True


# Death


@pytest.mark.slow
def test_a_killed_worker_is_known_and_leaves_nothing(listener: SharedListener) -> None:
    before = set(os.listdir("/dev/shm"))
    gc.collect()  # else what other tests of this process left may go meanwhile
    mapped = Path("/proc/self/maps").read_text().count("memfd:evener")
    rng = random.Random(4)
    for _ in range(30):
        with worker(listener.address, nbytes := rng.choice([1, 40_000, 1_000_003])) as child:
            peer = serve(listener, nbytes, pushes=rng.randint(1, 40))
            if rng.random() < 0.5:  # it dies while it computes, else while it waits for us
                listener.send(peer, b"release", [memoryview(bytes(nbytes))])
            child.send_signal(signal.SIGKILL)
            hear(listener, closed(peer))  # nothing but the end of its link can tell: there are no heartbeats
    assert Path("/proc/self/maps").read_text().count("memfd:evener") == mapped
    deadline = time.monotonic() + PATIENCE  # other programs of this host come and go there
    while not set(os.listdir("/dev/shm")) <= before:
        assert time.monotonic() < deadline
    name = listener.address.removeprefix("shared:")
    assert name in Path("/proc/net/unix").read_text()
    listener.close()
    assert name not in Path("/proc/net/unix").read_text()


def test_a_killed_server_is_known_to_its_worker() -> None:
    program = """
import sys
from evener import transport
from evener.transport.channel import wait
listener = transport.listen("shared", sys.argv[1])
while wait([listener], 10):
    listener.receive()
"""
    address = f"shared:evener-test-{os.getpid()}"
    with worker(address, 0, program) as child:
        channel = transport.connect(address, *boxes(1000))
        channel.send(b"hello")
        child.send_signal(signal.SIGKILL)
        with pytest.raises(PeerGone, match=address):
            channel.receive(PATIENCE)
        channel.close()


def test_a_process_may_end_without_closing_anything(listener: SharedListener) -> None:
    code = "import sys; from evener import transport; from evener.transport.channel import Memory, Ranges;"
    code += "r = Ranges(Memory(8), ((0, 8),)); transport.listen('shared'); transport.connect(sys.argv[1], r, r)"
    subprocess.run([sys.executable, "-c", code, listener.address], check=True, timeout=100)
    assert [type(event) for event in hear(listener, lambda events: len(events) == 2)] == [Opened, Closed]


def test_a_server_that_lets_nobody_in_is_called_busy_and_not_absent(listener: SharedListener) -> None:
    words = Ranges(Memory(0), ())
    links = []
    with pytest.raises(Unavailable) as error:
        for _ in range(1000):
            links.append(transport.connect(listener.address, words, words, timeout=0.0))
    assert "too many wait there" in error.value.why
    for link in links:
        link.close()


def test_every_descriptor_is_given_back() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    listener = shared.listen()
    for _ in range(3):
        assert still_serves(listener)
        with stranger(listener, b"garbage") as sock:
            assert drops(listener, sock)
    channel = transport.connect(listener.address, *boxes(10))
    hear(listener, bool)  # opened, not admitted: the listener holds its descriptors
    channel.close()
    listener.close()
    assert len(os.listdir("/proc/self/fd")) == before


# Strangers


def test_another_user_is_refused_and_the_listener_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    users = iter([os.getuid() + 1])
    listener = SharedListener(
        f"shared:evener-user-{os.getpid()}",
        credentials=lambda sock: (77, next(users)) if users.__length_hint__() else packets.credentials_of(sock),
    )
    with contextlib.closing(listener):
        channel = transport.connect(listener.address, *boxes(8))
        assert wait([listener], 5.0) and listener.receive() == []
        assert "pid 77" in caplog.text and str(os.getuid() + 1) in caplog.text
        with pytest.raises(PeerGone):
            channel.receive(PATIENCE)
        channel.close()
        assert still_serves(listener)


def test_a_server_of_another_user_is_not_given_our_memory(
    listener: SharedListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_channel, "credentials_of", lambda sock: (77, os.getuid() + 1))
    with pytest.raises(ProtocolError, match="pid 77"):
        transport.connect(listener.address, *boxes(8))
    hear(listener, lambda events: not wait([listener], 0.0))


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "one byte": b"x",
    "other magic": offer(magic=b"EVSX"),
    "newer version": offer(version=packets.VERSION + 1),
    "parts without memory": offer((0, 8)),
    "fewer parts than promised": offer((0, 8))[:-16],
    "a list that is too long": packets.HEAD.pack(packets.MAGIC, packets.VERSION, 60_000),
    "more than a packet may hold": bytes(100_000),
}


@pytest.mark.parametrize("packet", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_dropped_and_the_listener_goes_on(listener: SharedListener, packet: bytes) -> None:
    with stranger(listener, packet) as sock:
        assert drops(listener, sock)
    assert still_serves(listener)


def test_random_packets_are_dropped_too(listener: SharedListener) -> None:
    rng = random.Random(9)
    memory = Memory(100)
    whole = offer((0, 8), (8, 8))
    for _ in range(200):
        packet = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            packet[rng.randrange(8)] = rng.randrange(256)
        if packet == whole:
            continue
        with stranger(listener, bytes(packet), [memory.fd] * rng.randint(0, 2)) as sock:
            assert drops(listener, sock)
    assert still_serves(listener)
    memory.close()


def test_memory_that_cannot_be_trusted_is_refused(listener: SharedListener) -> None:
    unsealed = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 4096)
    half = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(half, 4096)
    fcntl.fcntl(half, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    pipe, other = os.pipe()
    memory = Memory(4096)
    for fds, packet in [
        ([unsealed], offer((0, 8))),
        ([half], offer((0, 8))),
        ([pipe], offer((0, 8))),
        ([memory.fd, unsealed], offer((0, 8))),
        ([memory.fd], offer((4090, 8))),
        ([memory.fd], offer((0, 8), (5000, 0))),
        ([memory.fd], offer((0, 2**64 - 1))),
        ([memory.fd], offer((2**64 - 1, 2))),
        ([memory.fd, memory.fd, memory.fd], offer((0, 8))),
        ([memory.fd], offer()),
    ]:
        with stranger(listener, packet, fds) as sock:
            assert drops(listener, sock), (fds, packet)
    for fd in (unsealed, half, pipe, other):
        os.close(fd)
    memory.close()
    assert still_serves(listener)


def test_memory_sealed_against_writing_is_refused_when_it_would_be_mapped(listener: SharedListener) -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, packets.SEALS | fcntl.F_SEAL_WRITE)
    with stranger(listener, offer((0, 8)), [fd]):
        (opened,) = hear(listener, bool)
        with pytest.raises(ProtocolError, match="mapped"):
            listener.admit(opened.peer, (8,))
    os.close(fd)


@pytest.mark.parametrize("packet", [b"\2header", b"\xff", bytes(packets.MAX_PACKET + 1)])
def test_a_malformed_packet_later_on_closes_that_link(listener: SharedListener, packet: bytes) -> None:
    memory = Memory(8)
    with stranger(listener, offer((0, 8)), [memory.fd]) as sock:
        (opened,) = hear(listener, bool)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.send(packet)
        assert hear(listener, bool) == [Closed(opened.peer, "it sent a malformed packet")]
    memory.close()
    assert still_serves(listener)


def test_descriptors_sent_with_a_later_packet_do_not_pile_up(listener: SharedListener) -> None:
    memory = Memory(8)
    with stranger(listener, offer((0, 8)), [memory.fd]) as sock:
        (opened,) = hear(listener, bool)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(sock, [b"\0header"], [memory.fd, memory.fd])
        assert hear(listener, bool) == [Arrived(opened.peer, b"header", False)]
        assert len(os.listdir("/proc/self/fd")) == before
    memory.close()


def test_silent_strangers_make_room_and_cannot_keep_a_worker_out(listener: SharedListener) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(shared.MAX_STRANGERS + 20):
            stack.enter_context(stranger(listener))
            if wait([listener], 0.0):
                assert listener.receive() == []
        assert still_serves(listener)
    assert still_serves(listener)


def test_too_many_strangers_wait_outside_until_others_are_admitted(listener: SharedListener) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(shared.MAX_STRANGERS + 5):
            stack.enter_context(stranger(listener, offer()))
        first = hear(listener, lambda events: len(events) >= shared.MAX_STRANGERS)
        assert len(first) == shared.MAX_STRANGERS
        assert not wait([listener], 0.02), "it does not even look at the others"
        for event in first:
            listener.admit(event.peer, ())
        assert len(hear(listener, lambda events: len(events) >= 5)) == 5


def test_a_full_table_of_descriptors_does_not_end_the_listener(
    listener: SharedListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Door:
        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    real = listener._door
    monkeypatch.setattr(listener, "_door", Door())
    with stranger(listener):
        assert wait([listener], 5.0)
        assert listener.receive() == []
    monkeypatch.setattr(listener, "_door", real)
    assert still_serves(listener)


def test_links_without_payload_send_no_memory(listener: SharedListener) -> None:
    empty = Ranges(Memory(0), ())
    with contextlib.closing(transport.connect(listener.address, empty, empty)):
        (opened,) = hear(listener, bool)
        assert listener._peers[opened.peer].offer.fds == []


def test_an_address_that_the_kernel_refuses_is_a_bind_error() -> None:
    with pytest.raises(BindError, match="cannot listen"):
        shared.listen("shared:" + "x" * 200)


def test_credentials_are_those_of_the_kernel() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        assert packets.credentials_of(here) == (os.getpid(), os.getuid())
        assert struct.calcsize("3i") == 12
