"""StaleSynchronous: nobody waits unless it is too far ahead of the slowest."""

import pytest

from evener.policy.bounded import StaleSynchronous
from evener.policy.events import Apply, Joined, Left, Pushed, Release


def join(policy, *workers):
    for worker in workers:
        policy.on(Joined(worker))
    return workers


def push(policy, worker, *, handle=0):
    return policy.on(Pushed(worker, policy.version, handle))


def test_every_push_is_an_update_at_once():
    policy = StaleSynchronous(2, version=5)
    join(policy, 0, 1)

    assert push(policy, 0, handle=9) == [Apply((9,)), Release(0)]
    assert policy.version == 6


def test_a_fast_worker_is_held_at_the_bound_and_freed_when_the_slowest_moves():
    policy = StaleSynchronous(1)
    fast, slow = join(policy, 0, 1)

    assert push(policy, fast) == [Apply((0,)), Release(fast)]  # 1 ahead: the bound
    assert push(policy, fast) == [Apply((0,))]  # 2 ahead
    assert push(policy, slow) == [Apply((0,)), Release(fast), Release(slow)]


def test_staleness_0_is_lockstep():
    policy = StaleSynchronous(0)
    join(policy, 0, 1, 2)

    assert push(policy, 2) == [Apply((0,))]
    assert push(policy, 0) == [Apply((0,))]
    assert push(policy, 1) == [Apply((0,)), Release(0), Release(1), Release(2)]


def test_two_slowest_must_both_move():
    policy = StaleSynchronous(0)
    join(policy, 0, 1, 2)
    push(policy, 0)

    assert push(policy, 1) == [Apply((0,))]
    assert push(policy, 2) == [Apply((0,)), Release(0), Release(1), Release(2)]


def test_nobody_waits_for_a_worker_that_left():
    policy = StaleSynchronous(0)
    join(policy, 0, 1, 2)
    push(policy, 0)
    push(policy, 1)

    assert policy.on(Left(2)) == [Release(0), Release(1)]


def test_a_worker_that_leaves_while_it_waits_is_not_released():
    policy = StaleSynchronous(0)
    join(policy, 0, 1)
    push(policy, 0)

    assert policy.on(Left(0)) == []
    assert push(policy, 1) == [Apply((0,)), Release(1)]


def test_a_late_joiner_neither_stops_the_others_nor_is_stopped():
    policy = StaleSynchronous(1)
    old, other = join(policy, 0, 1)
    for _ in range(10):
        push(policy, old)
        push(policy, other)

    assert policy.on(Joined(2)) == [Release(2)]
    for _ in range(3):
        for worker in (old, 2, other):
            assert push(policy, worker) == [Apply((0,)), Release(worker)]


def test_the_first_worker_after_all_have_left_starts_anew():
    policy = StaleSynchronous(0)
    join(policy, 0)
    push(policy, 0)
    policy.on(Left(0))

    assert policy.on(Joined(1)) == [Release(1)]
    assert policy.on(Joined(0)) == [Release(0)]
    assert push(policy, 1) == [Apply((0,))]
    assert push(policy, 0) == [Apply((0,)), Release(0), Release(1)]


def test_waiting_for_names_the_blocked_and_the_slowest():
    policy = StaleSynchronous(2)
    join(policy, 0, 1, 2)
    assert policy.waiting_for() == ""

    for worker in (1, 2, 1, 2, 1, 2):
        push(policy, worker)
    assert policy.waiting_for() == "workers 1 and 2 are 3 steps ahead and wait for worker 0"


def test_waiting_for_is_a_sentence_in_the_singular_too():
    policy = StaleSynchronous(0)
    join(policy, 0, 1, 2)
    push(policy, 1)

    assert policy.waiting_for() == "worker 1 is 1 step ahead and waits for workers 0 and 2"


def test_events_out_of_protocol_are_our_own_mistakes():
    policy = StaleSynchronous(0)
    with pytest.raises(AssertionError, match="worker 0 left but was not here"):
        policy.on(Left(0))
    with pytest.raises(AssertionError, match="worker 0 pushed but has not joined"):
        push(policy, 0)
    join(policy, 0, 1)
    with pytest.raises(AssertionError, match="worker 0 joined twice"):
        policy.on(Joined(0))
    push(policy, 0)
    with pytest.raises(AssertionError, match="worker 0 pushed but was not released"):
        push(policy, 0)
