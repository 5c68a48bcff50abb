"""Who may stand at a port, and who goes for whom: books and a clock that is only a number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from evener.transport.tcp_limits import HANDSHAKE_SECONDS, Caps, Door, reserve

CAPS = Caps(half_open=6, half_open_each=3, waiting=4, waiting_each=2)


def crowd(door: Door, address: str, *who: int, now: float = 0.0) -> list[int | None]:
    return [door.come(one, address, now) for one in who]


def test_while_there_is_room_nobody_goes() -> None:
    door = Door(CAPS)
    assert crowd(door, "a", 1, 2, 3) == [None] * 3
    assert crowd(door, "b", 4, 5, 6) == [None] * 3
    assert door.half_open == 6


def test_too_many_of_one_address_cost_that_address_its_oldest() -> None:
    door = Door(CAPS)
    crowd(door, "other", 9)
    assert crowd(door, "a", 1, 2, 3, 4, 5) == [None, None, None, 1, 2]
    assert door.half_open == 4


def test_too_many_in_all_cost_the_most_crowded_address_its_oldest() -> None:
    door = Door(CAPS)
    crowd(door, "lonely", 9)
    crowd(door, "crowd", 1, 2, 3)
    crowd(door, "pair", 4, 5)
    assert door.come(7, "newcomer", 0.0) == 1
    assert door.half_open == 6


def test_without_descriptors_to_spare_a_newcomer_takes_the_place_of_one_half_open_or_is_none() -> None:
    door = Door(CAPS)
    assert door.come(1, "a", 0.0, full=True) == 1
    assert door.half_open == 0
    crowd(door, "a", 2)
    assert door.come(3, "b", 0.0, full=True) == 2
    assert door.half_open == 1


def test_who_has_opened_waits_and_makes_room_for_nobody() -> None:
    door = Door(CAPS)
    crowd(door, "a", 1, 2, 3)
    assert door.opened(1) == door.opened(2) == ""
    assert (door.half_open, door.waiting) == (1, 2)
    assert "others of its address wait" in door.opened(3)
    crowd(door, "b", 4, 5)
    crowd(door, "c", 6)
    assert door.opened(4) == door.opened(5) == ""
    assert "4 others wait to be admitted" in door.opened(6)
    assert crowd(door, "a", 7, 8, 9) == [None, None, 3]


def test_who_is_admitted_or_gone_leaves_a_place() -> None:
    door = Door(CAPS)
    crowd(door, "a", 1, 2, 3)
    assert door.opened(1) == door.opened(2) == ""
    door.admitted(1)
    assert door.opened(3) == ""
    door.leave(2)
    door.leave(2)
    crowd(door, "a", 4)
    assert door.opened(4) == ""
    assert (door.half_open, door.waiting) == (0, 2)


def test_who_is_half_open_for_too_long_is_overdue_and_nobody_else_is() -> None:
    door = Door(CAPS)
    crowd(door, "a", 1, 2, now=0.0)
    crowd(door, "b", 3, now=1.0)
    crowd(door, "b", 4, now=2.0)
    assert door.opened(1) == ""
    assert door.overdue(HANDSHAKE_SECONDS - 0.01) == []
    assert door.overdue(HANDSHAKE_SECONDS) == [2]
    assert door.overdue(HANDSHAKE_SECONDS + 1.0) == [2, 3]


@pytest.mark.parametrize("descriptors", [64, 100, 256, 1024, 4096, 65536])
def test_caps_fit_a_process_and_leave_half_of_it_to_those_who_are_admitted(descriptors: int) -> None:
    caps = Caps.of(descriptors)
    assert 2 <= caps.half_open_each <= caps.half_open and 2 <= caps.waiting_each <= caps.waiting
    assert caps.half_open + caps.waiting <= max(8, (descriptors - reserve(descriptors)) // 2)


def test_two_hundred_workers_of_one_machine_fit_at_once() -> None:
    door = Door(Caps.of(4096))
    assert crowd(door, "a", *range(200)) == [None] * 200
    assert [door.opened(who) for who in range(200)] == [""] * 200


ACTS = st.sampled_from(["come", "full", "open", "admit", "leave"])
STEPS = st.lists(st.tuples(ACTS, st.integers(0, 12)), max_size=80)


@settings(max_examples=300)
@given(steps=STEPS)
def test_no_sequence_of_events_breaks_a_cap_or_the_books(steps: list[tuple[str, int]]) -> None:
    door, half, waiting = Door(CAPS), set[int](), set[int]()
    for what, who in steps:
        if what in ("come", "full") and who not in half | waiting:
            victim = door.come(who, f"host {who % 3}", 0.0, full=what == "full")
            half = (half | {who}) - {victim}
            assert victim is None or victim == who or victim not in waiting
        elif what == "open" and who in half and not door.opened(who):
            half.remove(who)
            waiting.add(who)
        elif what in ("admit", "leave"):
            door.leave(who)
            half.discard(who)
            waiting.discard(who)
        assert (door.half_open, door.waiting) == (len(half), len(waiting))
        assert len(half) <= CAPS.half_open and len(waiting) <= CAPS.waiting
        for host in range(3):
            assert sum(one % 3 == host for one in half) <= CAPS.half_open_each
            assert sum(one % 3 == host for one in waiting) <= CAPS.waiting_each
