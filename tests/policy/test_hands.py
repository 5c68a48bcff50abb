"""Leases ahead, and epochs with a fence: none is applied twice or lost, and an epoch ends before the next begins."""

from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from evener.policy.hands import Hands
from evener.policy.leases import Leases

contract = settings(derandomize=True, deadline=None, database=None, max_examples=200)


def fenced(epoch, **options):
    book = Leases(**options)
    book.fence(epoch)
    return book


def test_no_lease_of_the_next_epoch_goes_out_before_this_one_is_over():
    book = fenced(2)
    assert [book.take("a"), book.take("b"), book.take("a")] == [0, 1, None]
    assert not book.turn()
    book.finish(0, "a")
    assert (book.turn(), book.left) == (False, 0)
    book.close(1, "b")
    assert (book.turn(), book.turn(), book.left) == (True, False, 2)
    assert book.take("a") == 2


def test_a_book_goes_on_in_the_epoch_of_its_lowest_lease():
    assert fenced(10, next_lease=27, returned=[21]).limit == 30
    assert fenced(10, next_lease=30).limit == 40
    assert fenced(10, next_lease=30, returned=[29]).limit == 30
    assert fenced(10).limit == 10


def test_an_epoch_does_not_grow_because_a_lease_was_given_up():
    book = fenced(3)
    book.avoid(2)
    assert [book.take("a") for _ in range(3)] == [0, 1, None]
    book.close(0, "a"), book.finish(1, "a")
    assert book.turn()
    assert book.limit == 6


def test_where_batches_have_no_numbers_there_is_no_lease():
    book = fenced(0)
    assert (book.take("a"), book.turn(), book.left, book.epoch_of(-1)) == (None, False, 0, -1)


def dealt(want, epoch, workers=2):
    hands = Hands(fenced(epoch), ahead=True)
    for worker in range(workers):
        hands.enter(worker, want)
    return hands


def test_the_first_of_each_goes_out_before_the_second_of_any():
    assert dealt(3, 40).deal([0, 1], 2) == {0: [0, 2, 4], 1: [1, 3, 5]}


def test_near_the_end_of_an_epoch_nobody_takes_the_rest_ahead():
    hands = dealt(8, 13)
    assert hands.deal([0], 2) == {0: [0, 1, 2, 3]}
    assert hands.deal([1], 2) == {1: [4, 5, 6]}
    assert hands.draw(0, 8, 2) == [7, 8]
    assert hands.draw(1, 2, 2) == []


def test_who_was_told_of_nothing_in_an_epoch_that_has_begun_is_behind():
    book = fenced(2)
    hands = Hands(book, ahead=True)
    hands.enter("a", 1), hands.enter("b", 1)
    assert hands.deal(["a", "b"], 2) == {"a": [0], "b": [1]}
    for owner, lease in (("a", 0), ("b", 1)):
        hands.told(owner, [lease])
        hands.name(owner, [lease])
        book.finish(lease, owner)
    assert not hands.behind("a")
    assert book.turn()
    assert hands.behind("a")  # its parameters may lack what b has given
    assert hands.draw_alike("a", 1, {"a": 0, "b": 0}) == {"a": [2], "b": [3]}
    hands.told("a", [2])  # b has not heard of its own
    assert (hands.behind("a"), hands.behind("b")) == (False, True)


def test_what_was_taken_from_a_hand_is_void_until_it_comes_back():
    book = fenced(5)
    hands = Hands(book, ahead=False)
    hands.enter("a", 1), hands.enter("b", 1)
    hands.deal(["a", "b"], 2)
    assert hands.revoke("b") == [1]
    assert (hands.of("b"), hands.void("b", [1]), hands.has("b", [1])) == ([1], [1], True)
    assert hands.draw("b", 2, 2) == [2]  # its own again; and a new one
    assert (hands.of("b"), hands.void("b", [1, 2])) == ([1, 2], [])


def test_an_epoch_begins_for_who_gave_something_in_another_one():
    book = fenced(2)
    hands = Hands(book, ahead=True)
    hands.enter("a", 1)
    seen = []
    for _ in range(5):
        (lease,) = hands.deal(["a"], 1)["a"]
        seen.append(hands.begins("a"))
        hands.name("a", [lease])
        book.finish(lease, "a")
        book.turn()
    assert seen == [False, False, True, False, True]


@contract
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_whatever_happens_each_epoch_is_applied_or_closed_before_the_next(seed, epoch, want, ahead):
    random = Random(seed)
    book, applied, closed = fenced(epoch), set(), set()
    hands = Hands(book, ahead=ahead)
    saved, kept = book.state(), (frozenset(), frozenset())
    here: set[int] = set()
    for step in range(1500):
        owner = (random.randrange(3), step) if len(here) < 3 and random.random() < 0.2 else None
        if owner is not None:
            here.add(owner)
            hands.enter(owner, want)
        if not here or book.limit > 5 * epoch:
            continue
        owner = random.choice(sorted(here))
        named = [lease for lease in hands.of(owner) if random.random() < 0.5]
        match random.choice(["deal", "draw", "push", "push", "drop", "unused", "revoke", "leave", "save", "crash"]):
            case "deal":
                hands.deal(sorted(here), len(here))
            case "draw":
                hands.draw(owner, want, len(here))
            case "push":
                void = hands.void(owner, named)
                hands.name(owner, named)
                for lease in [] if void else named:
                    assert book.finish(lease, owner)
                    assert lease not in applied | closed
                    applied.add(lease)
                for lease in named if void else []:
                    book.give_back(lease, owner)
            case "drop":
                hands.name(owner, named)
                for lease in named:
                    book.give_back(lease, owner)
            case "unused" if random.random() < 0.2:
                hands.name(owner, named)
                closed |= {lease for lease in named if book.close(lease, owner)}
            case "revoke":
                hands.revoke(owner)
            case "leave" if random.random() < 0.3:
                here.discard(owner)
                hands.leave(owner)
                book.leave(owner)
            case "save":
                saved, kept = book.state(), (frozenset(applied), frozenset(closed))
            case "crash" if random.random() < 0.1:
                book = fenced(epoch, next_lease=saved.next_lease, returned=saved.unapplied, skipped=saved.skipped)
                hands, here = Hands(book, ahead=ahead), set()
                applied, closed = set(kept[0]), set(kept[1])
        hands.check()
        done = book.limit // epoch - 1  # epochs
        if book.turn():
            done += 1
        assert set(range(done * epoch)) <= applied | closed, "an epoch has begun before the one before it was over"
        assert all(lease < (done + 1) * epoch for lease in book.outstanding())


def test_a_hand_is_no_larger_than_it_is_wanted():
    hands = dealt(0, 9)
    assert hands.deal([0, 1], 2) == {0: [], 1: []}
    hands.want(0, 1)
    assert hands.deal([0, 1], 2) == {0: [0], 1: []}
    with pytest.raises(KeyError):
        hands.want(7, 1)


def test_groups_are_given_whole_or_not_at_all():
    hands = Hands(Leases(limit=8), ahead=True)
    for worker in range(3):
        hands.enter(worker, 3)
    assert hands.deal_groups([0, 1, 2], 3, 3) == {0: [0, 1, 2], 1: [3, 4, 5], 2: []}


@contract
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
def test_whoever_leaves_or_is_dropped_every_update_of_a_run_has_a_whole_group(seed, size, ahead):
    """Workers push, are dropped, leave and come again: the leases of a run are exactly those of its updates."""
    random, updates, workers = Random(seed), 12, 3
    book = Leases(limit=updates * size)
    hands, applied = Hands(book, ahead=ahead), []
    for worker in range(workers):
        hands.enter(worker, random.randint(1, 9))
    while len(applied) < updates * size:
        hands.deal_groups([w for w in range(workers) if len(hands.of(w)) < size], workers, size)
        hands.check()
        ready = [worker for worker in range(workers) if hands.of(worker)]
        assert ready, "nobody has a batch, and the run is not over"
        worker = random.choice(ready)
        group = hands.of(worker)[:size]
        assert len(group) == size
        if random.random() < 0.2:
            hands.leave(worker)
            book.leave(worker)
            hands.enter(worker, random.randint(1, 9))
            continue
        hands.name(worker, group)
        for lease in group:
            assert book.holds(lease, worker)
        if random.random() < 0.2:
            for lease in group:
                book.give_back(lease, worker)
        else:
            applied += [lease for lease in group if book.finish(lease, worker)]
    assert sorted(applied) == list(range(updates * size))
    assert book.exhausted
