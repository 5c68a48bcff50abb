"""What every transport promises of headers and payloads."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from evener.testing.contracts.linked import SECONDS, World, arrived, closed
from evener.transport.channel import MAX_HEADER, Arrived, Closed, Incoming, wait


class MessageContract:
    """Headers and payloads arrive as they were sent, and stay as long as they are needed."""

    @pytest.mark.parametrize("nbytes", [0, 1, 1000, MAX_HEADER])
    def test_a_header_arrives_as_it_was_sent_in_both_directions(self, world: World, nbytes: int) -> None:
        link = world.link()
        header = random.Random(nbytes).randbytes(nbytes)

        link.channel.send(header)
        assert world.next() == Arrived(link.peer, header, payload=False)
        world.listener.send(link.peer, header)
        assert link.channel.receive(SECONDS) == header

    @pytest.mark.parametrize(
        "sizes", [(0,), (1,), (40_000,), (3_145_731,), (40_000, 0, 1, 3_000_001), (1 << 20, 2 << 20)]
    )
    def test_a_payload_arrives_as_it_was_sent_in_both_directions(self, world: World, sizes: tuple[int, ...]) -> None:
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

    def test_payloads_of_any_dtype_are_numbers_at_both_ends(self, world: World) -> None:
        arrays: list[np.ndarray[Any, Any]] = [
            np.arange(1000, dtype=np.float32),
            np.arange(7, dtype=np.int64),
            np.ones((3, 5), dtype=np.float16),
        ]
        link = world.link([array.nbytes for array in arrays])
        for view, array in zip(link.outbox, arrays, strict=True):
            np.frombuffer(view, array.dtype)[:] = array.reshape(-1)

        link.channel.send(b"", payload=True)
        world.next()
        for view, array in zip(world.listener.inbox(link.peer), arrays, strict=True):
            assert (np.frombuffer(view, array.dtype) == array.reshape(-1)).all()
        world.listener.send(link.peer, b"", [(array * 2).data for array in arrays])
        link.channel.receive(SECONDS)
        for view, array in zip(link.inbox, arrays, strict=True):
            assert (np.frombuffer(view, array.dtype) == array.reshape(-1) * 2).all()

    def test_hundreds_of_pushes_and_releases_never_tear(self, world: World) -> None:
        sizes = (40_000, 4_001)
        link = world.link(sizes)
        rng = np.random.default_rng(7)
        reply = [memoryview(bytearray(nbytes)) for nbytes in sizes]

        def work() -> None:
            """The worker: what comes back must be what it sent, plus one in every byte."""
            for _ in range(300):
                sent = [rng.integers(0, 256, nbytes, dtype=np.uint8) for nbytes in sizes]
                for view, data in zip(link.outbox, sent, strict=True):
                    view[:] = data.data
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

    def test_each_of_several_peers_gets_its_own_answer(self, world: World) -> None:
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

    def test_a_link_without_payload_carries_headers_only(self, world: World) -> None:
        channel, _, _ = world.channel()
        opened = world.next()
        channel.send(b"before it is admitted")
        assert world.next() == Arrived(opened.peer, b"before it is admitted", payload=False)
        world.listener.admit(opened.peer, ())
        assert world.listener.inbox(opened.peer) == []
        world.listener.send(opened.peer, b"yes")
        assert channel.receive(SECONDS) == b"yes"

    def test_one_call_gives_at_most_one_message_of_a_peer_so_that_its_inbox_is_still_the_one_it_speaks_of(
        self,
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

    def test_a_gradient_stays_as_it_came_until_its_peer_is_answered_and_for_whoever_holds_it(
        self, world: World
    ) -> None:
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

    def test_what_a_peer_pushed_before_it_left_can_still_be_looked_at(self, world: World) -> None:
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
