"""Towers share out an epoch without asking: each batch goes to one of them, once, whatever the run was before."""

from random import Random

from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evener.policy.deal import Deal, Unnumbered
from evener.policy.leases import LeaseState

NEW = LeaseState(0, ())


def test_towers_take_turns():
    deal = Deal(7, 3, NEW)
    assert [deal.give(tower, 9) for tower in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert deal.give(0, 1) == []


def test_an_epoch_ends_when_all_of_it_is_applied_or_left_out():
    deal = Deal(3, 2, NEW)
    deal.give(0, 2), deal.give(1, 2)
    assert deal.apply([1, 1]) == [[0], [1]]
    assert not deal.finish()
    assert deal.skip([1, 0]) == [2]
    assert deal.finish()
    assert deal.epoch == 1
    assert deal.state() == LeaseState(3, (), (2,))
    assert deal.give(0, 1) == [3]


def test_what_a_run_lacks_of_an_epoch_comes_before_the_next_one():
    """It was cut short with batches of both in other hands."""
    deal = Deal(4, 1, LeaseState(6, (1, 3, 5)))
    assert deal.epoch == 0
    assert deal.give(0, 9) == [1, 3]
    deal.apply([2])
    assert deal.finish()
    assert deal.give(0, 9) == [5, 6, 7]
    assert deal.state() == LeaseState(5, ())


def test_a_state_is_short_where_all_that_is_left_comes_last():
    deal = Deal(10, 2, NEW)
    deal.give(0, 3), deal.give(1, 3)
    deal.apply([2, 1])
    assert deal.state() == LeaseState(3, ())
    deal.apply([1, 0])
    assert deal.state() == LeaseState(5, (3,))


def test_an_epoch_may_be_as_long_as_a_program_likes():
    """RandomSampler(..., replacement=True, num_samples=10**10), to have no second one."""
    deal = Deal(10**10, 3, LeaseState(5, (1, 2)))
    assert [deal.give(tower, 3) for tower in range(3)] == [[1, 6, 9], [2, 7, 10], [5, 8, 11]]
    assert deal.apply([2, 0, 1]) == [[1, 6], [], [5]]
    assert deal.state() == LeaseState(7, (2,))
    assert not deal.finish()


def test_where_batches_have_no_numbers_nothing_is_dealt():
    deal = Unnumbered()
    assert deal.give(0, 5) == []
    assert deal.apply([2, 1]) == [[], []]
    assert deal.skip([1, 1]) == []
    assert deal.finish()
    assert deal.state() == NEW


class Game(RuleBasedStateMachine):
    """Towers that get, apply and leave out; now and then the run ends and goes on with another number of them."""

    def __init__(self):
        super().__init__()
        self.length, self.done, self.left = 5, [], []
        self.begin(2, NEW)

    def begin(self, towers, state):
        self.towers = towers
        self.deal = Deal(self.length, towers, state)
        self.hands = [[] for _ in range(towers)]

    @rule(tower=st.integers(0, 3), want=st.integers(0, 3))
    def give(self, tower, want):
        tower %= self.towers
        given = self.deal.give(tower, want)
        assert len(given) <= want
        assert all(lease // self.length == self.deal.epoch for lease in given), "of another epoch"
        self.hands[tower] += given

    def take(self, counts):
        counts = [min(count, len(hand)) for count, hand in zip(counts, self.hands, strict=False)]
        taken = [hand[:count] for count, hand in zip(counts, self.hands, strict=True)]
        self.hands = [hand[count:] for count, hand in zip(counts, self.hands, strict=True)]
        return counts, taken

    @rule(counts=st.lists(st.integers(0, 2), min_size=4, max_size=4))
    def apply(self, counts):
        counts, taken = self.take(counts)
        assert self.deal.apply(counts) == taken
        self.done += [lease for leases in taken for lease in leases]
        self.turn()

    @rule(counts=st.lists(st.integers(0, 1), min_size=4, max_size=4))
    def skip(self, counts):
        counts, taken = self.take(counts)
        flat = [lease for leases in taken for lease in leases]
        assert self.deal.skip(counts) == flat
        self.left += flat
        self.turn()

    def turn(self):
        epoch = self.deal.epoch
        closed = {lease for lease in self.done + self.left if lease // self.length == epoch}
        assert self.deal.finish() == (len(closed) == self.length)
        assert self.deal.epoch == epoch + (len(closed) == self.length)

    @rule(towers=st.integers(1, 4))
    def resume(self, towers):
        before = self.deal.state()
        self.begin(towers, before)
        assert self.deal.state() == before, "the state changes by being restored"

    @invariant()
    def once(self):
        closed = self.done + self.left
        assert len(set(closed)) == len(closed), "a batch twice"
        out = [lease for hand in self.hands for lease in hand]
        assert len(set(out)) == len(out)
        assert not set(out) & set(closed)

    @invariant()
    def the_state_says_what_is_missing(self):
        state = self.deal.state()
        assert sorted(self.left) == list(state.skipped)
        assert set(range(state.next_lease)) == set(self.done) | set(self.left) | set(state.unapplied)
        assert not (set(self.done) | set(self.left)) & set(state.unapplied)


TestGame = Game.TestCase


@given(
    length=st.integers(1, 9), before=st.integers(1, 5), after=st.integers(1, 5), stop=st.integers(0, 30),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_every_batch_is_applied_once_however_many_towers_there_were(length, before, after, stop, seed):
    """A run of so many towers is cut short somewhere, and goes on with others to the end of its third epoch."""
    chance, applied = Random(seed), []

    def play(deal, towers, over):
        while not over():
            counts = [len(deal.give(tower, chance.randint(0, 2))) for tower in range(towers)]
            applied.extend(lease for leases in deal.apply(counts) for lease in leases)
            deal.finish()
        return deal

    first = Deal(length, before, NEW)
    play(first, before, lambda: len(applied) >= min(stop, 3 * length) or first.epoch == 3)
    second = Deal(length, after, first.state())
    play(second, after, lambda: second.epoch == 3)
    assert sorted(applied) == list(range(3 * length))
