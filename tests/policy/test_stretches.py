"""The book of samples: each is applied once, whoever leaves, and it stays small."""

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from evener.policy.leases import LeaseState
from evener.policy.stretches import Stretches, StretchState, in_leases, in_samples, merged


def test_the_lowest_samples_go_out_first_cut_to_what_is_wanted():
    book = Stretches()
    assert [book.take("a", 12), book.take("b", 6), book.take("c", 3)] == [(0, 12), (12, 18), (18, 21)]


def test_what_comes_back_goes_out_again_in_other_pieces_and_is_never_joined_over_a_gap():
    book = Stretches()
    for owner in "abc":
        book.take(owner, 4)
    book.leave("a")
    assert book.take("d", 3) == (0, 3)
    assert book.take("d", 3) == (3, 4), "one sample was left before the gap"
    assert book.take("d", 3) == (12, 15)


def test_stretches_that_come_back_merge_with_their_neighbours():
    book = Stretches()
    for owner in "abcd":
        book.take(owner, 5)
    for owner in "bac":
        book.leave(owner)
    assert book.take("e", 100) == (0, 15)


def test_what_comes_back_last_is_as_if_it_had_never_been_issued():
    book = Stretches()
    book.take("a", 5), book.take("b", 5)
    book.leave("b")
    assert book.state() == StretchState(0, ())
    assert book.take("c", 100) == (5, 105)


def test_only_the_owner_can_close_return_or_give_up():
    book = Stretches()
    book.take("a", 5)
    assert not book.finish(0, "b") and not book.give_back(0, "b") and not book.close(0, "b")
    assert not book.finish(1, "a"), "a stretch is named by its first sample"
    assert book.finish(0, "a") and not book.finish(0, "a")


def test_a_stretch_that_is_given_up_is_named_and_others_come_in_its_place():
    book = Stretches(limit=10)
    book.take("a", 4)
    assert book.close(0, "a")
    assert book.state() == StretchState(4, (), ((0, 4),))
    assert book.take("a", 100) == (4, 14)


def test_a_book_with_a_limit_is_exhausted_when_all_is_applied():
    book = Stretches(limit=7)
    assert [book.take("a", 5), book.take("b", 5), book.take("c", 5)] == [(0, 5), (5, 7), None]
    book.finish(0, "a")
    assert not book.exhausted
    book.finish(5, "b")
    assert book.exhausted


def test_a_million_samples_that_are_applied_in_order_take_no_memory():
    book = Stretches()
    for _ in range(2000):
        for worker in range(5):
            book.take(worker, 100)
        for start in list(book.outstanding()):
            book.finish(start, book.outstanding()[start])
    assert book.state() == StretchState(1_000_000, ()) and not book._free and not book._outstanding


@given(st.integers(1, 7), st.integers(0, 9), st.sets(st.integers(0, 8)))
def test_a_book_of_batches_is_one_of_samples_and_comes_back(size, following, holes):
    book = LeaseState(following, tuple(sorted(hole for hole in holes if hole < following)))
    assert in_leases(in_samples(book, size), size) == book


@pytest.mark.parametrize("book", [StretchState(7, ()), StretchState(20, ((3, 10),)), StretchState(20, (), ((0, 5),))])
def test_where_a_batch_would_be_applied_in_part_there_is_no_book_of_batches(book):
    assert in_leases(book, 10) is None


def test_a_sample_that_is_named_twice_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="twice"):
        merged([(0, 3), (2, 4)])


class Book(RuleBasedStateMachine):
    """Against a book that knows every sample by itself."""

    def __init__(self):
        super().__init__()
        self.book = Stretches(limit=60)
        self.free, self.out, self.applied, self.skipped = set(range(60)), {}, set(), set()

    @rule(owner=st.sampled_from("abc"), want=st.integers(1, 15))
    def take(self, owner, want):
        given_out = self.book.take(owner, want)
        if given_out is None:
            assert not self.free
            return
        start, stop = given_out
        mine = set(range(start, stop))
        assert mine and mine <= self.free and start == min(self.free) and len(mine) <= want
        assert len(mine) == want or stop not in self.free, "it was cut though there was more"
        self.free -= mine
        self.out[start] = (stop, owner)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), what=st.sampled_from(["finish", "give_back", "close"]))
    def end(self, data, what):
        start = data.draw(st.sampled_from(sorted(self.out)))
        stop, owner = self.out.pop(start)
        assert getattr(self.book, what)(start, owner)
        samples = set(range(start, stop))
        if what == "close":
            self.skipped |= samples
            end = max(self.free | self.applied | self.skipped | self.held())
            self.free |= set(range(end + 1, end + 1 + len(samples)))
        else:
            setattr(
                self,
                "applied" if what == "finish" else "free",
                (self.applied if what == "finish" else self.free) | samples,
            )

    @rule(owner=st.sampled_from("abc"))
    def leave(self, owner):
        back = self.book.leave(owner)
        assert back == sorted((start, stop) for start, (stop, holder) in self.out.items() if holder == owner)
        for start, stop in back:
            del self.out[start]
            self.free |= set(range(start, stop))

    def held(self):
        return {sample for start, (stop, _) in self.out.items() for sample in range(start, stop)}

    @invariant()
    def every_sample_is_in_one_place(self):
        state = self.book.state()
        unapplied = {sample for start, stop in state.unapplied for sample in range(start, stop)}
        below = set(range(state.next_lease))
        assert self.applied | self.skipped == below - unapplied | self.skipped
        assert below - unapplied - self.skipped == self.applied
        assert self.book.out == len(self.held())
        assert self.book.exhausted == (not self.free and not self.out)

    @invariant()
    def a_book_made_of_its_state_gives_out_the_rest(self):
        state = self.book.state()
        again = Stretches(
            next_sample=state.next_lease, returned=state.unapplied, limit=self.book.limit, skipped=state.skipped
        )
        rest = set()
        while (stretch := again.take("x", 7)) is not None:
            rest |= set(range(*stretch))
        assert rest == self.free | self.held()


TestBook = Book.TestCase
TestBook.settings = settings(derandomize=True, database=None, deadline=None, max_examples=60, stateful_step_count=30)
