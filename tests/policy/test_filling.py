"""Lockstep by samples: exactly G an update, whoever computes them."""

import pytest
from hypothesis import given, settings, strategies as st

from evener.errors import ConfigError
from evener.policy.events import Apply, Drop, Joined, Left, Pushed, Release
from evener.policy.filling import Filling
from evener.policy.stretches import Stretches


def joined(samples, workers, **more):
    policy = Filling(samples, **more)
    for worker in range(workers):
        policy.on(Joined(worker))
    return policy


def test_a_round_is_applied_when_it_holds_exactly_its_samples():
    policy = joined(21, 3)
    assert policy.on(Pushed(0, 0, 1, samples=12)) == [Release(0)]
    assert policy.on(Pushed(2, 0, 2, samples=3)) == [Release(2)]
    assert policy.on(Pushed(1, 0, 3, samples=6)) == [Apply((1, 2, 3)), Release(1)]
    assert policy.version == 1


def test_one_worker_may_give_several_gradients_to_a_round():
    policy = joined(6, 2)
    policy.on(Pushed(0, 0, 1, samples=2))
    policy.on(Pushed(0, 0, 2, samples=2))
    assert policy.on(Pushed(0, 0, 3, samples=2)) == [Apply((1, 2, 3)), Release(0)]


def test_the_gradient_of_one_who_left_is_dropped_and_its_samples_are_awaited_again():
    policy = joined(9, 3)
    policy.on(Pushed(2, 0, 1, samples=3))
    assert policy.on(Left(2)) == [Drop(1, "its worker left before the update")]
    policy.on(Pushed(0, 0, 2, samples=3))
    assert policy.on(Pushed(1, 0, 3, samples=3)) == [Release(1)], "three samples are to be computed by somebody else"
    assert policy.on(Pushed(0, 0, 4, samples=3)) == [Apply((2, 3, 4)), Release(0)]


def test_it_goes_on_from_a_version_and_drops_what_is_older():
    policy = joined(4, 1, version=7)
    assert policy.dooms(6) and not policy.dooms(7)
    assert policy.on(Pushed(0, 6, 1, samples=4)) == [Drop(1, "computed at version 6, now 7"), Release(0)]
    assert policy.on(Pushed(0, 7, 2, samples=4)) == [Apply((2,)), Release(0)]
    assert policy.version == 8


def test_it_says_what_the_round_lacks():
    policy = joined(21, 2, version=11)
    assert policy.waiting_for() == "update 12 needs 21 samples, holds none"
    policy.on(Pushed(0, 11, 1, samples=12))
    assert policy.waiting_for() == "update 12 needs 21 samples, holds 12 (worker 0)"
    policy.on(Left(0)), policy.on(Left(1))
    assert policy.waiting_for() == "update 12 needs 21 samples, holds none, and no worker is here: start one"


def test_more_than_a_round_has_room_for_is_a_mistake_of_ours():
    policy = joined(4, 1)
    with pytest.raises(AssertionError, match="5 samples were given out for 4"):
        policy.on(Pushed(0, 0, 1, samples=5))


@pytest.mark.parametrize("samples", [0, -1, True, 2.0])
def test_an_update_of_no_samples_is_refused(samples):
    with pytest.raises(ConfigError, match="samples cannot work"):
        Filling(samples)


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=30, max_size=200), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_round_k_is_the_samples_kG_to_k1G_whoever_comes_and_goes(choices, sizes):
    """Driven as a server does: a book of samples, of which a round gives out no more than it has room for."""
    total = sum(sizes)
    book, policy = Stretches(), Filling(total)
    out, held, rounds = {}, {}, []  # worker -> its stretch; handle -> worker, stretch
    live, idle, handle = set(), set(), 0

    def release(worker):
        room = total - book.out
        stretch = book.take(worker, min(sizes[worker], room)) if room else None
        if stretch is None:
            idle.add(worker)
        else:
            out[worker] = stretch

    def tell(event):
        for decision in policy.on(event):
            match decision:
                case Apply(handles):
                    stretches = [held.pop(one) for one in handles]
                    rounds.append(sorted(stretch for _, stretch in stretches))
                    assert all(book.finish(stretch[0], worker) for worker, stretch in stretches)
                case Drop(one, _):
                    held.pop(one)
                case Release(worker):
                    release(worker)
        waiting = sorted(idle)
        idle.clear()
        for worker in waiting:
            release(worker)

    for choice in choices:
        worker = choice % len(sizes)
        if worker not in live:
            live.add(worker)
            tell(Joined(worker))
        elif choice >= 900 and len(live) > 1:
            live.remove(worker)
            idle.discard(worker)
            out.pop(worker, None)
            book.leave(worker)
            tell(Left(worker))
        elif worker in out:
            handle += 1
            held[handle] = (worker, out.pop(worker))
            start, stop = held[handle][1]
            tell(Pushed(worker, policy.version, handle, samples=stop - start))
        assert out or not live, "somebody computes as long as anybody is here"
        for number, stretches in enumerate(rounds):
            samples = [sample for stretch in stretches for sample in range(*stretch)]
            assert samples == list(range(number * total, (number + 1) * total))
