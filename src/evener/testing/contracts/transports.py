"""What every transport promises, whatever carries the bytes: `Channel`, `Listener`, `wait` in transport/channel.py."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from evener.errors import PeerGone
from evener.testing.contracts.linked import SECONDS, Ends, LinkedPair, World, arrived, boxes
from evener.testing.contracts.links import LinkContract
from evener.testing.contracts.messages import MessageContract
from evener.transport.channel import Arrived, Channel, Closed, Opened, wait


class WaitContract:
    """Nobody waits for what has come, or for ever."""

    def test_receive_returns_none_when_its_time_is_over(self, world: World) -> None:
        link = world.link()
        for seconds in (0.0, 0.05, -1.0):
            start = time.monotonic()
            assert link.channel.receive(seconds) is None
            assert time.monotonic() - start >= seconds - 0.01  # not before; how long after, the machine decides

    def test_a_channel_can_be_waited_for_too(self, world: World) -> None:
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

    def test_no_wake_up_is_lost_in_bursts_from_several_threads(self, world: World) -> None:
        links = [world.link() for _ in range(3)]

        def chatter(link: LinkedPair) -> None:
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

    def test_no_wake_up_is_lost_in_bursts_to_a_channel(self, world: World) -> None:
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

    def test_a_peer_that_does_not_read_never_blocks_the_server(self, world: World, ends: Ends) -> None:
        if ends.endless:
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

    def test_two_hundred_peers_may_come_at_once(self, world: World, ends: Ends) -> None:
        count, address = 200, world.listener.address
        channels: list[Channel] = []
        connector = threading.Thread(
            target=lambda: channels.extend(ends.connect(address, *boxes([8])) for _ in range(count))
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


class TransportContract(MessageContract, LinkContract, WaitContract):
    """All of it. Who inherits gives a fixture `ends`: an `Ends`."""

    @pytest.fixture
    def world(self, ends: Ends) -> Iterator[World]:
        world = World(ends)
        yield world
        world.close()
