"""TCP between processes: death, strangers at the port, addresses, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import http.client
import logging
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transport_children import NEVER, PATIENCE, boxes, closed, connected, hear, serve, worker

from evener import transport
from evener.errors import BindError, ConfigError, PeerGone, Unavailable
from evener.transport import tcp, tcp_limits, tcp_link, tcp_silence
from evener.transport.channel import MAX_HEADER, MAX_PARTS, Arrived, Closed, Opened, wait
from evener.transport.tcp import TcpListener
from evener.transport.tcp_wire import BYE, HEAD, OPEN, PAYLOAD, PLAIN, filling, greeting, pack_sizes


@pytest.fixture
def listener() -> Iterator[TcpListener]:
    listener = tcp.listen(insecure=True)
    yield listener
    listener.close()


@pytest.fixture
def patient() -> Iterator[TcpListener]:
    """Another, to which silence says nothing."""
    listener = tcp.listen(insecure=True, heartbeat=NEVER)
    yield listener
    listener.close()


def port_of(listener: TcpListener) -> int:
    return int(listener.address.rpartition(":")[2])


def said(kind: int, header: bytes, payload: bytes = b"") -> bytes:
    filled = header + bytes(filling(len(header))) if kind == PAYLOAD else header
    return HEAD.pack(kind, len(header)) + filled + payload


HELLO = greeting(keys=False)


@contextlib.contextmanager
def stranger(listener: TcpListener, *words: bytes) -> Iterator[socket.socket]:
    """A connection that is none of ours, and what it says first."""
    with socket.create_connection(("127.0.0.1", port_of(listener)), PATIENCE) as sock:
        for word in words:
            sock.sendall(word)
        yield sock


def heard_by(sock: socket.socket, listener: TcpListener) -> bytes:
    """All that a stranger is told until it is cut; the listener has nothing to tell meanwhile."""
    told = b""
    sock.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if wait([listener], 0.005):
            assert listener.receive() == []
        try:
            more = sock.recv(1 << 16)
        except BlockingIOError:
            continue
        except ConnectionError:
            return told
        if not more:
            return told
        told += more
    raise AssertionError("it was not cut")


def settled(listener: TcpListener) -> bool:
    """Nothing is left of those who are gone."""
    deadline = time.monotonic() + PATIENCE
    while listener._links or listener._farewells or listener._reception.door.half_open:
        assert time.monotonic() < deadline, (listener._links, len(listener._farewells))
        if wait([listener], 0.01):
            listener.receive()
    return not listener._peers and not listener._reception.door.waiting


def still_serves(listener: TcpListener) -> bool:
    channel, opened = connected(listener, 100)
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


def test_a_killed_worker_is_known_without_a_heartbeat(patient: TcpListener) -> None:
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
listener = transport.listen("tcp", sys.argv[1], insecure=True)
while wait([listener], 10):
    listener.receive()
"""
    probe = tcp.listen(insecure=True)
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


def test_a_worker_that_is_stopped_is_not_taken_for_dead(listener: TcpListener) -> None:
    """Its kernel answers for it: whether to wait for it is not a matter of links. Its push arrives when it goes on."""
    with worker(listener.address, 1000) as child:
        peer = serve(listener, 1000, pushes=3)
        child.send_signal(signal.SIGSTOP)
        listener.send(peer, b"release", [memoryview(bytes(1000))])
        link = listener._peers[peer]
        assert not tcp_silence.silent(link.sock, 0.0)
        child.send_signal(signal.SIGCONT)
        assert hear(listener, bool) == [Arrived(peer, b"push", True)]


def test_a_peer_whose_descriptor_is_used_again_by_the_next_is_reported_and_the_next_is_not(
    listener: TcpListener,
) -> None:
    first, opened = connected(listener, 8)
    for _ in range(5):
        first.close()
        events = hear(listener, closed(opened.peer))
        assert [event.peer for event in events] == [opened.peer]
        first, opened = connected(listener, 8)
        listener.admit(opened.peer, (8,))
        listener.send(opened.peer, b"alive")
        assert first.receive(PATIENCE) == b"alive"
    first.close()
    hear(listener, closed(opened.peer))


def test_peers_that_came_and_went_leave_no_trace(listener: TcpListener) -> None:
    for _ in range(5):
        channel, opened = connected(listener, 8)
        channel.send(b"hello")
        channel.close()
        hear(listener, closed(opened.peer))
    assert settled(listener)
    assert still_serves(listener)


def test_a_process_may_end_without_closing_anything(listener: TcpListener) -> None:
    code = """
import sys
from evener import transport
from evener.transport.channel import Memory, Ranges
r = Ranges(Memory(8), ((0, 8),))
a = transport.listen("tcp", insecure=True)
b = transport.connect(sys.argv[1], r, r, timeout=60)
b.send(b"x")
"""
    with worker(listener.address, 0, code) as child:
        opened, arrived, gone = hear(listener, lambda events: len(events) == 3)
        assert [type(event) for event in (opened, arrived, gone)] == [Opened, Arrived, Closed]
        assert child.wait(PATIENCE) == 0
    assert still_serves(listener)


def test_close_leaves_no_thread_no_port_and_no_descriptor() -> None:
    assert still_serves_once()
    gc.collect()  # what other tests held is let go
    threads, files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert listening_addresses(still_serves_once()) == set()
    assert len(os.listdir("/proc/self/task")) == threads
    assert len(os.listdir("/proc/self/fd")) == files


def still_serves_once() -> int:
    listener = tcp.listen(insecure=True)
    channel, opened = connected(listener, 2_000_000)
    listener.admit(opened.peer, (2_000_000,))
    channel.send(b"push")
    hear(listener, bool)
    channel.close()
    listener.close()
    return port_of(listener)


def test_close_does_not_wait_for_a_peer_that_does_not_read() -> None:
    listener = tcp.listen(insecure=True)
    channel, opened = connected(listener, 30_000_000)
    listener.admit(opened.peer, (30_000_000,))
    listener.send(opened.peer, b"", [memoryview(bytes(30_000_000))])  # more than the kernel's buffers hold
    assert listener._peers[opened.peer].busy
    listener.close()  # or it would wait until the test's time is over
    channel.close()


def test_what_waits_to_be_sent_to_one_peer_is_bounded_and_it_is_cut_at_the_next_payload(listener: TcpListener) -> None:
    channel, opened = connected(listener, 30_000_000)
    listener.admit(opened.peer, (30_000_000,))
    payload = [memoryview(bytes(30_000_000))]
    listener.send(opened.peer, b"", payload)
    link = listener._peers[opened.peer]
    assert 0 < link._queued < 30_000_100, "what the kernel took is not kept"
    with pytest.raises(PeerGone, match="does not read"):
        listener.send(opened.peer, b"", payload)
    assert link._queued == 0
    assert [type(event) for event in hear(listener, bool)] == [Closed]
    channel.close()


def test_what_waits_for_somebody_who_was_not_admitted_is_two_headers_whatever_sizes_it_offers(
    listener: TcpListener,
) -> None:
    with stranger(listener, HELLO, said(OPEN, pack_sizes([2**50]))) as sock:
        (opened,) = hear(listener, bool)
        link = listener._peers[opened.peer]
        with pytest.raises(PeerGone, match="does not read"):
            while link._queued <= tcp_link.STRANGERS_WORDS:
                listener.send(opened.peer, bytes(MAX_HEADER))
        assert sock.fileno() > 0


# Silence


def test_silence_is_noticed_by_what_the_kernel_says_and_reported_once(
    listener: TcpListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How the kernel comes to know: `system/test_network.py` cuts real links."""
    channel, opened = connected(listener, 8)
    monkeypatch.setattr(tcp_silence, "silent", lambda sock, seconds: seconds == 6.0)
    channel._listened -= 1000.0  # it is time to ask again
    assert wait([channel], 0.0) == [channel]
    with pytest.raises(PeerGone, match="broke, or nothing came by it for 6 s"):
        channel.receive(PATIENCE)
    monkeypatch.setattr(listener, "_clock", lambda: time.monotonic() + 1000.0)
    (event,) = hear(listener, bool)
    assert event == Closed(opened.peer, "its connection broke, or nothing came by it for 6 s")
    channel.close()


def test_a_peer_that_answers_its_probes_and_does_not_read_is_not_silent(listener: TcpListener) -> None:
    """As a worker that computes for long. (TCP_USER_TIMEOUT would cut it.)"""
    channel, opened = connected(listener, 30_000_000)
    listener.admit(opened.peer, (30_000_000,))
    listener.send(opened.peer, b"", [memoryview(bytes(30_000_000))])
    link = listener._peers[opened.peer]
    deadline = time.monotonic() + PATIENCE
    while not link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[4]:  # probes have been sent: it backs off
        assert time.monotonic() < deadline
    assert not tcp_silence.silent(link.sock, 1.0)
    channel.close()


@pytest.mark.parametrize("heartbeat", [1.0, 2.0, 4.0, 6.0, 10.0, 60.0, 1000.0])
def test_an_idle_link_is_probed_so_that_silence_is_noticed_after_a_heartbeat(heartbeat: float) -> None:
    every, count = tcp_silence.keepalive(heartbeat)
    assert max(heartbeat, 2.0) - every < every * (1 + count) <= max(heartbeat, 2.0) + every
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as sock:
        tcp_silence.prepare(sock, heartbeat)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == every
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == count
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# Addresses


def test_by_default_only_this_host_reaches_the_port(listener: TcpListener) -> None:
    assert listening_addresses(port_of(listener)) == {"0100007F"}


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port} is taken") as error:
            tcp.listen(f"tcp://127.0.0.1:{port}", insecure=True)
        assert "choose another" in error.value.fix


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_host_is_named(host: str) -> None:
    with pytest.raises(BindError, match=host):
        tcp.listen(f"tcp://{host}:0", insecure=True)


@pytest.mark.parametrize("address", ["tcp://*:0", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://a b", "tcp://:1"])
def test_what_is_no_address_to_listen_on_is_refused(address: str) -> None:
    with pytest.raises((ConfigError, BindError)):
        tcp.listen(address)


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
        assert "took the connection and said nothing" in error.value.why
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
            transport.connect(f"tcp://127.0.0.1:{other.getsockname()[1]}", *boxes(8), timeout=1.0)
        other.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert "no evener server: it sent no greeting of evener" in error.value.why


# Strangers


def test_bytes_of_any_kind_at_the_port_do_not_disturb_a_real_peer(listener: TcpListener) -> None:
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
    assert settled(listener)
    assert still_serves(listener)


def test_an_older_evener_is_named_in_the_log(listener: TcpListener, caplog: pytest.LogCaptureFixture) -> None:
    with stranger(listener, b"\xff" + bytes(8) + b"\x7f\x03\x01NULL") as sock:
        assert heard_by(sock, listener) == b""
    assert "the greeting of ZeroMQ, which an older evener speaks" in caplog.text
    assert still_serves(listener)


OPENING = said(OPEN, pack_sizes([3_000_000]))
BAD_FIRST = {
    "other magic": (b"EVXX" + HELLO[4:], b""),
    "newer version": (HELLO[:4] + b"\x09" + HELLO[5:], b""),
    "no greeting": (OPENING, b""),
    "half a size": (HELLO + said(OPEN, b"1234567"), b"it got a list of sizes"),
    "too many sizes": (HELLO + said(OPEN, pack_sizes([8] * (MAX_PARTS + 1))), b"it got a header of 2056 bytes"),
    "a word before it opens": (HELLO + said(PLAIN, b"hello"), b"it got a first message that opens no link"),
    "a payload before it opens": (HELLO + said(PAYLOAD, b"push", bytes(100)), b"it got a payload before it was"),
    "a huge first header": (HELLO + HEAD.pack(OPEN, 2**32 - 1), b"it got a header of 4294967295 bytes"),
    "a kind that does not exist": (HELLO + said(77, b""), b"it got a message of kind 77"),
    "a farewell": (HELLO + said(BYE, b"bye"), b"it got a first message that opens no link"),
}


@pytest.mark.parametrize(("words", "told"), BAD_FIRST.values(), ids=BAD_FIRST.keys())
def test_first_words_that_open_no_link_are_answered_with_the_reason_cut_and_logged_once(
    listener: TcpListener, words: bytes, told: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with stranger(listener, words) as sock:
        answer = heard_by(sock, listener)
        assert told in answer and (told or not answer)
        assert settled(listener) and still_serves(listener)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "refused 127.0.0.1: it sent " in caplog.text


GOOD = said(PAYLOAD, b"push", b"7" * 3_000_000)
BAD_LATER = {
    "a second opening": OPENING,
    "a farewell": said(BYE, b""),
    "a kind that does not exist": said(7, b""),
    "a header that is too long": said(PLAIN, bytes(MAX_HEADER + 1)),
    "a header that is filled up with words": HEAD.pack(PAYLOAD, 4) + b"push" + b"x" * filling(4),
    "a payload before the last was answered": said(PAYLOAD, b"push", b"8" * 3_000_000),
}


@pytest.mark.parametrize("message", BAD_LATER.values(), ids=BAD_LATER.keys())
def test_a_wrong_message_of_an_admitted_peer_closes_it_and_writes_nothing(
    listener: TcpListener, message: bytes
) -> None:
    with stranger(listener, HELLO, OPENING) as sock:
        (opened,) = hear(listener, bool)
        listener.admit(opened.peer, (3_000_000,))
        sender = threading.Thread(target=said_and_left, args=(sock, GOOD + message + said(PLAIN, b"and another")))
        sender.start()
        assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
        inbox = listener.inbox(opened.peer)[0]
        (event,) = hear(listener, bool)
        assert isinstance(event, Closed) and event.peer == opened.peer
        assert bytes(inbox) == b"7" * 3_000_000
        assert settled(listener)
        sender.join(PATIENCE)
    assert still_serves(listener)


def said_and_left(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def test_a_half_sent_payload_is_never_a_message(listener: TcpListener) -> None:
    with stranger(listener, HELLO, OPENING) as sock:
        (opened,) = hear(listener, bool)
        listener.admit(opened.peer, (3_000_000,))
        sock.sendall(GOOD[:1_000_000])
        sock.shutdown(socket.SHUT_WR)
        (event,) = hear(listener, bool)
        assert isinstance(event, Closed) and event.peer == opened.peer
    assert still_serves(listener)


def test_who_has_gone_with_a_reset_is_reported_once(listener: TcpListener) -> None:
    for admitted in (False, True):
        with stranger(listener, HELLO, OPENING) as sock:
            (opened,) = hear(listener, bool)
            if admitted:
                listener.admit(opened.peer, (3_000_000,))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert [type(event) for event in hear(listener, bool)] == [Closed]
    assert settled(listener) and still_serves(listener)


def test_who_is_disconnected_is_told_why_and_that_nothing_more_comes_before_its_time_is_over(
    listener: TcpListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_clock", lambda: 0.0)  # so it is never over
    with stranger(listener, HELLO, OPENING) as sock:
        (opened,) = hear(listener, bool)
        listener.disconnect(opened.peer)
        assert heard_by(sock, listener) == HELLO + said(BYE, b"it was disconnected")
        assert len(listener._farewells) == 1, "what it says now is read and thrown away"
        sock.sendall(bytes(100_000))
    assert settled(listener)


def test_a_flood_of_strangers_is_refused_beyond_a_limit(listener: TcpListener) -> None:
    door = listener._reception.door
    door.caps = tcp_limits.Caps(half_open=4, half_open_each=4, waiting=3, waiting_each=3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(stranger(listener, HELLO, OPENING))
        opened = hear(listener, lambda events: len(events) == 3)
        with stranger(listener, HELLO, OPENING) as late:
            assert b"wait to be admitted" in heard_by(late, listener)
        listener.admit(opened[0].peer, (3_000_000,))
        assert still_serves(listener)


def test_a_server_that_talks_nonsense_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        for words in (b"nonsense", said(9, b""), said(OPEN, b""), HEAD.pack(PLAIN, MAX_HEADER + 1)):

            def answer(words: bytes = words) -> None:
                connection, _ = door.accept()
                with connection:
                    connection.sendall(HELLO + words)
                    connection.recv(1000)

            server = threading.Thread(target=answer)
            server.start()
            channel = transport.connect(f"tcp://127.0.0.1:{door.getsockname()[1]}", *boxes(1000), timeout=PATIENCE)
            with pytest.raises(PeerGone, match="no server of ours"):
                channel.receive(PATIENCE)
            channel.close()
            server.join(PATIENCE)
