"""ZeroMQ between processes: death, strangers at the port, addresses, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import http.client
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from transport_children import NEVER, PATIENCE, boxes, closed, hear, serve, worker

from evener import transport
from evener.errors import BindError, ConfigError, PeerGone, Unavailable
from evener.transport import zeromq, zeromq_wire
from evener.transport.channel import MAX_PARTS, Arrived, Closed, Opened, wait
from evener.transport.zeromq import ZeroMQListener
from evener.transport.zeromq_wire import OPEN, PAYLOAD, PLAIN, first_frame, pack_sizes


@pytest.fixture
def listener() -> Iterator[ZeroMQListener]:
    listener = zeromq.listen()
    yield listener
    listener.close()


@pytest.fixture
def patient() -> Iterator[ZeroMQListener]:
    """Another, to which silence says nothing."""
    listener = zeromq.listen(heartbeat=NEVER)
    yield listener
    listener.close()


def port_of(listener: ZeroMQListener) -> int:
    return int(listener.address.rpartition(":")[2])


@contextlib.contextmanager
def dealer(listener: ZeroMQListener, *messages: list[bytes]) -> Iterator[zmq.Socket[bytes]]:
    """A ZeroMQ peer that is none of ours, and what it says."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.linger = 0
    sock.connect(listener.address)
    for message in messages:
        sock.send_multipart(message)
    try:
        yield sock
    finally:
        sock.close()
        context.term()


def still_serves(listener: ZeroMQListener) -> bool:
    channel = transport.connect(listener.address, *boxes(100))
    (opened,) = hear(listener, bool)
    assert isinstance(opened, Opened)
    listener.admit(opened.peer, (100,))
    channel.send(b"push", payload=True)
    assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
    listener.send(opened.peer, b"release", [memoryview(bytes(100))])
    assert channel.receive(PATIENCE) == b"release"
    channel.close()
    assert [type(event) for event in hear(listener, bool)] == [Closed]
    return True


def listening_addresses(port: int) -> set[str]:
    """Local addresses, as the kernel prints them, that listen on a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, _, state = line.split()[1:4]
            address, _, number = local.partition(":")
            if int(number, 16) == port and state == "0A":
                found.add(address)
    return found


# Death


def test_a_killed_worker_is_known_without_a_heartbeat(patient: ZeroMQListener) -> None:
    rng = random.Random(5)
    for _ in range(8):
        with worker(patient.address, nbytes := rng.choice([1, 40_000, 3_000_001])) as child:
            peer = serve(patient, nbytes, pushes=rng.randint(1, 20))
            if rng.random() < 0.5:  # it dies while it computes, else while it waits for us
                patient.send(peer, b"release", [memoryview(bytes(nbytes))])
            child.send_signal(signal.SIGKILL)
            hear(patient, closed(peer))


def test_a_killed_server_is_known_to_its_worker_without_a_heartbeat() -> None:
    program = """
import sys
from evener import transport
from evener.transport.channel import wait
listener = transport.listen("zeromq", sys.argv[1])
while wait([listener], 10):
    listener.receive()
"""
    probe = zeromq.listen()
    address = probe.address
    probe.close()
    with worker(address, 0, program) as child:
        channel = transport.connect(address, *boxes(1000), timeout=PATIENCE, heartbeat=NEVER)
        channel.send(b"hello")
        child.send_signal(signal.SIGKILL)
        with pytest.raises(PeerGone, match=address):
            channel.receive(PATIENCE)
        with pytest.raises(PeerGone):
            channel.send(b"hello")
        channel.close()


@pytest.mark.slow
def test_a_stopped_worker_is_known_by_its_missing_heartbeats(listener: ZeroMQListener) -> None:
    with worker(listener.address, 1000) as child:
        peer = serve(listener, 1000, pushes=3)
        child.send_signal(signal.SIGSTOP)
        hear(listener, closed(peer))  # its kernel keeps the connection, so nothing else can tell


def test_a_peer_whose_descriptor_is_used_again_by_the_next_is_reported_and_the_next_is_not(
    listener: ZeroMQListener,
) -> None:
    """Nobody reads the listener meanwhile, so all news of both lie in its queues at once."""
    first = transport.connect(listener.address, *boxes(8))
    (opened,) = hear(listener, bool)
    for _ in range(5):
        first.close()
        second = transport.connect(listener.address, *boxes(8))
        events = hear(listener, lambda events: len(events) == 2)
        assert Closed in [type(event) for event in events]
        assert {event.peer for event in events if isinstance(event, Closed)} == {opened.peer}
        (opened,) = [event for event in events if isinstance(event, Opened)]
        listener.admit(opened.peer, (8,))
        listener.send(opened.peer, b"alive")
        assert second.receive(PATIENCE) == b"alive"
        first = second
    first.close()
    hear(listener, closed(opened.peer))


def test_peers_that_came_and_went_unseen_leave_no_trace(listener: ZeroMQListener) -> None:
    for _ in range(5):
        channel = transport.connect(listener.address, *boxes(8))
        channel.send(b"hello")
        channel.close()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and (wait([listener], 0.1) or listener._live):
        listener.receive()
    assert not listener._live and not listener._links and not listener._peers and not listener._by_fd
    assert still_serves(listener)


def test_a_process_may_end_without_closing_anything(listener: ZeroMQListener) -> None:
    code = "import sys; from evener import transport; from evener.transport.channel import Memory, Ranges;"
    code += (
        "r = Ranges(Memory(8), ((0, 8),)); a = transport.listen('zeromq'); b = transport.connect(sys.argv[1], r, r);"
    )
    code += "b.send(b'x', payload=False)"
    subprocess.run([sys.executable, "-c", code, listener.address], check=True, timeout=100)
    assert still_serves_after_drain(listener)


def still_serves_after_drain(listener: ZeroMQListener) -> bool:
    while wait([listener], 0.1):
        listener.receive()
    return still_serves(listener)


def test_close_leaves_no_thread_no_port_and_no_descriptor() -> None:
    assert still_serves_once()  # whatever ZeroMQ keeps for the whole process is made now
    gc.collect()  # and what other tests held is let go
    threads, files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        port = still_serves_once()
        assert listening_addresses(port) == set()
    assert len(os.listdir("/proc/self/task")) == threads
    assert len(os.listdir("/proc/self/fd")) == files


def still_serves_once() -> int:
    listener = zeromq.listen()
    channel = transport.connect(listener.address, *boxes(2_000_000))
    (opened,) = hear(listener, bool)
    listener.admit(opened.peer, (2_000_000,))
    channel.send(b"push", payload=True)
    hear(listener, bool)
    channel.close()
    listener.close()
    return port_of(listener)


def test_close_does_not_wait_for_a_peer_that_does_not_read() -> None:
    listener = zeromq.listen()
    channel = transport.connect(listener.address, *boxes(3_000_000))
    (opened,) = hear(listener, bool)
    listener.admit(opened.peer, (3_000_000,))
    for _ in range(40):  # more than the kernel's buffers and the channel's queue hold
        listener.send(opened.peer, b"", [memoryview(bytes(3_000_000))])
    listener.close()  # or it would wait until the test's time is over
    channel.close()


# Addresses


def test_by_default_only_this_host_reaches_the_port(listener: ZeroMQListener) -> None:
    assert listening_addresses(port_of(listener)) == {"0100007F"}


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port} is taken") as error:
            zeromq.listen(f"tcp://127.0.0.1:{port}")
        assert "choose another" in error.value.fix


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_host_is_named(host: str) -> None:
    with pytest.raises(BindError, match=host):
        zeromq.listen(f"tcp://{host}:0", insecure=True)


@pytest.mark.parametrize("address", ["tcp://*:0", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://a b", "tcp://:1"])
def test_what_is_no_address_to_listen_on_is_refused(address: str) -> None:
    with pytest.raises((ConfigError, BindError)):
        zeromq.listen(address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:99999", "tcp://:5"])
def test_what_is_no_address_to_connect_to_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        transport.connect(address, *boxes(8), timeout=5.0)


def test_nobody_there_is_told_with_the_reason() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, not listening: refused
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match=address) as error:
            transport.connect(address, *boxes(8), timeout=NEVER, absent=0.0)  # told as soon as it is known
        assert "no process listens" in error.value.why
        silent.listen()  # takes connections, never says a word
        with pytest.raises(Unavailable, match=address) as error:
            transport.connect(address, *boxes(8), timeout=0.2)
        assert "no packet came back" in error.value.why
        with pytest.raises(Unavailable, match=r"has not answered for \d+\.\d s") as error:
            transport.connect(address, *boxes(8), timeout=0.4, absent=0.0)
        assert "for 0.0 s" not in error.value.what  # somebody does listen: that is worth its time
    with pytest.raises(Unavailable) as error:
        transport.connect("tcp://no-such-host.invalid:1", *boxes(8), timeout=0.1)
    assert "does not resolve" in error.value.why


def test_a_server_of_another_kind_is_told_apart() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    with connection:
                        connection.sendall(b"220 mail.example.org ESMTP\r\n" * 10)
                        connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable) as error:
            transport.connect(f"tcp://127.0.0.1:{other.getsockname()[1]}", *boxes(8), timeout=0.3)
        other.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert "does not speak ZeroMQ" in error.value.why or "no packet" in error.value.why


# Strangers


def test_bytes_of_any_kind_at_the_port_do_not_disturb_a_real_peer(listener: ZeroMQListener) -> None:
    rng = random.Random(6)
    for round_ in range(30):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port_of(listener)), 5.0) as sock:
            if round_ % 3:  # else a port scan: connect and go
                sock.sendall(rng.randbytes(rng.choice([1, 10, 64, 1000, 100_000])))
        while wait([listener], 0.0):
            assert listener.receive() == []
    for method in ("GET", "POST", "CONNECT"):
        client = http.client.HTTPConnection("127.0.0.1", port_of(listener), timeout=0.2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            client.request(method, "/", b"x" * 1000)
            client.getresponse()
        client.close()
    while wait([listener], 0.1):
        assert listener.receive() == []
    assert still_serves(listener)


def test_an_old_zeromq_peer_that_brings_its_own_name_is_ignored(
    listener: ZeroMQListener, caplog: pytest.LogCaptureFixture
) -> None:
    """ZMTP 1.0 has no handshake, so these bytes reach the application as a message."""
    with socket.create_connection(("127.0.0.1", port_of(listener)), 5.0) as sock:
        sock.sendall(b"\x01\x00" + b"\x04\x00abc" * 3)
        deadline = time.monotonic() + PATIENCE
        while "older than ZeroMQ 3" not in caplog.text:
            assert time.monotonic() < deadline
            if wait([listener], 0.1):
                assert listener.receive() == []
    assert still_serves_after_drain(listener)
    assert not listener._links


OPENING = [first_frame(OPEN, pack_sizes([3_000_000]))]
BAD_FIRST = {
    "no magic": [b"hello"],
    "empty": [b""],
    "other magic": [b"EVXX" + OPENING[0][4:]],
    "newer version": [OPENING[0][:4] + b"\x09" + OPENING[0][5:]],
    "wrong length": [OPENING[0] + b"x"],
    "half a size": [first_frame(OPEN, b"1234567")],
    "too many sizes": [first_frame(OPEN, pack_sizes([8] * (MAX_PARTS + 1)))],
    "a word before it opens": [first_frame(PLAIN, b"hello")],
    "a payload before it opens": [first_frame(PAYLOAD, b"push"), b"x" * 100],
    "a frame too many": [OPENING[0], b"x"],
    "a hundred thousand frames": [b"x"] * 100_000,
    "a huge first frame": [b"EVZQ" * 50_000],
}


@pytest.mark.parametrize("message", BAD_FIRST.values(), ids=BAD_FIRST.keys())
def test_a_first_message_that_opens_no_link_is_dropped_and_logged_once(
    listener: ZeroMQListener, message: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with dealer(listener, message, message, OPENING) as sock:
        while not sock.poll(1):  # it is told why
            if wait([listener], 0.01):
                assert listener.receive() == []
        assert b"it got" in sock.recv()
        while wait([listener], 0.02):
            assert listener.receive() == []
        assert still_serves(listener)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "127.0.0.1" in caplog.text


GOOD = first_frame(PAYLOAD, b"push")
CHUNK = zeromq_wire.CHUNK
WHOLE, REST = [bytes(CHUNK)] * (3_000_000 // CHUNK), 3_000_000 % CHUNK
BAD_LATER = {
    "a second opening": OPENING,
    "no frames": [GOOD],
    "a frame too few": [GOOD, *WHOLE],
    "a frame too many": [GOOD, *WHOLE, bytes(REST), b"x"],
    "many frames too many": [GOOD, *[bytes(1000)] * 10_000],
    "a short frame": [GOOD, *WHOLE, bytes(REST - 1)],
    "one long frame": [GOOD, bytes(3_000_000)],
    "frames of other sizes": [GOOD, *WHOLE[2:], bytes(CHUNK + 1), bytes(CHUNK - 1), bytes(REST)],
    "a word with a payload": [first_frame(PLAIN, b"word"), bytes(1000)],
    "a kind that does not exist": [first_frame(7, b"")],
    "a header that is too long": [first_frame(PLAIN, bytes(200_000))],
}


@pytest.mark.parametrize("message", BAD_LATER.values(), ids=BAD_LATER.keys())
def test_a_wrong_message_of_an_admitted_peer_closes_it_and_writes_nothing(
    listener: ZeroMQListener, message: list[bytes]
) -> None:
    with dealer(listener, OPENING) as sock:
        (opened,) = hear(listener, bool)
        listener.admit(opened.peer, (3_000_000,))
        sock.send_multipart([GOOD, *zeromq_wire.chunks([memoryview(b"7" * 3_000_000)])])
        assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
        inbox = listener.inbox(opened.peer)[0]
        sock.send_multipart(message)
        sock.send(first_frame(PLAIN, b"and another"))
        (event,) = hear(listener, bool)
        assert isinstance(event, Closed) and event.peer == opened.peer
        assert bytes(inbox) == b"7" * 3_000_000
        while wait([listener], 0.02):
            assert listener.receive() == []
    assert still_serves_after_drain(listener)


def test_a_frame_above_the_limit_ends_the_connection(listener: ZeroMQListener) -> None:
    with dealer(listener, OPENING) as sock:
        (opened,) = hear(listener, bool)
        sock.send_multipart([GOOD, bytes(5 << 20)])
        hear(listener, closed(opened.peer))
    assert still_serves_after_drain(listener)


def test_a_flood_of_strangers_is_refused_beyond_a_limit(
    listener: ZeroMQListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq, "MAX_STRANGERS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(dealer(listener, OPENING))
        opened = hear(listener, lambda events: len(events) == 3)
        with dealer(listener, OPENING) as late:
            while not late.poll(1):
                if wait([listener], 0.01):
                    assert listener.receive() == []
            assert b"wait to be admitted" in late.recv()
        listener.admit(opened[0].peer, (3_000_000,))
        assert still_serves_after_drain(listener)


def test_a_server_that_talks_nonsense_is_left() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with contextlib.closing(context.socket(zmq.ROUTER)) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        for frames in ([b"nonsense"], [first_frame(PAYLOAD, b""), b"x"], [first_frame(9, b"")]):
            channel = transport.connect(f"tcp://127.0.0.1:{port}", *boxes(1000))
            peer, _ = router.recv_multipart()
            router.send_multipart([peer, *frames])
            with pytest.raises(PeerGone, match="no server of ours"):
                channel.receive(PATIENCE)
            channel.close()
    context.term()
