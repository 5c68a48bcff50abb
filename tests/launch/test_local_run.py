"""The launcher decides who starts again: its tasks are processes in name only, and time passes when a test says so."""

from __future__ import annotations

import signal

import pytest

from evener.control.control import Stop
from evener.control.interrupts import Interrupts
from evener.control.told import LEFT
from evener.launch import crew as crews
from evener.launch.run import LocalRun
from evener.launch.towers import GRACE, TowersRun
from evener.report import Failed, Leaves, Line, Status
from evener.settings import Settings
from evener.testing import Clock

KILLED = "was killed by SIGKILL"


class Life:
    """One life of a task; it lasts until a test ends it, and reports what a test lets it say."""

    host = log = ""
    pid = 0
    open = False
    how = None
    said = ()

    def order(self, order): ...

    def reports(self):
        said, self.said = self.said, ()
        return said

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

    def __init__(self, *, life=Life, rules=LocalRun, **options):
        self.clock, self.life, self.interrupts = Clock(), life, Interrupts()
        self.started, self.heard = [], []
        settings = Settings(**{"ps": 2, "workers": 2, "train_steps": 9} | options)
        self.rules = rules(
            settings, hear=self.heard.append, say=lambda text: None, clock=self.clock, starter=self
        )  # fmt: skip
        self.crew = self.rules.crew
        for task in self.crew.tasks:
            self.crew.start(task)

    def start(self, assignment):
        self.started.append(f"{assignment.job}:{assignment.index}")
        return self.life()

    def close(self): ...

    def life_of(self, name):
        return next(task for task in self.crew.tasks if task.name == name).running

    def end(self, name, how):
        """A task ends, and the launcher sees it."""
        life = self.life_of(name)
        life.how, life.open = how, False
        self.look()

    def fail(self, failed):
        """A task says why, and ends."""
        self.life_of(failed.task).said = (failed,)
        self.look()
        self.end(failed.task, "ended with status 1")

    def look(self, seconds=0.0):
        """Time passes; who has been started since?"""
        self.clock.advance(seconds)
        self.started.clear()
        for _ in range(2):
            self.crew.turn(self.rules, self.interrupts)
        return sorted(self.started)


@pytest.fixture(autouse=True)
def nothing_is_waited_for(monkeypatch):
    """Tasks that are no processes have said what they say."""
    monkeypatch.setattr(crews, "wait", lambda sources, seconds: [source for source in sources if source.said])


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


def test_a_killed_task_starts_again_each_time_later_until_its_restarts_are_used_up(launch):
    run = launch(max_restarts=2)
    run.end("worker:1", KILLED)
    assert (run.look(0.1), run.look(0.2)) == ([], ["worker:1"])
    run.end("worker:1", KILLED)
    assert (run.look(0.4), run.look(0.2)) == ([], ["worker:1"])
    run.end("worker:1", KILLED)
    assert run.look(60.0) == []
    assert run.crew.failure(excused=False) is None, "async: the others go on without it"


def test_a_run_goes_on_without_workers_while_the_fewest_are_left(launch):
    run = launch(workers=4, min_workers=2, max_restarts=0)
    run.end("worker:1", KILLED)
    run.end("worker:3", KILLED)
    assert run.crew.failure(excused=False) is None
    run.end("worker:0", KILLED)
    assert run.crew.failure(excused=False).task == "worker:0"


def test_a_ps_that_may_not_start_again_is_the_failure(launch):
    run = launch(max_restarts=0)
    run.end("ps:1", KILLED)

    assert run.crew.failure(excused=False).task == "ps:1"


def test_when_a_ps_dies_who_had_left_the_run_starts_again_too(launch):
    """They left since the run was over; it is not if steps were lost. ps:1 had been told that it is over."""
    run = launch()
    for name in ("worker:0", "worker:1", "ps:1"):
        run.end(name, "")
    assert run.look(60.0) == []
    run.end("ps:0", KILLED)

    assert run.look(0.3) == ["ps:0", "ps:1", "worker:0", "worker:1"]


def test_when_a_ps_dies_who_is_just_leaving_starts_again_too(launch):
    """Its process still ends when the ps is dead already: the launcher sees that death first."""
    run = launch()
    run.end("worker:0", "")
    run.end("ps:0", KILLED)
    run.end("worker:1", "")
    run.end("ps:1", "")

    assert run.look(0.3) == ["ps:0", "worker:0"]
    assert run.look(3.0) == ["ps:1", "worker:1"]


def test_who_leaves_after_a_ps_came_back_is_not_needed_if_the_run_ends_now(launch):
    run = launch()
    run.end("ps:0", KILLED)
    assert run.look(0.3) == ["ps:0"]
    for name in ("worker:0", "worker:1", "ps:1", "ps:0"):
        run.end(name, "")

    assert run.look(3.0) == []
    assert all(task.over for task in run.crew.tasks)


@pytest.fixture
def stubborn(launch):
    """A run whose tasks all listen, and end by no order."""
    run = launch(life=Stubborn)
    for index in range(2):
        run.crew._publish(index, f"tcp://h{index}:1")
    return run


def missed(run):
    """Whose first words it has told to wait for since."""
    tasks = [report.task for report in run.heard if isinstance(report, Status) and "first words" in report.waiting_for]
    run.heard.clear()
    return tasks


def test_who_has_said_nothing_for_ten_seconds_is_named_until_it_speaks(launch):
    run = launch(ps=1)
    run.look(9.0)
    assert missed(run) == []
    life = run.life_of("worker:1")
    life.open, life.said = True, (Line("worker:1", "is here"),)
    run.look(1.0)
    assert missed(run) == ["ps:0", "worker:0"]
    run.look(1.0)
    assert missed(run) == ["ps:0", "worker:0"], "views say it as often as people want it"
    run.end("worker:1", KILLED)
    run.look(0.5)
    run.look(10.0)
    assert missed(run) == ["ps:0", "worker:0", "worker:1"], "a new life is silent too"


def killed(run):
    return [task.running.how == KILLED for task in run.crew.tasks]


def test_an_interrupted_run_has_so_many_seconds_to_save_and_is_killed_then(stubborn):
    stubborn.interrupts(signal.SIGINT, None)
    stubborn.look()
    leader = stubborn.crew.tasks[0].running
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


# --- machines that go away


def test_a_run_whose_whole_machine_goes_away_is_cut_short_and_nothing_starts_again(launch):
    run = launch(life=Stubborn)
    run.life_of("worker:1").said = (Leaves("worker:1", machine=True),)
    run.look()
    for name in ("worker:1", "ps:1", "worker:0", "ps:0"):
        run.end(name, LEFT)

    assert run.look(60.0) == [] and all(task.over for task in run.crew.tasks)


def test_a_run_with_tasks_on_machines_that_stay_goes_on_and_brings_the_others_back(launch):
    run = launch(life=Stubborn)
    run.life_of("ps:0").host = "that stays"
    run.life_of("worker:1").said = (Leaves("worker:1", machine=True),)
    run.look()
    run.end("worker:1", LEFT)

    assert run.look(60.0) == ["worker:1"]


# --- towers


@pytest.fixture
def towers(launch):
    """A run of 3 towers, none of which is a process, and which end by no order."""
    return launch(life=Stubborn, rules=TowersRun, ps=0, workers=1, towers=3)


def lives(run):
    return [task.running for task in run.crew.tasks]


def lose_it(run, *names):
    """These towers end because another one has."""
    for name in names:
        run.fail(Failed(name, "PeerGone", "another tower is gone"))


def lines(run):
    return [report.text for report in run.heard if isinstance(report, Line)]


def test_towers_end_together_and_start_together_when_one_is_killed(towers):
    towers.end("worker:1", KILLED)
    first, second, third = lives(towers)
    assert first.orders == third.orders == [Stop(f"worker:1 {KILLED}")] and second.orders == []
    lose_it(towers, "worker:0", "worker:2")

    assert lines(towers)[0] == f"worker:1 {KILLED}; all towers start again in 0.25 s (2 restarts left)"
    assert (towers.look(0.2), towers.look(0.1)) == ([], ["worker:0", "worker:1", "worker:2"])


def test_a_tower_that_does_not_notice_is_killed_so_that_the_others_can_start_again(towers):
    towers.end("worker:1", KILLED)
    lose_it(towers, "worker:0")
    stopped = towers.life_of("worker:2")
    towers.look(GRACE - 0.1)
    assert stopped.how is None
    towers.look(0.2)

    assert stopped.how == KILLED
    assert towers.look(0.3) == ["worker:0", "worker:1", "worker:2"]


def test_a_tower_that_was_told_to_leave_costs_no_restart(towers):
    for _ in range(5):
        towers.end("worker:1", LEFT)
        lose_it(towers, "worker:0", "worker:2")
        assert towers.look(0.3) == ["worker:0", "worker:1", "worker:2"]
    assert "at no cost" in lines(towers)[-1]
    towers.end("worker:1", KILLED)
    lose_it(towers, "worker:0", "worker:2")
    assert "(2 restarts left)" in lines(towers)[-1]


def test_an_error_of_one_is_the_end_of_the_run_although_another_was_killed_first(towers):
    failed = Failed("worker:0", "ValueError", "no such layer")
    towers.end("worker:1", KILLED)
    towers.fail(failed)
    lose_it(towers, "worker:2")

    assert towers.look(60.0) == []
    assert towers.crew.failure(excused=False) == failed


def test_what_towers_said_of_each_other_before_they_started_again_is_no_cause_of_a_later_failure(launch):
    towers = launch(life=Stubborn, rules=TowersRun, ps=0, workers=1, towers=3, max_restarts=1)
    towers.end("worker:1", KILLED)
    lose_it(towers, "worker:0", "worker:2")
    assert len(towers.look(0.3)) == 3
    towers.end("worker:2", KILLED)
    lose_it(towers, "worker:0", "worker:1")

    assert towers.crew.failure(excused=False).what == f"worker:2 {KILLED}."


def test_towers_that_have_no_restarts_left_fail_because_of_the_one_that_died(launch):
    towers = launch(life=Stubborn, rules=TowersRun, ps=0, workers=1, towers=3, max_restarts=0)
    towers.end("worker:1", KILLED)
    lose_it(towers, "worker:0", "worker:2")

    assert towers.look(60.0) == []
    assert towers.crew.failure(excused=False).what == f"worker:1 {KILLED}."


def test_a_tower_that_has_failed_by_itself_is_the_end_of_the_run(towers):
    """Its program would fail again."""
    failed = Failed("worker:1", "ValueError", "no such layer")
    towers.fail(failed)
    towers.look(60.0)

    assert all(life.how for life in lives(towers))
    assert towers.look(60.0) == []
    assert towers.crew.failure(excused=False) == failed


def test_when_tower_0_has_ended_well_the_others_have_some_seconds_to_do_so_too(towers):
    towers.end("worker:0", "")
    towers.look(crews.ORDERLY - 0.1)
    assert [life.how for life in lives(towers)] == ["", None, None]
    towers.look(0.2)
    assert [life.how for life in lives(towers)] == ["", KILLED, KILLED]
    assert towers.crew.failure(excused=True) is None
