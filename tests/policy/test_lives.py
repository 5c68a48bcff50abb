"""Where each worker's life stands: a table of moves, deadlines of leases, and the words for who is waited for."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from evener.policy.lives import _NEXT, PART, TIMES, Lives, Stage

LIMIT = 100.0


def at_work(lives, worker=0, *, took=(), lease=0, now=0.0):
    """A worker that has done leases in so many seconds each, and computes one more; the time it begins it."""
    lives.admit(worker, 1, now)
    lives.move(worker, Stage.WAITING, now)
    lives.move(worker, Stage.COMPUTING, now, lease)
    for number, seconds in enumerate(took, start=1):
        now += seconds
        lives.move(worker, Stage.HELD, now)
        lives.move(worker, Stage.COMPUTING, now, lease + number)
    return now


def test_a_lease_is_overdue_after_ten_times_what_this_workers_leases_took():
    lives = Lives(LIMIT)
    now = at_work(lives, took=[3.0] * 9)
    assert lives.deadline(0) == TIMES * 3.0
    assert lives.overdue(now + 29.9) == []
    assert [(life.worker, life.lease) for life in lives.overdue(now + 30.0)] == [(0, 9)]


@pytest.mark.parametrize(
    ("took", "deadline"),
    [([], LIMIT), ([0.01] * 5, PART * LIMIT), ([50.0] * 5, LIMIT), ([1.0, 1.0, 1.0, 90.0], PART * LIMIT)],
    ids=["it has none yet", "quick", "slow", "one was slow"],
)
def test_a_deadline_is_neither_short_nor_longer_than_the_run_would_wait(took, deadline):
    lives = Lives(LIMIT)
    at_work(lives, took=took)
    assert lives.deadline(0) == deadline


def test_who_validates_takes_its_time():
    lives = Lives(LIMIT)
    now = at_work(lives, took=[0.1] * 5)
    lives.shown(0, now + 20.0)
    assert lives.overdue(now + 20.0 + LIMIT - 1) == []
    assert len(lives.overdue(now + 20.0 + LIMIT)) == 1
    lives.move(0, Stage.HELD, now + 90.0)
    lives.move(0, Stage.COMPUTING, now + 90.0, 9)
    assert lives.deadline(0) == PART * LIMIT, "a validation is no measure of a lease"


def test_what_a_worker_takes_is_known_of_its_next_life():
    lives = Lives(LIMIT)
    now = at_work(lives, took=[4.0] * 5)
    lives.gone(0)
    at_work(lives, now=now)
    assert lives.deadline(0) == 40.0


def test_lives_that_end_over_one_lease_are_counted_until_it_is_done():
    lives = Lives(LIMIT)
    for count in (1, 2, 3):
        at_work(lives, worker=count, lease=7)
        assert lives.gone(count) == count
    at_work(lives, worker=4, lease=7)
    lives.move(4, Stage.HELD, 1.0)
    assert lives.gone(4) == 0
    at_work(lives, worker=5, lease=7)
    assert lives.gone(5) == 1


def test_who_is_waited_for_is_named_with_its_lease_and_since_when():
    lives = Lives(LIMIT)
    assert lives.waiting_for(0.0) == ""
    for worker in range(6):
        at_work(lives, worker=worker, lease=40 + worker, now=float(worker))
    assert lives.waiting_for(12.4) == (
        "worker:0 to give lease 40 (12 s), worker:1 to give lease 41 (11 s), worker:2 to give lease 42 (10 s), "
        "worker:3 to give lease 43 (9 s) and 2 more"
    )


@pytest.mark.parametrize(("here", "there"), [(a, b) for a in Stage for b in Stage if b not in _NEXT[a]])
def test_a_wrong_turn_is_told_with_the_story_of_the_life(here, there):
    lives = Lives(LIMIT)
    lives.admit(3, 2, 0.0)
    lives._lives[3].stage = here
    with pytest.raises(AssertionError, match=r"worker:3 .*\? worker:3: epoch 2 was admitted"):
        lives.move(3, there, 1.0)


class Story(RuleBasedStateMachine):
    """Whatever happens to three workers, in any order that the table allows."""

    def __init__(self):
        super().__init__()
        self.lives, self.now, self.lease, self.done = Lives(LIMIT), 0.0, 0, []

    @rule(worker=st.integers(0, 2))
    def admit(self, worker):
        self.lives.admit(worker, 1, self.now)

    @rule(worker=st.integers(0, 2), choice=st.integers(0, 5), seconds=st.floats(0.0, 50.0))
    def move(self, worker, choice, seconds):
        self.now += seconds
        following = _NEXT[self.lives.stage(worker)]
        if following:
            stage = following[choice % len(following)]
            self.lease += stage is Stage.COMPUTING
            self.lives.move(worker, stage, self.now, self.lease if stage is Stage.COMPUTING else -1)

    @precondition(lambda self: self.lives.overdue(self.now))
    @rule()
    def recall(self):
        for life in self.lives.overdue(self.now):
            self.lives.gone(life.worker)
        assert self.lives.overdue(self.now) == []

    @rule(worker=st.integers(0, 2))
    def leave(self, worker):
        self.lives.gone(worker)
        assert self.lives.stage(worker) is Stage.GONE

    @invariant()
    def holds(self):
        self.lives.check()
        assert all(LIMIT * PART <= self.lives.deadline(life.worker) <= LIMIT for life in self.lives._lives.values())


TestStory = Story.TestCase
