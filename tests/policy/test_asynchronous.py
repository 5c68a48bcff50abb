"""Async: nobody waits."""

import pytest

from evener.errors import ConfigError
from evener.policy.asynchronous import Async, Asynchronous
from evener.policy.events import Apply, Joined, Left, Pushed, Release


def test_every_push_is_an_update_and_releases_its_worker():
    policy = Asynchronous()

    assert policy.on(Joined(0)) == [Release(0)]
    assert policy.on(Joined(1)) == [Release(1)]
    assert policy.on(Pushed(1, version=0, handle=8)) == [Apply((8,)), Release(1)]
    assert policy.version == 1


def test_a_stale_push_is_applied_like_any_other():
    policy = Asynchronous()
    policy.on(Joined(0))
    policy.on(Joined(1))
    policy.on(Pushed(1, version=0, handle=1))
    policy.on(Pushed(1, version=1, handle=2))

    assert policy.on(Pushed(0, version=0, handle=3)) == [Apply((3,)), Release(0)]


def test_a_worker_that_leaves_changes_nothing_and_may_return():
    policy = Asynchronous(version=5)
    policy.on(Joined(0))

    assert policy.on(Left(0)) == []
    assert policy.on(Joined(0)) == [Release(0)]
    assert policy.version == 5


def test_nothing_is_ever_awaited():
    assert Asynchronous().waiting_for() == ""


def test_events_out_of_protocol_are_our_own_mistakes():
    policy = Asynchronous()
    with pytest.raises(AssertionError, match="worker 0 pushed but was not released"):
        policy.on(Pushed(0, version=0, handle=1))
    with pytest.raises(AssertionError, match="worker 0 left but was not here"):
        policy.on(Left(0))
    policy.on(Joined(0))
    with pytest.raises(AssertionError, match="worker 0 joined twice"):
        policy.on(Joined(0))


@pytest.mark.parametrize("number", [1, 2])
def test_a_worker_has_one_gradient_under_way_or_two(number):
    assert Async(in_flight=number).terms(3).in_flight == number
    assert bool(Async(in_flight=number).told(3, 100)) == (number == 2)


@pytest.mark.parametrize("number", [0, 3, 2.0])
def test_another_number_of_gradients_under_way_is_refused(number):
    with pytest.raises(ConfigError, match=f"in_flight={number} cannot work"):
        Async(in_flight=number)
