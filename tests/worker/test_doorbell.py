"""Towers of one machine meet, know who is missing, and see at once when one has ended. Towers are threads here."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from meeting_threads import DEADLINE, descriptors, together

from evener.errors import PeerGone
from evener.worker.allreduce import doorbell
from evener.worker.allreduce.doorbell import Doorbell


def nobody(missing):
    raise AssertionError(f"{missing} should be here by now")


@pytest.fixture
def belled():
    """The bells of some towers that have not met yet."""
    made = []

    def make(size):
        made.extend(together(size, lambda rank, gather: Doorbell(rank, gather, nobody, time.monotonic)))
        return made

    yield make
    for bell in made:
        bell.close()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_nobody_leaves_a_meeting_before_all_have_come(size):
    come = [0] * size

    def tower(rank, gather):
        bell = Doorbell(rank, gather, nobody, time.monotonic)
        for number in range(1, 201):
            come[rank] = number
            bell.ring()
            assert bell.wait(DEADLINE)
            assert min(come) >= number
        gather()
        bell.close()

    together(size, tower)


def test_who_is_missing_is_known_and_may_still_come(belled):
    first, second, third = belled(3)
    first.ring()
    second.ring()

    assert not first.wait(0.0)
    assert first.wait(0.001) is False
    assert first.missing() == [2]
    third.ring()
    assert first.wait(DEADLINE)
    assert first.missing() == []


def test_a_tower_that_is_a_meeting_ahead_is_not_counted_for_another(belled):
    first, second, _ = belled(3)
    for bell in (first, second, second):
        bell.ring()

    assert not first.wait(0.001)
    assert first.missing() == [2]


class During:
    """A poll during which something happens."""

    def __init__(self, poll, happens):
        self._poll, self._happens = poll, happens

    def poll(self, milliseconds):
        self._happens()
        return self._poll.poll(milliseconds)

    def __getattr__(self, name):
        return getattr(self._poll, name)


def test_a_tower_that_has_ended_is_seen_at_once_by_whoever_waits_for_it(belled):
    first, second, third = belled(3)
    first.ring()
    second.ring()
    first._poll = During(first._poll, third.close)

    with pytest.raises(PeerGone, match="worker:2 is gone"):
        first.wait(DEADLINE)
    assert first.gone() == [2]


def test_one_that_came_and_ended_is_missed_at_the_next_meeting_only(belled):
    first, second, third = belled(3)
    for bell in (first, second, third):
        bell.ring()
    third.close()

    assert first.wait(DEADLINE)
    first.ring()  # into the closed link: no error here
    with pytest.raises(PeerGone, match="worker:2"):
        first.wait(DEADLINE)
    assert first._poll.poll(0) == []  # or whoever waits for others would turn and turn


def test_one_that_came_and_ended_does_not_end_the_wait_for_another(belled):
    first, second, third = belled(3)
    first.ring()
    third.ring()
    third.close()

    assert not first.wait(0.01)
    assert (first.missing(), first.gone()) == ([1], [])
    second.ring()
    assert first.wait(DEADLINE)


def test_whoever_knocks_and_is_no_tower_is_left_outside(monkeypatch, belled):
    """Another user, another number, nothing at all: they come first, and the towers find each other all the same."""
    knocking = []

    def address_of(door):
        address = f"\0{asked(door)}"
        for word in (b"", b"\x00", b"\xff"):
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(address)
            stranger.send(word) if word else stranger.shutdown(socket.SHUT_WR)
            knocking.append(stranger)
        return address[1:]

    asked = doorbell._address_of
    monkeypatch.setattr(doorbell, "_address_of", address_of)
    first, second = belled(2)
    first.ring()
    second.ring()

    assert first.wait(DEADLINE)
    assert second.wait(DEADLINE)
    for stranger in knocking:
        stranger.close()


def test_towers_of_two_users_are_not_linked(monkeypatch):
    users = iter([1000, 1001])
    monkeypatch.setattr(doorbell.os, "getuid", lambda: next(users))

    def tower(rank, gather):
        with pytest.raises(OSError, match="worker:1 runs as another user than worker:0"):
            Doorbell(rank, gather, nobody, time.monotonic)

    together(2, tower)


def test_a_stranger_of_another_user_is_left_outside_and_the_tower_goes_on_looking(monkeypatch):
    """Whoever it is, it is not the tower that is waited for: that is said each second, until it is in vain."""
    monkeypatch.setattr(doorbell, "SLICE", 0.02)
    monkeypatch.setattr("evener.transport.packets.credentials_of", lambda link: (1, os.getuid() + 1))

    def look(missing):
        raise PeerGone(f"{missing} never came.")

    def tower(rank, gather):
        if rank == 1:
            with contextlib.suppress(OSError):  # when it is shut out before it has said who it is
                Doorbell(rank, gather, look, time.monotonic).close()
            return
        with pytest.raises(PeerGone, match=r"\[1\] never came"):
            Doorbell(rank, gather, look, time.monotonic)
        gather()  # for the other one, which is told of no failure and goes

    together(2, tower)


def test_descriptors_are_swapped_and_belong_to_whoever_took_them(belled):
    bells = belled(3)
    pipes = [os.pipe() for _ in bells]
    with ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(lambda bell, pipe: bell.swap(pipe[1]), bells, pipes))

    for rank, fds in enumerate(taken):
        for other, fd in fds.items():
            os.write(fd, b"%d for %d " % (rank, other))
            os.close(fd)
    for rank, (reading, writing) in enumerate(pipes):
        os.close(writing)
        said = os.read(reading, 100).decode().split(" ")
        os.close(reading)
        assert sorted(said[0:-1:3]) == sorted(str(other) for other in range(3) if other != rank)


def test_a_tower_that_swaps_nothing_is_waited_for_until_that_is_in_vain(belled, monkeypatch):
    monkeypatch.setattr(doorbell, "SLICE", 0.02)
    first, second, _ = belled(3)
    before = descriptors()
    second._links[0].setblocking(True)
    socket.send_fds(second._links[0], [b"m"], [0])

    def look(missing):
        raise PeerGone(f"{missing} gives nothing.")

    first._look = look
    with pytest.raises(PeerGone, match=r"\[2\] gives nothing"):
        first.swap(0)
    assert descriptors() == before


def test_towers_that_cannot_open_a_door_all_learn_it(monkeypatch):
    monkeypatch.setattr(doorbell.secrets, "token_hex", lambda count: "the same")  # only one can have the name

    def tower(rank, gather):
        with pytest.raises(OSError, match="has no socket"):
            Doorbell(rank, gather, nobody, time.monotonic)

    together(3, tower)


def test_nothing_is_left_open(belled):
    before = descriptors()
    bells = belled(3)
    assert descriptors() == before + 6
    for bell in bells:
        bell.close()

    assert descriptors() == before
