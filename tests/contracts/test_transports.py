"""What every transport promises, whatever carries the bytes: see `Channel`, `Listener`, `wait` in channel.py."""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evener import transport
from evener.errors import BindError, ConfigError, PeerGone, ProtocolError, Unavailable
from evener.transport.channel import (
    MAX_HEADER,
    Arrived,
    Channel,
    Closed,
    Incoming,
    Listener,
    Memory,
    Opened,
    Ranges,
    wait,
)
from evener.transport.keys import Keys, load, new

#: Every wait below ends with an error after this. No test asks how long one took: machines are busy.
SECONDS = 60.0
#: Heartbeats that never come: who is known to be gone is known by the end of the link.
NEVER = 1000.0


@pytest.fixture(params=["memory", "shared", "tcp", "tcp+keys"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@functools.cache
def cluster_keys() -> tuple[Keys, Keys]:
    """Of a server and of a worker."""
    with tempfile.TemporaryDirectory() as directory:
        new(Path(directory), ["ps-0", "worker-0"])
        return load(Path(directory), "ps-0"), load(Path(directory), "worker-0")


def listen(kind: str, address: str = "") -> Listener:
    kind, _, keyed = kind.partition("+")
    return transport.listen(
        kind, address, keys=cluster_keys()[0] if keyed else None, insecure=not keyed, heartbeat=NEVER
    )


def connect(kind: str, address: str, outbox: Ranges, inbox: Ranges, timeout: float = SECONDS) -> Channel:
    keys = cluster_keys()[1] if kind.endswith("+keys") else None
    return transport.connect(address, outbox, inbox, timeout=timeout, keys=keys, heartbeat=NEVER)


@dataclass
class Link:
    """Both ends of one link, and the worker's memory."""

    channel: Channel
    peer: int
    outbox: list[memoryview]
    inbox: list[memoryview]


class World:
    """One listener, many channels, all closed at the end; `hear` collects events until a condition holds."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.listener = listen(kind)
        self._stack = contextlib.ExitStack()
        self._early: list[Incoming] = []  # heard while a channel was made

    def listen_again(self) -> None:
        """As a server that starts after its workers."""
        self.listener = listen(self._kind, self.listener.address)

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
        self.during(lambda: made.append(connect(self._kind, self.listener.address, outbox, inbox)))
        (channel,) = made
        self._stack.callback(channel.close)
        return channel, outbox, inbox

    def link(self, sizes: Sequence[int] = (), memory: Memory | None = None) -> Link:
        """A link that is open and admitted."""
        channel, outbox, inbox = self.channel(sizes, memory)
        opened = self.next()
        assert isinstance(opened, Opened)
        self.listener.admit(opened.peer, sizes)
        return Link(channel, opened.peer, outbox.views(), inbox.views())

    def close(self) -> None:
        self._stack.close()
        self.listener.close()


@pytest.fixture
def world(kind: str) -> Iterator[World]:
    world = World(kind)
    yield world
    world.close()


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


# Messages


@pytest.mark.parametrize("nbytes", [0, 1, 1000, MAX_HEADER])
def test_a_header_arrives_as_it_was_sent_in_both_directions(world: World, nbytes: int) -> None:
    link = world.link()
    header = random.Random(nbytes).randbytes(nbytes)

    link.channel.send(header)
    assert world.next() == Arrived(link.peer, header, payload=False)
    world.listener.send(link.peer, header)
    assert link.channel.receive(SECONDS) == header


@pytest.mark.parametrize("sizes", [(0,), (1,), (40_000,), (3_145_731,), (40_000, 0, 1, 3_000_001), (1 << 20, 2 << 20)])
def test_a_payload_arrives_as_it_was_sent_in_both_directions(world: World, sizes: tuple[int, ...]) -> None:
    link = world.link(sizes)
    rng = random.Random(1)
    pushed, released = ([rng.randbytes(nbytes) for nbytes in sizes] for _ in range(2))
    for view, data in zip(link.outbox, pushed, strict=True):
        view[:] = data

    link.channel.send(b"push", payload=True)
    assert world.next() == Arrived(link.peer, b"push", payload=True)
    assert [bytes(view) for view in world.listener.inbox(link.peer)] == pushed
    world.listener.send(link.peer, b"release", [memoryview(data) for data in released])
    assert link.channel.receive(SECONDS) == b"release"
    assert [bytes(view) for view in link.inbox] == released


def test_payloads_of_any_dtype_are_numbers_at_both_ends(world: World) -> None:
    arrays = [np.arange(1000, dtype=np.float32), np.arange(7, dtype=np.int64), np.ones((3, 5), dtype=np.float16)]
    link = world.link([array.nbytes for array in arrays])
    for view, array in zip(link.outbox, arrays, strict=True):
        np.frombuffer(view, array.dtype)[:] = array.reshape(-1)

    link.channel.send(b"", payload=True)
    world.next()
    for view, array in zip(world.listener.inbox(link.peer), arrays, strict=True):
        assert (np.frombuffer(view, array.dtype) == array.reshape(-1)).all()
    world.listener.send(link.peer, b"", [memoryview(array * 2) for array in arrays])
    link.channel.receive(SECONDS)
    for view, array in zip(link.inbox, arrays, strict=True):
        assert (np.frombuffer(view, array.dtype) == array.reshape(-1) * 2).all()


def test_hundreds_of_pushes_and_releases_never_tear(world: World) -> None:
    sizes = (40_000, 4_001)
    link = world.link(sizes)
    rng = np.random.default_rng(7)
    reply = [memoryview(bytearray(nbytes)) for nbytes in sizes]

    def work() -> None:
        """The worker: what comes back must be what it sent, plus one in every byte."""
        for _ in range(300):
            sent = [rng.integers(0, 256, nbytes, dtype=np.uint8) for nbytes in sizes]
            for view, data in zip(link.outbox, sent, strict=True):
                view[:] = data
            link.channel.send(b"push", payload=True)
            if link.channel.receive(SECONDS) is None:
                return
            same.append(
                all(
                    (np.frombuffer(view, np.uint8) == data + 1).all()
                    for view, data in zip(link.inbox, sent, strict=True)
                )
            )

    same: list[bool] = []
    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(300):
        world.next()
        for view, data in zip(reply, world.listener.inbox(link.peer), strict=True):
            np.add(np.frombuffer(data, np.uint8), 1, out=np.frombuffer(view, np.uint8))
        world.listener.send(link.peer, b"release", reply)
    worker.join(SECONDS)
    assert same == [True] * 300


def test_each_of_several_peers_gets_its_own_answer(world: World) -> None:
    links = [world.link([100]) for _ in range(5)]
    assert len({link.peer for link in links}) == 5
    for number, link in enumerate(links):
        link.outbox[0][:] = bytes([number]) * 100
        link.channel.send(b"%d" % number, payload=True)

    for event in world.hear(arrived(5)):
        assert isinstance(event, Arrived)
        data = bytes(world.listener.inbox(event.peer)[0])
        assert data == bytes([int(event.header)]) * 100
        world.listener.send(event.peer, event.header, [memoryview(data)])
    for number, link in enumerate(links):
        assert link.channel.receive(SECONDS) == b"%d" % number
        assert bytes(link.inbox[0]) == bytes([number]) * 100


def test_a_link_without_payload_carries_headers_only(world: World) -> None:
    channel, _, _ = world.channel()
    opened = world.next()
    channel.send(b"before it is admitted")
    assert world.next() == Arrived(opened.peer, b"before it is admitted", payload=False)
    world.listener.admit(opened.peer, ())
    assert world.listener.inbox(opened.peer) == []
    world.listener.send(opened.peer, b"yes")
    assert channel.receive(SECONDS) == b"yes"


def test_one_call_gives_at_most_one_message_of_a_peer_so_that_its_inbox_is_still_the_one_it_speaks_of(
    world: World,
) -> None:
    one, other = world.link([1]), world.link([1])
    for header in (b"1", b"2", b"3"):
        one.channel.send(header)
        other.channel.send(header)
    heard: list[Incoming] = []
    while not arrived(6)(heard):
        assert wait([world.listener], SECONDS)
        events = world.listener.receive()
        assert len({event.peer for event in events}) == len(events)
        heard += events
    assert [event.header for event in heard if isinstance(event, Arrived) and event.peer == one.peer] == [
        b"1",
        b"2",
        b"3",
    ]


def test_a_gradient_stays_as_it_came_until_its_peer_is_answered_and_for_whoever_holds_it(world: World) -> None:
    """Other peers come and go meanwhile; memory that is the peer's own is the same list each time."""
    link, other = world.link([100_000]), world.link([100_000])
    link.outbox[0][:] = b"a" * 100_000
    link.channel.send(b"push", payload=True)
    assert world.next() == Arrived(link.peer, b"push", True)
    (held,) = inbox = world.listener.inbox(link.peer)
    for letter in b"bcd":
        other.outbox[0][:] = bytes([letter]) * 100_000
        other.channel.send(b"push", payload=True)
        world.hear(arrived(1))
        world.listener.send(other.peer, b"release", [memoryview(bytes(100_000))])
        assert other.channel.receive(SECONDS) == b"release"
    assert world.listener.inbox(link.peer) is inbox and bytes(held) == b"a" * 100_000

    world.listener.send(link.peer, b"release", [held])  # also what it pushed can be its answer
    assert link.channel.receive(SECONDS) == b"release"
    assert bytes(link.inbox[0]) == b"a" * 100_000
    assert world.listener.inbox(link.peer) in ([], inbox)


def test_what_a_peer_pushed_before_it_left_can_still_be_looked_at(world: World) -> None:
    for round_ in range(10):
        link = world.link([1000])
        link.outbox[0][:] = bytes([round_]) * 1000
        link.channel.send(b"push", payload=True)
        link.channel.close()
        heard: list[Incoming] = []
        while not closed(link.peer)(heard):
            assert wait([world.listener], SECONDS)
            for event in world.listener.receive():
                heard.append(event)
                if isinstance(event, Arrived):
                    assert bytes(world.listener.inbox(event.peer)[0]) == bytes([round_]) * 1000
        assert [type(event) for event in heard] == [Arrived, Closed]


# The ends of links


def test_a_peer_that_closes_is_reported_once(world: World) -> None:
    one, other = world.link([8]), world.link([8])
    one.channel.close()
    event = world.next()
    assert isinstance(event, Closed) and event.peer == one.peer and event.reason
    assert world.quiet()
    other.channel.send(b"still here")
    assert world.next() == Arrived(other.peer, b"still here", payload=False)
    with pytest.raises(PeerGone):
        world.listener.send(one.peer, b"?")
    with pytest.raises(PeerGone):
        world.listener.inbox(one.peer)


def test_what_a_peer_said_before_it_closed_is_heard_first(world: World) -> None:
    link = world.link([8])
    world.listener.send(link.peer, b"never read")
    link.channel.send(b"goodbye", payload=True)
    link.channel.close()
    heard = world.hear(closed(link.peer))
    assert heard[0] == Arrived(link.peer, b"goodbye", payload=True)
    assert [type(event) for event in heard] == [Arrived, Closed]


def test_an_inbox_outlives_its_peer(world: World) -> None:
    link = world.link([1000])
    link.outbox[0][:] = b"x" * 1000
    link.channel.send(b"", payload=True)
    world.next()
    inbox = world.listener.inbox(link.peer)
    link.channel.close()
    world.hear(closed(link.peer))
    assert bytes(inbox[0]) == b"x" * 1000


@pytest.mark.parametrize("how", ["disconnects", "closes"])
def test_a_server_that_ends_the_link_is_noticed_by_its_end(world: World, how: str) -> None:
    one, other = world.link([8]), world.link([8])
    if how == "disconnects":
        world.listener.disconnect(one.peer)
    else:
        world.listener.close()
    check_gone(one.channel)
    with pytest.raises(PeerGone):
        one.channel.send(b"anyone?")
    if how == "disconnects":
        assert world.quiet(), "the server asked for it, so it is no news"
        other.channel.send(b"still here")
        assert world.next() == Arrived(other.peer, b"still here", payload=False)
    else:
        check_gone(other.channel)


def test_an_answer_sent_before_the_server_disconnects_is_read_first(world: World) -> None:
    link = world.link([8])
    link.channel.send(b"never read by the server")
    world.listener.send(link.peer, b"you have the wrong model")
    world.listener.disconnect(link.peer)
    assert link.channel.receive(SECONDS) == b"you have the wrong model"
    check_gone(link.channel)
    assert world.quiet()


def test_an_answer_sent_before_the_server_closes_is_read_first(world: World) -> None:
    link = world.link([8])
    world.listener.send(link.peer, b"the run is over", [memoryview(b"12345678")])
    world.listener.close()
    assert link.channel.receive(SECONDS) == b"the run is over"
    assert bytes(link.inbox[0]) == b"12345678"
    check_gone(link.channel)


def test_sending_to_a_peer_that_is_gone_says_so_and_its_end_is_reported_once(world: World) -> None:
    link = world.link([8])
    link.channel.close()
    deadline = time.monotonic() + SECONDS
    with pytest.raises(PeerGone):
        while time.monotonic() < deadline:
            world.listener.send(link.peer, b"?")
    assert isinstance(world.next(), Closed)
    assert world.quiet()


def test_disconnecting_an_unknown_peer_and_closing_twice_do_nothing(world: World) -> None:
    link = world.link()
    world.listener.disconnect(12345)
    link.channel.close()
    link.channel.close()
    with pytest.raises(PeerGone):
        link.channel.receive(0)
    world.listener.close()
    world.listener.close()


def test_memory_is_used_again_by_the_next_link(world: World) -> None:
    memory = Memory(4096)
    for life in range(3):
        link = world.link((64, 3), memory)
        link.outbox[0][:] = bytes([life]) * 64
        link.channel.send(b"", payload=True)
        assert world.next() == Arrived(link.peer, b"", payload=True)
        assert bytes(world.listener.inbox(link.peer)[0]) == bytes([life]) * 64
        link.channel.close()
        assert isinstance(world.next(), Closed)


# Strangers and mistakes


def test_a_payload_before_admission_closes_that_link_and_no_other(world: World) -> None:
    good = world.link([1000])
    channel, _, _ = world.channel([1000])
    opened = world.next()
    channel.send(b"push", payload=True)
    event = world.next()
    assert isinstance(event, Closed) and event.peer == opened.peer and "admitted" in event.reason
    check_gone(channel)
    good.channel.send(b"push", payload=True)
    assert world.next() == Arrived(good.peer, b"push", payload=True)


@pytest.mark.parametrize("sizes", [(), (99,), (100, 0), (50, 50)])
def test_a_peer_with_other_sizes_is_not_admitted_but_can_be_told_why(world: World, sizes: tuple[int, ...]) -> None:
    channel, _, _ = world.channel([100])
    opened = world.next()
    with pytest.raises(ProtocolError, match="100"):
        world.listener.admit(opened.peer, sizes)
    with pytest.raises(ProtocolError):
        world.listener.inbox(opened.peer)
    with pytest.raises(ProtocolError):
        world.listener.send(opened.peer, b"", [memoryview(bytes(100))])
    world.listener.send(opened.peer, b"your sizes are wrong")
    assert channel.receive(SECONDS) == b"your sizes are wrong"


def test_a_payload_of_other_sizes_is_refused_by_the_server_that_would_send_it(world: World) -> None:
    link = world.link([100])
    with pytest.raises(ProtocolError, match="99"):
        world.listener.send(link.peer, b"", [memoryview(bytes(99))])


def test_a_header_that_is_too_long_is_refused_where_it_is_sent(world: World) -> None:
    link = world.link()
    with pytest.raises(ProtocolError, match=f"{MAX_HEADER + 1} bytes"):
        link.channel.send(bytes(MAX_HEADER + 1))
    with pytest.raises(ProtocolError, match=f"{MAX_HEADER + 1} bytes"):
        world.listener.send(link.peer, bytes(MAX_HEADER + 1))
    link.channel.send(b"unharmed")
    assert world.next() == Arrived(link.peer, b"unharmed", payload=False)


def test_boxes_of_different_sizes_are_refused_before_anything_is_sent(kind: str, world: World) -> None:
    outbox, _ = boxes([8])
    _, inbox = boxes([9])
    with pytest.raises(ConfigError, match="9"):
        connect(kind, world.listener.address, outbox, inbox)
    assert world.quiet()


def test_a_taken_address_cannot_be_listened_on(kind: str, world: World) -> None:
    with pytest.raises(BindError, match=r"taken|in use"):
        listen(kind, world.listener.address)


def test_an_address_where_nobody_listens_is_named(kind: str, world: World) -> None:
    world.listener.close()
    with pytest.raises(Unavailable, match=world.listener.address):
        connect(kind, world.listener.address, *boxes([8]), timeout=0.3)


def test_whoever_would_rather_ask_for_the_address_again_need_not_wait_where_nobody_listens(
    kind: str, world: World
) -> None:
    world.listener.close()
    with pytest.raises(Unavailable, match=world.listener.address):
        transport.connect(world.listener.address, *boxes([8]), timeout=10_000.0, absent=0.0)


def test_a_server_may_start_after_its_workers(kind: str, world: World) -> None:
    address = world.listener.address
    world.listener.close()
    made: list[Channel] = []
    tries = threading.Event()

    def work() -> None:
        tries.set()
        made.append(connect(kind, address, *boxes([8])))

    worker = threading.Thread(target=work)
    worker.start()
    tries.wait(SECONDS)
    world.listen_again()
    assert isinstance(world.next(), Opened)
    worker.join(SECONDS)
    made[0].close()


# Waiting


def test_receive_returns_none_when_its_time_is_over(world: World) -> None:
    link = world.link()
    for seconds in (0.0, 0.05, -1.0):
        start = time.monotonic()
        assert link.channel.receive(seconds) is None
        assert time.monotonic() - start >= seconds - 0.01  # not before; how long after, the machine decides


def test_a_channel_can_be_waited_for_too(world: World) -> None:
    one, other = world.link([8]), world.link([8])
    world.listener.send(other.peer, b"", [memoryview(b"12345678")])
    header = None
    while header is None:
        for channel in wait([one.channel, other.channel], SECONDS):
            header = channel.receive(0)
            assert header is None or channel is other.channel
    world.listener.disconnect(one.peer)
    with pytest.raises(PeerGone):
        while ready := wait([one.channel, other.channel], SECONDS):
            assert [channel.receive(0) for channel in ready] == [None] * len(ready)
    assert other.channel.receive(0) is None


def test_no_wake_up_is_lost_in_bursts_from_several_threads(world: World) -> None:
    links = [world.link() for _ in range(3)]

    def chatter(link: Link) -> None:
        rng = random.Random(link.peer)
        for number in range(400):
            link.channel.send(b"%d" % number)
            if rng.random() < 0.05:
                link.channel.receive(0.0005)  # a pause, in which the server empties its queue and goes to wait

    threads = [threading.Thread(target=chatter, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    heard = world.hear(arrived(1200))
    for thread in threads:
        thread.join(SECONDS)
    for link in links:
        headers = [event.header for event in heard if isinstance(event, Arrived) and event.peer == link.peer]
        assert headers == [b"%d" % number for number in range(400)]


def test_no_wake_up_is_lost_in_bursts_to_a_channel(world: World) -> None:
    link = world.link()

    def chatter() -> None:
        for number in range(600):
            if number % 60 == 0:
                world.hear(arrived(1))  # the worker asks for the next burst
            world.listener.send(link.peer, b"%d" % number)

    thread = threading.Thread(target=chatter)
    thread.start()
    heard = []
    for number in range(600):
        if number % 60 == 0:
            link.channel.send(b"more")
        header = None
        while header is None:
            assert wait([link.channel], SECONDS), "a wake-up was lost"
            header = link.channel.receive(0)
        heard.append(header)
    thread.join(SECONDS)
    assert heard == [b"%d" % number for number in range(600)]


def test_a_peer_that_does_not_read_never_blocks_the_server(world: World, kind: str) -> None:
    if kind == "memory":
        pytest.skip("its queues have no end")
    lazy, good = world.link(), world.link()
    start = time.monotonic()
    with pytest.raises(PeerGone, match="read"):
        while time.monotonic() < start + SECONDS:
            world.listener.send(lazy.peer, bytes(100_000))
    event = world.next()
    assert isinstance(event, Closed) and event.peer == lazy.peer
    good.channel.send(b"still here")
    assert world.next() == Arrived(good.peer, b"still here", payload=False)


def test_two_hundred_peers_may_come_at_once(world: World, kind: str) -> None:
    count, address = 200, world.listener.address
    channels: list[Channel] = []
    connector = threading.Thread(
        target=lambda: channels.extend(connect(kind, address, *boxes([8])) for _ in range(count))
    )
    connector.start()
    opened = 0
    while opened < count:
        for event in world.hear(bool):
            assert isinstance(event, Opened)
            world.listener.admit(event.peer, [8])
            opened += 1
    connector.join(SECONDS)
    assert len(channels) == count
    for channel in channels:
        channel.close()
