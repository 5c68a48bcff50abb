"""`wait`, `Memory`, `Ranges` and the checks that all transports share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import threading
import time

import pytest
from transport_children import connected

from evener import transport
from evener.errors import ConfigError, ProtocolError
from evener.transport.channel import (
    MAX_PARTS,
    Arrived,
    Complaints,
    Incoming,
    Memory,
    Opened,
    Ranges,
    check_ranges,
    flat,
    wait,
)

NOTHING = Ranges(Memory(0), ())


class Pipe:
    """A source that is ready when a byte was written, or when told that it holds something back."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.held = False

    def fileno(self) -> int:
        return self.read

    def pending(self) -> bool:
        return self.held

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


def test_wait_names_all_that_are_ready_and_no_others() -> None:
    with contextlib.closing(Pipe()) as one, contextlib.closing(Pipe()) as two, contextlib.closing(Pipe()) as three:
        assert wait([one, two, three], 0.0) == []
        os.write(two.write, b"x")
        assert wait([one, two, three], 60.0) == [two]
        three.held = True
        assert wait([one, two, three], 60.0) == [three, two]


def test_wait_does_not_wait_when_a_source_holds_something_back() -> None:
    with contextlib.closing(Pipe()) as one:
        one.held = True
        assert wait([one], 10_000.0) == [one]  # or the test's own time would be over first


@pytest.mark.parametrize("timeout", [-1.0, -math.inf, 0.0, 0.02])
def test_wait_ends_when_its_time_is_over(timeout: float) -> None:
    with contextlib.closing(Pipe()) as one:
        assert wait([one], timeout) == []


def test_wait_may_be_told_to_wait_for_ever() -> None:
    with contextlib.closing(Pipe()) as one:
        writer = threading.Thread(target=lambda: os.write(one.write, b"x"))
        writer.start()
        assert wait([one], math.inf) == [one]
        writer.join()


def test_one_loop_serves_listeners_of_all_kinds() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [transport.listen(kind, insecure=True) for kind in transport.TRANSPORTS]
        channels, heard = {}, list[Incoming]()
        for listener in listeners:
            stack.callback(listener.close)
            channel, opened = connected(listener, 0)
            heard.append(opened)
            stack.callback(channel.close)
            channel.send(listener.address.encode())
            channels[listener.address] = channel
        while sum(isinstance(event, Arrived) for event in heard) < len(listeners):
            ready = wait(listeners, 5.0)
            assert ready
            for listener in ready:
                for event in listener.receive():
                    heard.append(event)
                    if isinstance(event, Arrived):
                        assert event.header.decode() == listener.address
                        listener.send(event.peer, b"yes")
        assert sum(isinstance(event, Opened) for event in heard) == len(listeners)
        assert [channel.receive(60.0) for channel in channels.values()] == [b"yes"] * len(listeners)


def test_memory_is_zero_and_writable_and_can_be_closed_while_it_is_looked_at() -> None:
    memory = Memory(1000)
    view = memory.view[10:20]
    assert memory.view.nbytes == 1000 and bytes(memory.view) == bytes(1000)
    memory.close()
    memory.close()
    view[:] = b"0123456789"
    assert bytes(memory.view[9:21]) == b"\x000123456789\x00"
    assert Memory(0).view.nbytes == 0


def test_memory_cannot_shrink_or_grow_or_be_unsealed() -> None:
    memory = Memory(4096)
    for size in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    memory.close()


def test_forgotten_memory_gives_its_descriptor_back() -> None:
    fd = Memory(10).fd
    with pytest.raises(OSError) as error:
        os.fstat(fd)
    assert error.value.errno == errno.EBADF


def test_ranges_are_views_of_one_memory() -> None:
    memory = Memory(100)
    ranges = Ranges(memory, ((0, 10), (64, 0), (64, 36)))
    assert ranges.sizes() == (10, 0, 36)
    ranges.views()[2][:] = b"y" * 36
    assert bytes(memory.view[60:66]) == bytes(4) + b"yy"


@pytest.mark.parametrize("part", [(-1, 5), (0, -1), (0, 101), (100, 1), (200, 0)])
def test_ranges_outside_their_memory_are_refused(part: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="100 bytes"):
        Ranges(Memory(100), (part,))


def test_ranges_that_no_link_can_have_are_refused() -> None:
    memory = Memory(8)
    with pytest.raises(ConfigError):
        check_ranges(Ranges(memory, ((0, 8),)), Ranges(memory, ((0, 7),)))
    many = Ranges(memory, ((0, 0),) * (MAX_PARTS + 1))
    with pytest.raises(ConfigError, match=str(MAX_PARTS)):
        check_ranges(many, many)


def test_a_payload_is_taken_as_bytes_whatever_its_shape() -> None:
    square = memoryview(bytearray(range(16))).cast("f", (2, 2))
    (view,) = flat([square], [16])
    assert view.format == "B" and view.shape == (16,)
    with pytest.raises(ProtocolError):
        flat([square], [4])
    with pytest.raises(ProtocolError):
        flat([square], [])


def test_a_flood_of_complaints_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(logging.getLogger("evener.test"), burst=3, seconds=1000.0)
    for number in range(100):
        complaints.say(f"stranger {number}")
    assert [record.message for record in caplog.records] == ["stranger 0", "stranger 1", "stranger 2"]


def test_complaints_tell_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(logging.getLogger("evener.test"), burst=1, seconds=1e-3)
    deadline = time.monotonic() + 60.0
    while "left out" not in caplog.text and time.monotonic() < deadline:
        complaints.say("stranger")
    assert "similar lines left out" in caplog.text


def test_unknown_kinds_and_addresses_are_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="carrier") as error:
        transport.listen("carrier pigeon")
    assert "shared" in error.value.fix
    with pytest.raises(ConfigError, match="udp") as error:
        transport.connect("udp://127.0.0.1:1", NOTHING, NOTHING)
    assert "tcp://" in error.value.fix
    with pytest.raises(ConfigError, match="shared:x"):
        transport.listen("tcp", "shared:x")


def test_nothing_of_a_transport_is_loaded_before_it_is_used() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from evener import transport; transport.listen('shared').close(); assert 'ssl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
