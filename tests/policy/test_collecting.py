"""Collecting: B gradients, each less than R updates old; nobody waits. MODES 3."""

import math

from evener.policy.collecting import Collecting
from evener.policy.events import Apply, Drained, Drop, Expired, Joined, Left, Pushed, Recall, Refreshed, Release


def join(policy, *workers):
    for worker in workers:
        assert policy.on(Joined(worker)) == [Release(worker)]
    return policy


def test_rennala_a_fast_worker_gives_several_of_one_version():
    policy = join(Collecting(3, 1), 0, 1)

    assert policy.on(Pushed(0, 0, 1)) == [Release(0)]
    assert policy.on(Pushed(0, 0, 2)) == [Release(0)]
    assert policy.waiting_for() == (
        "update 1 needs 3 gradients of version 0, holds 2 (worker 0), workers 0 and 1 computing"
    )
    assert policy.on(Pushed(0, 0, 3)) == [Apply((1, 2, 3)), Recall(1), Release(0)]
    assert "worker 1 busy with an older version" in policy.waiting_for()
    assert policy.on(Pushed(1, 0, 4)) == [Drop(4, "computed at version 0, now 1"), Release(1)]
    assert policy.on(Pushed(1, 1, 5)) == [Release(1)]


def test_ringmaster_takes_what_is_young_enough_and_says_what_is_not():
    policy = join(Collecting(1, 2), 0, 1, 2)

    assert policy.on(Pushed(0, 0, 1)) == [Apply((1,)), Release(0)]
    assert policy.on(Pushed(1, 0, 2)) == [Apply((2,)), Recall(2), Release(1)], "one update late: taken"
    assert policy.dooms(0)
    assert not policy.dooms(1)
    assert policy.on(Pushed(2, 0, 3)) == [
        Drop(3, "computed at version 0, now 2: less than 2 updates late are taken"), Release(2),
    ]  # fmt: skip
    assert policy.on(Pushed(2, 2, 4)) == [Apply((4,)), Recall(0), Release(2)], "worker 0 computes on version 0 + 1"
    assert policy.waiting_for() == ""


def test_nobody_is_recalled_twice():
    policy = join(Collecting(1, 1), 0, 1)

    assert policy.on(Pushed(0, 0, 1)) == [Apply((1,)), Recall(1), Release(0)]
    assert policy.on(Pushed(0, 1, 2)) == [Apply((2,)), Release(0)]


def test_the_gradients_of_a_worker_that_left_do_not_count():
    policy = join(Collecting(3, math.inf), 0, 1)
    policy.on(Pushed(0, 0, 1))
    policy.on(Pushed(1, 0, 2))

    assert policy.on(Left(0)) == [Drop(1, "its worker left before the update")]
    assert policy.on(Pushed(1, 0, 3)) == [Release(1)]
    assert policy.on(Pushed(1, 0, 4)) == [Apply((2, 3, 4)), Release(1)]


def test_who_joins_late_computes_on_the_newest():
    policy = join(Collecting(1, 1, version=7), 0)
    policy.on(Pushed(0, 7, 1))
    join(policy, 1)

    assert policy.on(Pushed(1, 8, 2)) == [Apply((2,)), Recall(0), Release(1)]


def test_at_the_end_of_an_epoch_an_update_is_of_what_there_is():
    policy = join(Collecting(3, 1), 0, 1)
    policy.on(Pushed(0, 0, 1))

    assert policy.on(Drained(frozenset({0, 1}))) == [Apply((1,)), Recall(0), Recall(1)]
    assert policy.on(Drained(frozenset({0, 1}))) == []
    assert policy.on(Refreshed(0)) == []
    assert policy.on(Pushed(0, 1, 2)) == [Release(0)], "it has looked at the newest parameters"
    assert policy.on(Expired(1)) == []


def test_an_event_costs_no_look_at_every_worker():
    """Counted: who is still young is not looked at again, however many there are."""

    class Counting(Collecting):
        looked = 0

        def dooms(self, version):
            self.looked += 1
            return super().dooms(version)

    policy = join(Counting(1, 1000), *range(500))
    for handle in range(500):
        policy.on(Pushed(handle % 500, 0, handle))
    assert policy.looked <= 3 * 500
