"""What every transport promises of the ends of links, and of strangers."""

from __future__ import annotations

import threading
import time

import pytest

from evener.errors import BindError, ConfigError, PeerGone, ProtocolError, Unavailable
from evener.testing.contracts.linked import SECONDS, Ends, World, boxes, check_gone, closed
from evener.transport.channel import MAX_HEADER, Arrived, Channel, Closed, Memory, Opened


class LinkContract:
    """How links end, and what becomes of those that should not be."""

    def test_a_peer_that_closes_is_reported_once(self, world: World) -> None:
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

    def test_what_a_peer_said_before_it_closed_is_heard_first(self, world: World) -> None:
        link = world.link([8])
        world.listener.send(link.peer, b"never read")
        link.channel.send(b"goodbye", payload=True)
        link.channel.close()
        heard = world.hear(closed(link.peer))
        assert heard[0] == Arrived(link.peer, b"goodbye", payload=True)
        assert [type(event) for event in heard] == [Arrived, Closed]

    def test_an_inbox_outlives_its_peer(self, world: World) -> None:
        link = world.link([1000])
        link.outbox[0][:] = b"x" * 1000
        link.channel.send(b"", payload=True)
        world.next()
        inbox = world.listener.inbox(link.peer)
        link.channel.close()
        world.hear(closed(link.peer))
        assert bytes(inbox[0]) == b"x" * 1000

    @pytest.mark.parametrize("how", ["disconnects", "closes"])
    def test_a_server_that_ends_the_link_is_noticed_by_its_end(self, world: World, how: str) -> None:
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

    def test_an_answer_sent_before_the_server_disconnects_is_read_first(self, world: World) -> None:
        link = world.link([8])
        link.channel.send(b"never read by the server")
        world.listener.send(link.peer, b"you have the wrong model")
        world.listener.disconnect(link.peer)
        assert link.channel.receive(SECONDS) == b"you have the wrong model"
        check_gone(link.channel)
        assert world.quiet()

    def test_an_answer_sent_before_the_server_closes_is_read_first(self, world: World) -> None:
        link = world.link([8])
        world.listener.send(link.peer, b"the run is over", [memoryview(b"12345678")])
        world.listener.close()
        assert link.channel.receive(SECONDS) == b"the run is over"
        assert bytes(link.inbox[0]) == b"12345678"
        check_gone(link.channel)

    def test_sending_to_a_peer_that_is_gone_says_so_and_its_end_is_reported_once(self, world: World) -> None:
        link = world.link([8])
        link.channel.close()
        deadline = time.monotonic() + SECONDS
        with pytest.raises(PeerGone):
            while time.monotonic() < deadline:
                world.listener.send(link.peer, b"?")
        assert isinstance(world.next(), Closed)
        assert world.quiet()

    def test_disconnecting_an_unknown_peer_and_closing_twice_do_nothing(self, world: World) -> None:
        link = world.link()
        world.listener.disconnect(12345)
        link.channel.close()
        link.channel.close()
        with pytest.raises(PeerGone):
            link.channel.receive(0)
        world.listener.close()
        world.listener.close()

    def test_memory_is_used_again_by_the_next_link(self, world: World) -> None:
        memory = Memory(4096)
        for life in range(3):
            link = world.link((64, 3), memory)
            link.outbox[0][:] = bytes([life]) * 64
            link.channel.send(b"", payload=True)
            assert world.next() == Arrived(link.peer, b"", payload=True)
            assert bytes(world.listener.inbox(link.peer)[0]) == bytes([life]) * 64
            link.channel.close()
            assert isinstance(world.next(), Closed)

    def test_a_payload_before_admission_closes_that_link_and_no_other(self, world: World) -> None:
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
    def test_a_peer_with_other_sizes_is_not_admitted_but_can_be_told_why(
        self, world: World, sizes: tuple[int, ...]
    ) -> None:
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

    def test_a_payload_of_other_sizes_is_refused_by_the_server_that_would_send_it(self, world: World) -> None:
        link = world.link([100])
        with pytest.raises(ProtocolError, match="99"):
            world.listener.send(link.peer, b"", [memoryview(bytes(99))])

    def test_a_header_that_is_too_long_is_refused_where_it_is_sent(self, world: World) -> None:
        link = world.link()
        with pytest.raises(ProtocolError, match=f"{MAX_HEADER + 1} bytes"):
            link.channel.send(bytes(MAX_HEADER + 1))
        with pytest.raises(ProtocolError, match=f"{MAX_HEADER + 1} bytes"):
            world.listener.send(link.peer, bytes(MAX_HEADER + 1))
        link.channel.send(b"unharmed")
        assert world.next() == Arrived(link.peer, b"unharmed", payload=False)

    def test_boxes_of_different_sizes_are_refused_before_anything_is_sent(self, ends: Ends, world: World) -> None:
        outbox, _ = boxes([8])
        _, inbox = boxes([9])
        with pytest.raises(ConfigError, match="9"):
            ends.connect(world.listener.address, outbox, inbox)
        assert world.quiet()

    def test_a_taken_address_cannot_be_listened_on(self, ends: Ends, world: World) -> None:
        with pytest.raises(BindError, match=r"taken|in use"):
            ends.listen(world.listener.address)

    def test_an_address_where_nobody_listens_is_named(self, ends: Ends, world: World) -> None:
        world.listener.close()
        with pytest.raises(Unavailable, match=world.listener.address):
            ends.connect(world.listener.address, *boxes([8]), timeout=0.3)

    def test_whoever_would_rather_ask_for_the_address_again_need_not_wait_where_nobody_listens(
        self, ends: Ends, world: World
    ) -> None:
        world.listener.close()
        with pytest.raises(Unavailable, match=world.listener.address):
            ends.connect(world.listener.address, *boxes([8]), timeout=10_000.0, absent=0.0)

    def test_a_server_may_start_after_its_workers(self, ends: Ends, world: World) -> None:
        address = world.listener.address
        world.listener.close()
        made: list[Channel] = []
        tries = threading.Event()

        def work() -> None:
            tries.set()
            made.append(ends.connect(address, *boxes([8])))

        worker = threading.Thread(target=work)
        worker.start()
        tries.wait(SECONDS)
        world.listen_again()
        assert isinstance(world.next(), Opened)
        worker.join(SECONDS)
        made[0].close()
