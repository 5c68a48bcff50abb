"""Which batches one process or several towers take next, and which they never take again."""

from __future__ import annotations

from evener.worker.exchange.book import Book


def book(towers=1):
    closed = []
    return Book(None, towers, closed.append), closed


def test_a_batch_that_is_given_up_is_told_and_those_beside_it_come_again():
    made, closed = book(towers=2)
    made.take()
    assert made.leases == [2, 3]
    made.refuse([3])
    assert (made.leases, closed) == ([2, 4], [3])
    assert made.state().skipped == (3,)


def test_a_batch_to_be_avoided_is_told_when_its_turn_has_come_and_never_taken():
    made, closed = book()
    made.avoid([2, 0])
    assert (made.leases, closed) == ([1], [0])
    made.take()
    assert (made.leases, closed) == ([3], [0, 2])
    assert (made.state().next_lease, made.state().skipped) == (3, (0, 2))
