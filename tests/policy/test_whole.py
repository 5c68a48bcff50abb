"""A push counts when it lies on every shard."""

from itertools import permutations

import pytest

from evener.policy.follow import Whole

PUSH, NEXT, OTHER = (0, 1, 1), (0, 1, 2), (1, 1, 1)  # worker, epoch, seq


def test_a_push_is_whole_when_the_last_shard_holds_it_whichever_that_is():
    for order in permutations(range(3)):
        whole = Whole(shards=3)
        assert [whole.held(PUSH, shard) for shard in order] == [False, False, True]


def test_with_one_shard_every_push_is_whole_at_once():
    assert Whole(shards=1).held(PUSH, 0)


def test_the_same_shard_twice_is_still_one_shard():
    whole = Whole(shards=2)

    assert [whole.held(PUSH, 0), whole.held(PUSH, 0), whole.held(PUSH, 1)] == [False, False, True]


def test_pushes_do_not_mix():
    whole = Whole(shards=2)

    assert not whole.held(PUSH, 0)
    assert not whole.held(NEXT, 1)
    assert not whole.held(OTHER, 1)
    assert whole.held(PUSH, 1)


def test_a_life_that_ended_is_forgotten_and_the_others_are_not():
    whole = Whole(shards=2)
    for key in (NEXT, PUSH, OTHER, (0, 2, 1)):
        whole.held(key, 0)

    assert whole.forget(worker=0, epoch=1) == [PUSH, NEXT]
    assert whole.forget(worker=0, epoch=1) == []
    assert whole.held((0, 2, 1), 1)
    assert whole.held(OTHER, 1)


def test_it_says_which_shards_are_late():
    whole = Whole(shards=4)
    assert whole.waiting_for() == ""
    whole.held(PUSH, 0)
    whole.held(PUSH, 2)
    whole.held(OTHER, 1)
    whole.held(OTHER, 0)

    assert whole.waiting_for() == "2 gradients are not yet on ps:1, ps:2, ps:3"


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_nothing_is_awaited_once_all_is_whole(shards):
    whole = Whole(shards=shards)
    for shard in range(shards):
        whole.held(PUSH, shard)

    assert whole.waiting_for() == ""
