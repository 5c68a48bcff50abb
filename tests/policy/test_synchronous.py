"""Sync: lockstep, backup workers, accumulation, elastic; what is awaited is said aloud."""

import pytest

from evener.policy.events import Apply, Drop, Joined, Left, Pushed, Recall, Release
from evener.policy.synchronous import Synchronous


def join(policy, *workers):
    for worker in workers:
        policy.on(Joined(worker))
    return workers


def test_lockstep_waits_for_everyone_and_releases_everyone():
    policy = Synchronous(2)

    assert policy.on(Joined(0)) == [Release(0)]
    assert policy.on(Joined(1)) == [Release(1)]
    assert policy.on(Pushed(1, version=0, handle=1)) == []
    assert policy.on(Pushed(0, version=0, handle=2)) == [Apply((1, 2)), Release(0), Release(1)]
    assert policy.version == 1


def test_a_backup_worker_never_delays_the_step_and_its_gradient_is_dropped():
    policy = Synchronous(2)
    a, b, slow = join(policy, 0, 1, 2)

    assert policy.on(Pushed(a, version=0, handle=1)) == []
    assert policy.on(Pushed(b, version=0, handle=2)) == [Apply((1, 2)), Recall(slow), Release(a), Release(b)]
    assert policy.on(Pushed(slow, version=0, handle=3)) == [
        Drop(3, reason="computed at version 0, now 1"),
        Release(slow),
    ]


def test_a_late_worker_is_fresh_again_after_one_dropped_push():
    policy = Synchronous(1)
    fast, slow = join(policy, 0, 1)
    policy.on(Pushed(fast, version=0, handle=1))
    policy.on(Pushed(fast, version=1, handle=2))

    assert policy.on(Pushed(slow, version=0, handle=3)) == [Drop(3, "computed at version 0, now 2"), Release(slow)]
    assert "older version" not in policy.waiting_for()
    assert policy.on(Pushed(slow, version=2, handle=4)) == [Apply((4,)), Recall(fast), Release(slow)]


def test_a_gradient_of_a_worker_that_left_does_not_count():
    policy = Synchronous(2)
    a, b, c = join(policy, 0, 1, 2)
    policy.on(Pushed(a, version=0, handle=1))

    assert policy.on(Left(a)) == [Drop(1, "its worker left before the update")]
    assert policy.on(Pushed(b, version=0, handle=2)) == []
    assert policy.on(Pushed(c, version=0, handle=3)) == [Apply((2, 3)), Release(b), Release(c)]


def test_a_worker_that_returns_computes_at_once_and_counts_once():
    policy = Synchronous(2)
    a, b = join(policy, 0, 1)
    policy.on(Pushed(a, version=0, handle=1))
    policy.on(Left(a))

    assert policy.on(Joined(a)) == [Release(a)]
    assert policy.on(Pushed(a, version=0, handle=2)) == []
    assert policy.on(Pushed(b, version=0, handle=3)) == [Apply((2, 3)), Release(a), Release(b)]


def test_a_resumed_run_counts_on():
    policy = Synchronous(1, version=40)
    join(policy, 0)

    assert policy.on(Pushed(0, version=40, handle=1)) == [Apply((1,)), Release(0)]
    assert policy.version == 41


def test_without_elastic_too_few_workers_wait_aloud():
    policy = Synchronous(3, version=11)
    a, b, c = join(policy, 0, 1, 2)
    policy.on(Pushed(a, version=11, handle=1))

    assert policy.on(Left(b)) == []
    assert policy.on(Pushed(c, version=11, handle=2)) == []
    assert policy.waiting_for() == (
        "update 12 needs 3 gradients, holds 2 (workers 0 and 2), "
        "and only workers 0 and 2 are here: start another worker or use --elastic"
    )


def test_elastic_the_round_is_complete_when_the_last_awaited_worker_leaves():
    policy = Synchronous(3, elastic=True)
    a, b, c = join(policy, 0, 1, 2)
    policy.on(Pushed(a, version=0, handle=1))
    policy.on(Pushed(c, version=0, handle=2))

    assert policy.on(Left(b)) == [Apply((1, 2)), Release(a), Release(c)]
    assert policy.needed == 2


def test_elastic_needs_more_again_when_workers_return_but_never_more_than_asked():
    policy = Synchronous(2, elastic=True)
    needed = [policy.needed]
    for worker in range(3):
        policy.on(Joined(worker))
        needed.append(policy.needed)

    assert needed == [1, 1, 2, 2]


def test_elastic_a_held_gradient_of_the_leaver_is_dropped_before_the_update_it_causes():
    policy = Synchronous(3, elastic=True)
    a, b, c = join(policy, 0, 1, 2)
    policy.on(Pushed(a, version=0, handle=1))

    assert policy.on(Left(a)) == [Drop(1, "its worker left before the update")]
    assert policy.on(Pushed(b, version=0, handle=2)) == []
    assert policy.on(Left(c)) == [Apply((2,)), Release(b)]


def test_accumulation_releases_a_worker_again_until_the_round_has_its_leases():
    policy = Synchronous(3, accumulate=True)
    a, b = join(policy, 0, 1)

    assert policy.on(Pushed(a, version=0, handle=1)) == [Release(a)]  # held 1, computing 2: the third lease
    assert policy.on(Pushed(a, version=0, handle=2)) == []
    assert policy.on(Pushed(b, version=0, handle=3)) == [Apply((1, 2, 3)), Release(a), Release(b)]


def test_one_worker_alone_accumulates_a_whole_update():
    policy = Synchronous(3, accumulate=True)
    join(policy, 0)

    assert policy.on(Pushed(0, version=0, handle=1)) == [Release(0)]
    assert policy.on(Pushed(0, version=0, handle=2)) == [Release(0)]
    assert policy.on(Pushed(0, version=0, handle=3)) == [Apply((1, 2, 3)), Release(0)]


def test_accumulating_who_joins_when_the_round_is_given_out_waits_for_the_next():
    policy = Synchronous(2, accumulate=True)
    a, b = join(policy, 0, 1)

    assert policy.on(Joined(2)) == []
    policy.on(Pushed(a, version=0, handle=1))
    assert policy.on(Pushed(b, version=0, handle=2)) == [Apply((1, 2)), Release(0), Release(1), Release(2)]


def test_accumulating_the_share_of_a_worker_that_left_falls_to_those_who_wait():
    policy = Synchronous(3, accumulate=True)
    a, b = join(policy, 0, 1)
    policy.on(Pushed(a, version=0, handle=1))
    policy.on(Pushed(a, version=0, handle=2))

    assert policy.on(Left(b)) == [Release(a)]
    assert policy.on(Pushed(a, version=0, handle=3)) == [Apply((1, 2, 3)), Release(a)]


def test_accumulating_a_leaver_with_two_gradients_leaves_room_for_two():
    policy = Synchronous(4, accumulate=True)
    a, _, c = join(policy, 0, 1, 2)
    policy.on(Pushed(c, version=0, handle=1))  # and computes its second
    policy.on(Pushed(c, version=0, handle=2))
    policy.on(Pushed(a, version=0, handle=3))  # held 3, computing 1

    assert policy.on(Left(c)) == [
        Drop(1, "its worker left before the update"),
        Drop(2, "its worker left before the update"),
        Release(a),
    ]
    assert policy.on(Joined(c)) == [Release(c)]


def test_accumulating_with_backup_workers_a_leaver_frees_nobody_while_enough_compute():
    policy = Synchronous(1, accumulate=True)
    a, _, _ = join(policy, 0, 1, 2)
    policy.on(Pushed(a, version=0, handle=1))  # all three compute at version 1, though one gradient is enough
    join(policy, 3, 4)

    assert policy.on(Left(a)) == []


def test_elastic_does_not_shrink_an_accumulated_update():
    policy = Synchronous(4, accumulate=True, elastic=True)
    join(policy, 0, 1)

    assert policy.needed == 4


def test_waiting_for_names_who_computes_and_who_is_late():
    policy = Synchronous(2)
    a, b, _slow = join(policy, 0, 1, 2)
    assert policy.waiting_for() == "update 1 needs 2 gradients, holds none, workers 0, 1 and 2 are computing"

    policy.on(Pushed(a, version=0, handle=1))
    policy.on(Pushed(b, version=0, handle=2))
    policy.on(Pushed(b, version=1, handle=3))
    assert policy.waiting_for() == (
        "update 2 needs 2 gradients, holds 1 (worker 1), worker 0 is computing, "
        "worker 2 is still busy with an older version"
    )


def test_waiting_for_says_that_nobody_is_here():
    assert Synchronous(3).waiting_for() == (
        "update 1 needs 3 gradients, holds none, and no worker is here: start 3 workers"
    )
    assert Synchronous(3, accumulate=True).waiting_for() == (
        "update 1 needs 3 gradients, holds none, and no worker is here: start a worker"
    )


def test_waiting_for_says_how_many_workers_to_start():
    policy = Synchronous(3)
    join(policy, 4)

    assert policy.waiting_for() == (
        "update 1 needs 3 gradients, holds none, worker 4 is computing, "
        "and only worker 4 is here: start 2 more workers or use --elastic"
    )


def test_waiting_for_says_that_elastic_has_shrunk_the_update():
    policy = Synchronous(3, elastic=True)
    join(policy, 0)

    assert policy.waiting_for() == (
        "update 1 needs 1 gradient (elastic: 3 were asked for), holds none, worker 0 is computing"
    )


def test_events_out_of_protocol_are_our_own_mistakes():
    policy = Synchronous(2, version=1)
    with pytest.raises(AssertionError, match="worker 0 left but was not here"):
        policy.on(Left(0))
    with pytest.raises(AssertionError, match="worker 0 pushed but was not released"):
        policy.on(Pushed(0, version=0, handle=1))
    join(policy, 0)
    with pytest.raises(AssertionError, match="worker 0 joined twice"):
        policy.on(Joined(0))
    with pytest.raises(AssertionError, match="worker 0 pushed version 2, now 1"):
        policy.on(Pushed(0, version=2, handle=1))
    policy.on(Pushed(0, version=1, handle=1))
    with pytest.raises(AssertionError, match="worker 0 pushed but was not released at version 1"):
        policy.on(Pushed(0, version=1, handle=2))
