"""The rest of an epoch, and rounds of several optimizers: nobody waits for what cannot come."""

from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import StaleSynchronous
from evener.policy.events import Apply, Drained, Drop, Joined, Left, Pushed, Recall, Refreshed, Release
from evener.policy.synchronous import Synchronous

APART = "its script is at another optimizer than the others"


def join(policy, *workers):
    for worker in workers:
        policy.on(Joined(worker))
    return policy


def test_sync_the_last_round_of_an_epoch_is_the_mean_of_what_there_is():
    policy = join(Synchronous(3), 0, 1, 2)
    assert policy.on(Pushed(0, 0, 1)) == []
    assert policy.on(Drained(frozenset({1, 2}))) == [Apply((1,)), Release(0)]
    assert policy.version == 1
    for worker, handle in ((1, 2), (2, 3)):  # the idle ones are fresh at the new version
        assert policy.on(Pushed(worker, 1, handle)) == []
    assert policy.on(Pushed(0, 1, 4)) == [Apply((2, 3, 4)), Release(0), Release(1), Release(2)]
    assert policy.on(Drained(frozenset({0, 1, 2}))) == []


def test_sync_who_was_idle_in_a_round_is_fresh_once_it_has_the_newest_parameters():
    policy = join(Synchronous(1), 0, 1)
    policy.on(Pushed(0, 0, 1))
    assert "worker 1 is still busy with an older version" in policy.waiting_for()
    assert policy.on(Refreshed(1)) == []
    assert policy.on(Pushed(1, 1, 2)) == [Apply((2,)), Recall(0), Release(1)]


def test_sync_does_not_wait_for_a_loop_that_has_ended():
    policy = join(Synchronous(3, workers=3), 0, 1, 2)
    policy.on(Pushed(0, 0, 1))
    policy.on(Pushed(1, 0, 2))
    assert policy.on(Left(2, ended=True)) == [Apply((1, 2)), Release(0), Release(1)]
    assert policy.on(Left(1)) == []  # killed: it is waited for
    assert policy.on(Pushed(0, 1, 3)) == []
    assert policy.waiting_for().startswith("update 2 needs 2 gradients (the loop has ended of worker 2), holds 1")


def test_sync_an_update_is_of_one_group():
    policy = join(Synchronous(2), 0, 1)
    assert policy.on(Pushed(0, 0, 1, group=1)) == []
    assert policy.on(Pushed(1, 0, 2, group=0)) == [Drop(2, APART), Release(1)]
    assert policy.on(Pushed(1, 0, 3, group=1)) == [Apply((1, 3)), Release(0), Release(1)]


def test_sync_the_few_go_on_to_where_the_others_are():
    policy = join(Synchronous(3), 0, 1, 2)
    policy.on(Pushed(0, 0, 1, group=0))
    policy.on(Pushed(1, 0, 2, group=0))
    assert policy.on(Pushed(2, 0, 3, group=1)) == [Drop(3, APART), Release(2)]
    assert policy.on(Left(2)) == []


def test_bounded_who_has_no_batch_holds_nobody_back():
    policy = join(StaleSynchronous(0), 0, 1, 2)
    policy.on(Pushed(0, 0, 1))
    policy.on(Pushed(1, 0, 2))
    assert policy.on(Drained(frozenset({2}))) == [Release(0), Release(1)]
    assert policy.on(Pushed(0, 0, 3)) == [Apply((3,))]
    assert policy.on(Drained(frozenset({0, 1, 2}))) == []


def test_async_has_nobody_to_free():
    policy = join(Asynchronous(), 0)
    assert (policy.on(Drained(frozenset())), policy.on(Refreshed(0))) == ([], [])


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32), workers=st.integers(1, 5), backups=st.integers(0, 2), optimizers=st.integers(1, 3),
    elastic=st.booleans(),
)  # fmt: skip
def test_sync_of_several_optimizers_comes_to_the_end_of_each_epoch(seed, workers, backups, optimizers, elastic):
    """A pool of batches, one a worker; a worker whose gradient was dropped goes on to its next optimizer."""
    random, version, handle = Random(seed), 0, 0
    policy = Synchronous(max(1, workers - backups), elastic=elastic, workers=workers)
    pool, held, at, turn = 12, {}, {}, {}  # held: handle -> worker, group, whether of a new batch
    idle, waits, here = set(), set(), set()

    def do(decisions):
        nonlocal pool, version
        for decision in decisions:
            match decision:
                case Apply(handles):
                    groups = {held[one][1] for one in handles}
                    assert len(groups) == 1
                    version += 1
                    for one in handles:
                        del held[one]
                case Drop(one):
                    worker, _, had = held.pop(one)
                    pool += had
                case Release(worker):
                    assert worker in waits
                    waits.discard(worker)
                    at[worker] = version

    for worker in range(workers):
        waits.add(worker)
        here.add(worker)
        turn[worker] = 0
        do(policy.on(Joined(worker)))
    for _ in range(3000):
        assert policy.version == version
        able = sorted(here - waits - idle)
        if not able and not pool and (held or waits):
            decisions = policy.on(Drained(frozenset(idle)))
            assert decisions, "nobody goes on"
            do(decisions)
        for worker in sorted(idle) if pool else []:
            idle.discard(worker)
            at[worker] = version
            policy.on(Refreshed(worker))
        able = sorted(here - waits - idle)
        if not able:
            assert not pool or len(here) < min(policy.needed, workers), "batches are left, and nobody goes on"
            break
        worker = random.choice(able)
        if turn[worker] == 0 and not pool:
            idle.add(worker)
            continue
        had = turn[worker] == 0
        pool -= had
        held[handle] = (worker, turn[worker], had)
        group, turn[worker] = turn[worker], (turn[worker] + 1) % optimizers
        waits.add(worker)
        do(policy.on(Pushed(worker, at[worker], handle, group)))
        handle += 1
    assert not pool and not held, "the epoch does not end"


@pytest.mark.parametrize("ended", [1, 2, 3])
def test_sync_never_needs_less_than_one(ended):
    policy = join(Synchronous(3, workers=3), 0, 1, 2)
    for worker in range(ended):
        policy.on(Left(worker, ended=True))
    assert policy.needed == max(1, 3 - ended)
