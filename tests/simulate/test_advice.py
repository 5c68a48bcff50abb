"""Advice: who wastes what, on the times that were seen."""

import pytest

from evener.modes import Async, Bounded, Rennala, Ringmaster, Sync
from evener.simulate.advice import advice, better, share

PERMANENT = {0: [0.02] * 9, 1: [0.04] * 9, 2: [0.06] * 9, 3: [0.08] * 9}
NOW_AND_THEN = {0: [0.02] * 31, 1: [0.02] * 31, 2: [0.02] * 31, 3: [0.02] * 27 + [0.4] * 4}
EQUAL = {0: [0.02, 0.021], 1: [0.021, 0.02]}


@pytest.mark.parametrize(
    ("mode", "used"),
    [(Sync(), 0.48), (Bounded(), 0.48), (Async(), 1.0), (Ringmaster(), 0.96), (Rennala(gradients_per_update=4), 0.59)],
    ids=lambda one: getattr(one, "name", one),
)
def test_how_much_of_workers_that_differ_for_good_is_used(mode, used):
    assert share(mode, list(PERMANENT.values())) == pytest.approx(used, abs=0.02)


def test_a_mode_that_wastes_is_told_with_who_is_slow_and_what_would_not():
    told = advice(Sync(), PERMANENT, by_speed=True)

    assert told.startswith("warning: sync uses 48% of what these workers could give: ")
    assert "worker:3 takes 80 ms a batch, worker:0 20 ms" in told
    assert "--mode sync --batch-by-speed (100%)" in told
    assert "comes and goes" not in told


def test_bounded_is_no_cure_for_workers_that_differ_for_good():
    assert "bounded uses 48%" in advice(Bounded(), PERMANENT)


def test_one_that_comes_and_goes_is_told_from_one_that_is_slow():
    told = advice(Sync(), NOW_AND_THEN)

    assert "worker:3 comes and goes: 4 of its last 31 batches took up to 400 ms, the others 20 ms" in told
    assert "worker:3 takes" not in told


def test_nothing_is_said_where_nothing_is_wasted():
    assert advice(Sync(), EQUAL) == ""
    assert advice(Async(), PERMANENT) == ""
    assert advice(Sync(), {0: [1.0] * 9, 1: [1.3] * 9}) == "", "0.88 of what they could give"
    assert advice(Sync(), {0: [0.02]}) == "", "alone"
    assert advice(Sync(), {worker: [1.0 + worker] for worker in range(65)}) == "", "too many to look at"
    assert advice(Sync(), {0: [0.0], 1: [1.0]}) == "", "a clock that stands"


def test_what_changes_least_is_named_first():
    ways = better(list(PERMANENT.values()), by_speed=True)

    assert ways[0].how == "--mode sync --batch-by-speed"
    assert all(use.share >= 0.8 for use in ways)
    assert "--mode async" in [use.how for use in ways]
    assert "--mode sync --replicas-to-aggregate 3" not in [use.how for use in ways], "a backup is no cure for good"


def test_one_very_slow_worker_of_four_may_be_left_out():
    ways = [use.how for use in better([[1.0], [1.0], [1.0], [10.0]], by_speed=False)]

    assert ways[0] == "--mode sync --replicas-to-aggregate 3"
