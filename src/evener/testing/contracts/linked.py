"""What the contract of transports stands on: one server's listener, and the links of its workers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pytest

from evener.errors import PeerGone
from evener.transport.channel import Arrived, Channel, Closed, Incoming, Listener, Memory, Opened, Ranges, wait

#: Every wait below ends with an error after this. No test asks how long one took: machines are busy.
SECONDS = 60.0


class Ends(Protocol):
    """A transport, as a run has set it up: with keys or without."""

    endless: bool  # its queues have no end, so nobody is cut for not reading

    def listen(self, address: str = "") -> Listener:
        """At this address of its kind, or one that is free."""
        ...

    def connect(
        self, address: str, outbox: Ranges, inbox: Ranges, timeout: float = SECONDS, absent: float = SECONDS
    ) -> Channel:
        """As `transport.connect`. Times that a test does not give are long."""
        ...


@dataclass
class LinkedPair:
    """Both ends of one link, and the worker's memory."""

    channel: Channel
    peer: int
    outbox: list[memoryview]
    inbox: list[memoryview]


class World:
    """One listener, many channels, all closed at the end; `hear` collects events until a condition holds."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self.listener = ends.listen()
        self._stack = contextlib.ExitStack()
        self._early: list[Incoming] = []  # heard while a channel was made

    def listen_again(self) -> None:
        """As a server that starts after its workers."""
        self.listener = self._ends.listen(self.listener.address)

    def hear(self, until: Callable[[list[Incoming]], bool]) -> list[Incoming]:
        events, self._early = self._early, []
        deadline = time.monotonic() + SECONDS
        while not until(events):
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"not heard in {SECONDS} s; so far {events[-5:]}"
            if wait([self.listener], remaining):
                events += self.listener.receive()
        return events

    def during(self, work: Callable[[], None]) -> None:
        """Do something that may take a server that listens, and listen meanwhile."""
        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + SECONDS
        while thread.is_alive():
            assert time.monotonic() < deadline, f"not done in {SECONDS} s"
            if wait([self.listener], 0.005):
                self._early += self.listener.receive()
        thread.join()

    def next(self) -> Incoming:
        (event,) = self.hear(bool)
        return event

    def quiet(self) -> bool:
        """Nothing more has happened, and nothing does within a moment."""
        return not self._early and (not wait([self.listener], 0.05) or self.listener.receive() == [])

    def channel(self, sizes: Sequence[int] = (), memory: Memory | None = None) -> tuple[Channel, Ranges, Ranges]:
        outbox, inbox = boxes(sizes, memory)
        made: list[Channel] = []
        self.during(lambda: made.append(self._ends.connect(self.listener.address, outbox, inbox)))
        (channel,) = made
        self._stack.callback(channel.close)
        return channel, outbox, inbox

    def link(self, sizes: Sequence[int] = (), memory: Memory | None = None) -> LinkedPair:
        """A link that is open and admitted."""
        channel, outbox, inbox = self.channel(sizes, memory)
        opened = self.next()
        assert isinstance(opened, Opened)
        self.listener.admit(opened.peer, sizes)
        return LinkedPair(channel, opened.peer, outbox.views(), inbox.views())

    def close(self) -> None:
        self._stack.close()
        self.listener.close()


def boxes(sizes: Sequence[int], memory: Memory | None = None) -> tuple[Ranges, Ranges]:
    """An outbox and an inbox in one memory, each range at a multiple of 64."""
    parts, at = [], 0
    for nbytes in [*sizes, *sizes]:
        parts.append((at, nbytes))
        at += -(-nbytes // 64) * 64
    memory = memory or Memory(at)
    return Ranges(memory, tuple(parts[: len(sizes)])), Ranges(memory, tuple(parts[len(sizes) :]))


def arrived(count: int) -> Callable[[list[Incoming]], bool]:
    return lambda events: sum(isinstance(event, Arrived) for event in events) >= count


def closed(peer: int) -> Callable[[list[Incoming]], bool]:
    return lambda events: any(isinstance(event, Closed) and event.peer == peer for event in events)


def check_gone(channel: Channel) -> None:
    """The channel says that the link is broken."""
    with pytest.raises(PeerGone):
        channel.receive(SECONDS)
