"""The launcher decides who starts again: its tasks are processes in name only, and time passes when a test says so."""

from __future__ import annotations

import signal

import pytest

from evener.control.control import Stop
from evener.control.interrupts import Interrupts
from evener.launch import run as local
from evener.launch.run import LocalRun
from evener.settings import Settings

KILLED = "was killed by SIGKILL"


class Life:
    """One life of a task; it lasts until a test ends it, and reports nothing."""

    host = log = ""
    pid = 0
    open = False
    how = None

    def order(self, order): ...

    def reports(self):
        return []

    def ended(self):
        return self.how

    def kill(self):
        self.how = self.how or KILLED

    def close(self): ...


class Stubborn(Life):
    """Ends by no order."""

    def __init__(self):
        self.open, self.orders = True, []

    def order(self, order):
        self.orders.append(order)

    def kill(self):
        super().kill()
        self.open = False


class Launcher:
    """A run of 2 ps tasks and 2 workers, none of which is a process."""

    def __init__(self, *, life=Life, **options):
        self.now, self.life, self.interrupts = 100.0, life, Interrupts()
        self.started = []
        settings = Settings(**{"ps": 2, "workers": 2, "train_steps": 9} | options)
        self.local = LocalRun(
            settings, hear=lambda report: None, say=lambda text: None, clock=lambda: self.now, starter=self
        )
        for task in self.local.tasks:
            self.local._start(task)

    def start(self, assignment):
        self.started.append(f"{assignment.job}:{assignment.index}")
        return self.life()

    def close(self): ...

    def end(self, name, how):
        """A task ends, and the launcher sees it."""
        next(task for task in self.local.tasks if task.name == name).running.how = how
        self.look()

    def look(self, seconds=0.0):
        """Time passes; who has been started since?"""
        self.now += seconds
        self.started.clear()
        for _ in range(2):
            self.local._turn(self.interrupts)
        return sorted(self.started)


class Hasty:
    """Its tasks end as they should, at once."""

    def __init__(self):
        self.did = []

    def start(self, assignment):
        self.did.append(f"{assignment.job}:{assignment.index}")
        life = Life()
        life.how, life.open = "", False
        return life

    def close(self):
        self.did.append("close")


def test_workers_start_first_since_they_take_longest_and_the_starter_is_closed_at_the_end():
    starter, settings = Hasty(), Settings(ps=2, workers=2, train_steps=9)
    ended = LocalRun(settings, hear=lambda report: None, say=print, clock=lambda: 1.0, starter=starter).run()
    assert (ended, starter.did) == ("", ["worker:0", "worker:1", "ps:0", "ps:1", "close"])


@pytest.fixture
def launch():
    return Launcher


@pytest.mark.slow
def test_a_killed_task_starts_again_each_time_later_until_its_restarts_are_used_up(launch):
    run = launch(max_restarts=2)
    run.end("worker:1", KILLED)
    assert (run.look(0.1), run.look(0.2)) == ([], ["worker:1"])
    run.end("worker:1", KILLED)
    assert (run.look(0.4), run.look(0.2)) == ([], ["worker:1"])
    run.end("worker:1", KILLED)
    assert run.look(60.0) == []
    assert run.local.failure(excused=False) is None, "async: the others go on without it"


def test_a_ps_that_may_not_start_again_is_the_failure(launch):
    run = launch(max_restarts=0)
    run.end("ps:1", KILLED)

    assert run.local.failure(excused=False).task == "ps:1"


@pytest.mark.slow
def test_when_a_ps_dies_who_had_left_the_run_starts_again_too(launch):
    """They left since the run was over; it is not if steps were lost. ps:1 had been told that it is over."""
    run = launch()
    for name in ("worker:0", "worker:1", "ps:1"):
        run.end(name, "")
    assert run.look(60.0) == []
    run.end("ps:0", KILLED)

    assert run.look(0.3) == ["ps:0", "ps:1", "worker:0", "worker:1"]


@pytest.mark.slow
def test_when_a_ps_dies_who_is_just_leaving_starts_again_too(launch):
    """Its process still ends when the ps is dead already: the launcher sees that death first."""
    run = launch()
    run.end("worker:0", "")
    run.end("ps:0", KILLED)
    run.end("worker:1", "")
    run.end("ps:1", "")

    assert run.look(0.3) == ["ps:0", "worker:0"]
    assert run.look(3.0) == ["ps:1", "worker:1"]


@pytest.mark.slow
def test_who_leaves_after_a_ps_came_back_is_not_needed_if_the_run_ends_now(launch):
    run = launch()
    run.end("ps:0", KILLED)
    assert run.look(0.3) == ["ps:0"]
    for name in ("worker:0", "worker:1", "ps:1", "ps:0"):
        run.end(name, "")

    assert run.look(3.0) == []
    assert all(task.over for task in run.local.tasks)


@pytest.fixture
def stubborn(launch, monkeypatch):
    """A run whose tasks all listen, and end by no order."""
    monkeypatch.setattr(local, "wait", lambda sources, seconds: [])
    run = launch(life=Stubborn)
    for index in range(2):
        run.local._publish(index, f"tcp://h{index}:1")
    return run


def killed(run):
    return [task.running.how == KILLED for task in run.local.tasks]


def test_an_interrupted_run_has_so_many_seconds_to_save_and_is_killed_then(stubborn):
    stubborn.interrupts(signal.SIGINT, None)
    stubborn.look()
    leader = stubborn.local.tasks[0].running
    assert leader.orders[-1] == Stop("interrupted")
    stubborn.look(Settings().grace - 0.1)
    assert killed(stubborn) == [False] * 4
    stubborn.look(0.2)
    assert killed(stubborn) == [True] * 4
    assert leader.orders.count(Stop("interrupted")) == 1


def test_a_second_interrupt_waits_for_nobody(stubborn):
    stubborn.interrupts(signal.SIGINT, None)
    stubborn.look()
    stubborn.interrupts(signal.SIGINT, None)
    stubborn.look()
    assert killed(stubborn) == [True] * 4


def test_a_worker_that_was_given_up_stays_so_when_a_ps_dies(launch):
    run = launch(max_restarts=1)
    run.end("worker:1", KILLED)
    assert run.look(0.3) == ["worker:1"]
    run.end("worker:1", KILLED)
    run.end("ps:0", KILLED)

    assert run.look(60.0) == ["ps:0"]
