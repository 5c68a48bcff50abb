"""No wait is silent, and none is for ever: one place says when it is told, when it ends, and how."""

import pytest

from evener.errors import TaskFailed, Unavailable
from evener.report import Status
from evener.testing import Clock
from evener.waiting import Waiting


class Waiter:
    def __init__(self, **options):
        self.clock, self.reports, self.reason = Clock(), [], ""
        self.wait = Waiting("worker:1", 30.0, self.reports.append, self.clock, stopped=lambda: self.reason, **options)

    def still(self, seconds):
        self.clock.advance(seconds)
        self.wait.still("ps:0 to answer", fix="start it.")


def test_it_says_who_waits_for_what_how_long_already_and_at_most():
    waiting = Waiter()
    waiting.still(2.0)
    assert waiting.reports == [Status("worker:1", "waiting", waiting_for="ps:0 to answer (2 s of 30 s)")]


def test_a_limit_that_is_not_the_one_that_counts_is_not_told():
    waiting = Waiter(bounded=False)
    waiting.still(2.0)
    assert waiting.reports[0].waiting_for == "ps:0 to answer (2 s)"


def test_a_short_wait_is_not_told_and_neither_is_its_end():
    waiting = Waiter(silent=1.0)
    waiting.still(1.0)
    waiting.wait.over()
    assert waiting.reports == []


def test_the_end_of_a_wait_that_was_told_is_told_too():
    waiting = Waiter(silent=1.0)
    waiting.still(1.1)
    waiting.wait.over()
    assert waiting.reports[1:] == [Status("worker:1", "training")]


def test_it_gives_up_when_its_patience_is_over_and_not_before():
    waiting = Waiter()
    waiting.still(30.0)
    with pytest.raises(Unavailable, match=r"worker:1 has waited 31 s for ps:0 to answer\.") as error:
        waiting.still(1.0)
    assert error.value.fix == "start it."


def test_who_is_stopped_waits_no_longer_and_says_why():
    waiting = Waiter()
    waiting.reason = "Ctrl-C"
    with pytest.raises(TaskFailed, match=r"worker:1 was stopped while it waited for ps:0 to answer: Ctrl-C\."):
        waiting.still(31.0)
