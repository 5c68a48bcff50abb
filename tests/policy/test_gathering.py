"""Quorum: an update waits for K workers, then a little longer; what is late joins the next one. MODES 4."""

from evener.policy.events import Apply, Drained, Drop, Expired, Joined, Left, Pushed, Recall, Refreshed, Release, Wait
from evener.policy.gathering import Gathering


def join(policy, *workers):
    for worker in workers:
        assert policy.on(Joined(worker)) == [Release(worker)]
    return policy


def test_without_grace_the_quorum_makes_the_update():
    policy = join(Gathering(2, 0.0, 2), 0, 1, 2)

    assert policy.on(Pushed(1, 0, 1)) == []
    assert policy.waiting_for() == "update 1 needs 2 gradients, holds 1 (worker 1), workers 0 and 2 computing"
    assert policy.on(Pushed(0, 0, 2)) == [Apply((1, 2)), Release(0), Release(1)]


def test_a_late_gradient_joins_the_next_update():
    policy = join(Gathering(2, 0.0, 2), 0, 1, 2)
    policy.on(Pushed(0, 0, 1))
    policy.on(Pushed(1, 0, 2))

    assert policy.on(Pushed(2, 0, 3)) == []
    assert policy.on(Pushed(0, 1, 4)) == [Apply((3, 4)), Release(0), Release(2)]


def test_what_is_too_late_is_recalled_and_dropped():
    policy = join(Gathering(1, 0.0, 2), 0, 1)
    assert policy.on(Pushed(0, 0, 1)) == [Apply((1,)), Release(0)]
    assert policy.on(Pushed(0, 1, 2)) == [Apply((2,)), Recall(1), Release(0)]
    assert policy.on(Pushed(1, 0, 3)) == [
        Drop(3, "computed at version 0, now 2: less than 2 updates late are taken"), Release(1),
    ]  # fmt: skip


def test_grace_lets_others_still_make_it_and_ends():
    policy = join(Gathering(2, 0.5, 2), 0, 1, 2, 3)
    policy.on(Pushed(0, 0, 1))

    assert policy.on(Pushed(1, 0, 2)) == [Wait(1, 0.5)]
    assert policy.waiting_for() == "update 1 has 2 gradients and waits 0.5 s: workers 2 and 3 computing"
    assert policy.on(Pushed(2, 0, 3)) == []
    assert policy.on(Expired(1)) == [Apply((1, 2, 3)), Release(0), Release(1), Release(2)]
    assert policy.on(Expired(1)) == [], "an old timer changes nothing"


def test_grace_ends_as_soon_as_every_live_worker_has_given():
    policy = join(Gathering(1, 0.5, 2), 0, 1)

    assert policy.on(Pushed(0, 0, 1)) == [Wait(1, 0.5)]
    assert policy.on(Pushed(1, 0, 2)) == [Apply((1, 2)), Release(0), Release(1)]


def test_a_quorum_that_is_no_longer_one_waits_anew():
    policy = join(Gathering(2, 0.5, 2), 0, 1, 2)
    policy.on(Pushed(0, 0, 1))
    policy.on(Pushed(1, 0, 2))

    assert policy.on(Left(0)) == [Drop(1, "its worker left before the update")]
    assert policy.on(Expired(1)) == []
    assert policy.on(Pushed(2, 0, 3)) == [Apply((2, 3)), Release(1), Release(2)], "every live worker has given"


def test_too_few_workers_wait_aloud_or_fewer_are_enough():
    policy = join(Gathering(3, 0.0, 2), 0, 1)
    policy.on(Pushed(0, 0, 1))
    assert policy.on(Pushed(1, 0, 2)) == []
    assert policy.waiting_for().endswith("and only 2 workers are here: start 1 more or use --elastic")

    policy = join(Gathering(3, 0.0, 2, elastic=True), 0, 1)
    policy.on(Pushed(0, 0, 1))
    assert "needs 2 gradients (fewer are here)" in policy.waiting_for()
    assert policy.on(Pushed(1, 0, 2)) == [Apply((1, 2)), Release(0), Release(1)]


def test_loops_that_have_ended_are_not_awaited():
    policy = join(Gathering(3, 0.0, 2, workers=3), 0, 1, 2)
    policy.on(Pushed(0, 0, 1))
    policy.on(Pushed(1, 0, 2))

    assert policy.on(Left(2, ended=True)) == [Apply((1, 2)), Release(0), Release(1)]


def test_at_the_end_of_an_epoch_an_update_is_of_what_there_is():
    policy = join(Gathering(3, 0.0, 1), 0, 1, 2)
    policy.on(Pushed(0, 0, 1))

    assert policy.on(Drained(frozenset({1, 2}))) == [Apply((1,)), Recall(1), Recall(2), Release(0)]
    assert policy.on(Refreshed(1)) == []
    assert policy.on(Drained(frozenset({1, 2}))) == []


def test_after_a_quorum_was_broken_the_next_one_has_its_own_grace():
    policy = join(Gathering(2, 0.5, 2), 0, 1, 2, 3)
    policy.on(Pushed(0, 0, 1))
    assert policy.on(Pushed(1, 0, 2)) == [Wait(1, 0.5)]
    policy.on(Left(0))

    assert policy.on(Pushed(2, 0, 3)) == [Wait(2, 0.5)]
    assert policy.on(Expired(1)) == [], "that one was of a quorum that is no more"
    assert policy.on(Expired(2)) == [Apply((2, 3)), Release(1), Release(2)]
