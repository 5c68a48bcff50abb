"""Leases: every batch is applied exactly once, whoever leaves on the way."""

from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from evener.policy.leases import Leases, LeaseState


def test_numbers_go_out_in_order_to_whoever_asks():
    book = Leases()

    assert [book.take("a"), book.take("b"), book.take("a")] == [0, 1, 2]
    assert book.outstanding() == {0: "a", 1: "b", 2: "a"}


def test_the_lowest_returned_lease_goes_out_before_a_new_one():
    book = Leases()
    for _ in range(4):
        book.take("a")
    book.give_back(2, "a")
    book.give_back(1, "a")

    assert [book.take("b"), book.take("b"), book.take("b")] == [1, 2, 4]


def test_all_leases_of_an_owner_that_leaves_return():
    book = Leases()
    book.take("a"), book.take("b"), book.take("a")

    assert book.leave("a") == [0, 2]
    assert book.leave("a") == []
    assert book.outstanding() == {1: "b"}
    assert book.take("b") == 0


def test_a_lease_that_was_issued_again_belongs_to_its_new_owner():
    book = Leases()
    old, new = (0, 1), (0, 2)  # two lives of worker 0
    lease = book.take(old)
    book.leave(old)
    assert book.take(new) == lease

    assert not book.finish(lease, old)
    assert not book.give_back(lease, old)
    assert book.finish(lease, new)
    assert not book.finish(lease, new)


def test_nobody_can_finish_what_nobody_holds():
    book = Leases()

    assert not book.finish(0, None)
    assert not book.give_back(3, "a")


def test_at_the_limit_only_returned_leases_go_out():
    book = Leases(limit=2)
    book.take("a"), book.take("b")

    assert book.take("a") is None
    book.leave("b")
    assert book.take("a") == 1


def test_the_book_is_exhausted_when_nothing_can_come_back():
    book = Leases(limit=2)
    seen = [book.exhausted]
    book.take("a"), book.take("b")
    seen.append(book.exhausted)
    book.finish(0, "a")
    book.leave("b")
    seen.append(book.exhausted)
    book.finish(book.take("a"), "a")

    assert [*seen, book.exhausted] == [False, False, False, True]


def test_a_book_without_limit_is_never_exhausted():
    assert not Leases().exhausted


def test_the_state_keeps_what_was_returned_and_what_is_out():
    book = Leases()
    for _ in range(4):
        book.take("a")
    book.finish(1, "a")
    book.give_back(3, "a")

    assert book.state() == LeaseState(next_lease=4, unapplied=(0, 2, 3))


def test_a_restored_book_issues_what_was_not_applied_and_then_goes_on():
    book = Leases(next_lease=5, returned=(4, 0, 3), limit=6)

    assert [book.take("a") for _ in range(5)] == [0, 3, 4, 5, None]


@pytest.mark.parametrize("returned", [[1, 1], [5], [-1]])
def test_a_state_that_cannot_be_is_our_own_mistake(returned):
    with pytest.raises(AssertionError, match="a lease was returned"):
        Leases(next_lease=5, returned=returned)


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(0, 30))
def test_across_crashes_every_lease_is_applied_exactly_once(random: Random, limit: int):
    """A crash rolls the applied leases back to the checkpoint, as it rolls back the parameters."""
    book, applied = Leases(limit=limit), set()
    saved, saved_applied = book.state(), frozenset()
    for step in range(2000):
        if book.exhausted:
            break
        owner = random.randrange(3)
        match random.choice(["take", "finish", "finish", "drop", "leave", "save", "crash"] if step < 500 else ["end"]):
            case "take":
                book.take(owner)
            case "finish":
                for lease in book.outstanding():
                    if book.finish(lease, owner):
                        assert lease not in applied
                        applied.add(lease)
            case "drop":
                book.give_back(random.randrange(limit + 1), owner)
            case "leave":
                book.leave(owner)
            case "save":
                saved, saved_applied = book.state(), frozenset(applied)
            case "crash":
                book = Leases(next_lease=saved.next_lease, returned=saved.unapplied, limit=limit)
                applied = set(saved_applied)
            case "end":  # enough faults: let the run come to its end
                lease = book.take("last")
                for old in range(3):
                    book.leave(old)
                if lease is not None and book.finish(lease, "last"):
                    assert lease not in applied
                    applied.add(lease)

    assert applied == set(range(limit))
    assert book.state() == LeaseState(limit, ())
