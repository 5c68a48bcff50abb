"""A worker's hand of batches: none is lost on its way from lease to step, and none is named twice."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from evener.loop.hand import Hand


def test_a_new_hand_is_empty():
    hand = Hand()
    assert (hand.count, hand.first, hand.loading, hand.most, hand.take()) == (0, -1, False, 1, [])


def test_a_batch_counts_until_a_step_names_it():
    hand = Hand()
    hand.add([7, 8])
    counts = [hand.count]
    hand.load()
    counts.append(hand.count)
    assert hand.delivered(7)
    counts.append(hand.count)
    assert hand.take() == [7]
    counts.append(hand.count)
    assert counts == [2, 2, 2, 1]


def test_a_batch_of_an_earlier_life_is_not_this_workers():
    hand = Hand()
    hand.add([3])
    hand.load()
    hand.clear()
    hand.add([5])
    assert not hand.delivered(3)
    assert hand.take() == []
    assert hand.first == 5


def test_a_lease_that_waits_cannot_be_delivered():
    hand = Hand()
    hand.add([3])
    assert not hand.delivered(3)


def test_what_was_being_loaded_waits_again_before_all_others():
    hand = Hand()
    hand.add([1, 2, 3, 4])
    hand.load(), hand.load(), hand.load()
    hand.delivered(1)
    hand.unload()
    assert not hand.loading
    assert [hand.load() for _ in range(3)] == [2, 3, 4]
    assert hand.count == 4


def test_the_most_batches_of_a_step_are_remembered_and_grow_while_it_accumulates():
    hand = Hand()
    hand.add([1, 2, 3, 4])
    seen = []
    for lease in (1, 2, 3):
        hand.load()
        hand.delivered(lease)
        seen.append(hand.most)
    hand.take()
    hand.load()
    hand.delivered(4)
    assert seen == [1, 2, 3]
    assert hand.most == 3


def test_nothing_to_load_is_our_own_mistake():
    with pytest.raises(IndexError):
        Hand().load()


class Game(RuleBasedStateMachine):
    """Any order of what may happen to a hand, beside plain lists."""

    def __init__(self):
        super().__init__()
        self.hand, self.given = Hand(), 0
        self.waiting, self.loading, self.used, self.named = [], [], [], []

    @rule(count=st.integers(0, 4))
    def add(self, count):
        leases = list(range(self.given, self.given + count))
        self.given += count
        self.waiting += leases
        self.hand.add(leases)

    @precondition(lambda self: self.waiting)
    @rule()
    def load(self):
        self.loading.append(self.waiting.pop(0))
        assert self.hand.load() == self.loading[-1]

    @precondition(lambda self: self.loading)
    @rule(chance=st.randoms(use_true_random=False))
    def deliver(self, chance):
        lease = self.loading.pop(chance.randrange(len(self.loading)))
        self.used.append(lease)
        assert self.hand.delivered(lease)
        assert not self.hand.delivered(lease)

    @rule()
    def unload(self):
        self.waiting, self.loading = self.loading + self.waiting, []
        self.hand.unload()

    @rule()
    def take(self):
        assert self.hand.take() == self.used
        self.named += self.used
        self.used = []

    @rule()
    def clear(self):
        self.hand.clear()
        self.waiting, self.loading, self.used = [], [], []

    @invariant()
    def as_expected(self):
        assert self.hand.count == len(self.waiting) + len(self.loading) + len(self.used)
        assert self.hand.first == (self.waiting[0] if self.waiting else -1)
        assert self.hand.loading == bool(self.loading)
        assert len(self.named) == len(set(self.named))


TestGame = Game.TestCase
