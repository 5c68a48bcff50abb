"""Worker processes for the transport tests, and waiting for what they cause."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from evener import transport
from evener.transport.channel import Arrived, Channel, Closed, Incoming, Listener, Memory, Opened, Ranges, wait

#: Seconds for what happens at once, on a machine where others want the cores too. No test asks how long it took.
PATIENCE = 60.0
#: Seconds that a test never waits: as the limit of a wait they show that something else ends it, as heartbeats that
#: they never come.
NEVER = 1000.0
#: Pushes for ever; every byte of a push is the same, so a torn one would show.
WORKER = """
import sys
from evener import transport
from evener.transport.channel import Memory, Ranges

nbytes = int(sys.argv[2])
memory = Memory(2 * nbytes)
channel = transport.connect(sys.argv[1], Ranges(memory, ((0, nbytes),)), Ranges(memory, ((nbytes, nbytes),)))
channel.send(b"hello")
channel.receive(60)
for step in range(1_000_000):
    memory.view[:nbytes] = bytes([step % 256]) * nbytes
    channel.send(b"push", payload=True)
    channel.receive(60)
"""


@contextlib.contextmanager
def worker(address: str, nbytes: int, program: str = WORKER) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is certainly gone afterwards."""
    child = subprocess.Popen([sys.executable, "-c", program, address, str(nbytes)])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def hear(listener: Listener, until: Callable[[list[Incoming]], bool], seconds: float = PATIENCE) -> list[Incoming]:
    """All events until a condition holds; an error when it does not in time."""
    events: list[Incoming] = []
    deadline = time.monotonic() + seconds
    while not until(events):
        remaining = deadline - time.monotonic()
        assert remaining > 0, f"not heard in {seconds} s; so far {events[-5:]}"
        if wait([listener], remaining):
            events += listener.receive()
    return events


def during(listener: Listener, work: Callable[[], None]) -> list[Incoming]:
    """Do something that takes a server which listens, and listen meanwhile; its events. Passes on what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    events: list[Incoming] = []
    deadline = time.monotonic() + PATIENCE
    while thread.is_alive():
        assert time.monotonic() < deadline, f"not done in {PATIENCE} s"
        if wait([listener], 0.005):
            events += listener.receive()
    thread.join()
    if raised:
        raise raised[0]
    return events


def connected(listener: Listener, nbytes: int, address: str = "", **options: Any) -> tuple[Channel, Opened]:
    """A new channel to a listener, and how the listener tells of it; nothing else may happen meanwhile."""
    made: list[Channel] = []
    options = {"timeout": PATIENCE} | options
    events = during(
        listener, lambda: made.append(transport.connect(address or listener.address, *boxes(nbytes), **options))
    )
    (opened,) = events or hear(listener, bool)
    assert isinstance(opened, Opened), opened
    return made[0], opened


def serve(listener: Listener, nbytes: int, pushes: int) -> int:
    """Admit one worker and answer it until it has pushed some times, the last time not; gives its number."""
    answer = [memoryview(bytes(nbytes))]
    while True:
        for event in hear(listener, bool):
            assert not isinstance(event, Closed), event
            if isinstance(event, Opened):
                listener.admit(event.peer, (nbytes,))
            elif isinstance(event, Arrived) and event.payload:
                data = bytes(listener.inbox(event.peer)[0])
                assert data == data[:1] * nbytes, "torn"
                if (pushes := pushes - 1) <= 0:
                    return event.peer
                listener.send(event.peer, b"release", answer)
            else:
                listener.send(event.peer, b"welcome")


def closed(peer: int) -> Callable[[list[Incoming]], bool]:
    return lambda events: any(isinstance(event, Closed) and event.peer == peer for event in events)


def boxes(nbytes: int) -> tuple[Ranges, Ranges]:
    memory = Memory(2 * nbytes)
    return Ranges(memory, ((0, nbytes),)), Ranges(memory, ((nbytes, nbytes),))
