"""What becomes of a run when a task ends: a table, and a budget of restarts. Nothing here runs."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from evener.control.told import LEFT
from evener.launch.fate import LIVED, PROGRESS, REFILL, SOON, Again, Budget, Ended, Fails, Standing, Without, fate

KILLED = "was killed by SIGKILL"


def ended(how=KILLED, *, said=False, lived=1.0, progress=0):
    return Ended(how, said, lived, progress)


def standing(*, done=False, ending=False, may_restart=True, spares=False):
    return Standing(done, ending, may_restart, spares)


def budget(limit=3):
    return Budget(limit, now=0.0)


@pytest.mark.parametrize(
    ("what", "run", "expected"),
    [
        (ended(""), standing(), None),
        (ended(KILLED), standing(done=True), None),
        (ended(LEFT), standing(ending=True), None),
        (ended(LEFT), standing(may_restart=False), None),
        (ended(said=True), standing(spares=True), Fails("")),
        (ended(KILLED), standing(may_restart=False, spares=True), Without(f"{KILLED}; the others go on without it")),
        (ended(KILLED), standing(may_restart=False), Fails(KILLED)),
        (ended(KILLED), standing(ending=True, spares=True), Fails(KILLED)),
    ],
    ids=["as it should", "after the end", "told, at the end", "told, alone", "it said why", "spared", "needed", "late"],
)
def test_who_is_not_started_again(what, run, expected):
    assert fate(what, run, budget(0), now=1.0) == expected


def test_a_killed_task_starts_again_each_time_later_until_its_restarts_are_used_up():
    left = budget(2)
    told = [fate(ended(), standing(), left, now=0.0) for _ in range(3)]

    assert [decision.seconds for decision in told[:2]] == [0.25, 0.5]
    assert told[0].told == f"{KILLED}; it starts again in 0.25 s (1 restarts left)"
    assert told[2] == Fails(f"{KILLED} and was restarted 2 times")


def test_who_left_in_order_starts_again_at_no_cost_however_often():
    left = budget(1)
    for _ in range(5):
        assert isinstance(fate(ended(LEFT), standing(), left, now=0.0), Again)
    assert left.left == 1
    assert fate(ended(LEFT), standing(), left, now=0.0).seconds == SOON


def test_progress_gives_all_restarts_back():
    left = budget(1)
    for _ in range(20):
        assert left.spend(now=0.0, lived=LIVED, progress=PROGRESS) == 0.25


@pytest.mark.parametrize(("lived", "progress"), [(LIVED, PROGRESS - 1), (LIVED - 0.1, PROGRESS * 100)])
def test_a_life_that_was_short_or_brought_nothing_gives_none_back(lived, progress):
    left = budget(1)
    assert left.spend(now=0.0, lived=lived, progress=progress) is not None
    assert left.spend(now=0.0, lived=lived, progress=progress) is None


@given(st.lists(st.floats(0.01, 200.0), min_size=1, max_size=60), st.integers(0, 5))
def test_without_progress_there_are_no_more_restarts_than_the_time_gives(gaps, limit):
    left, now, spent = budget(limit), 0.0, 0
    for gap in gaps:
        now += gap
        spent += left.spend(now=now, lived=gap, progress=0) is not None
    assert spent <= limit + now / REFILL
