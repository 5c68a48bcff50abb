"""The launcher's side of lives on Ray, with actors that are written down here: no cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from evener.control import control
from evener.control.control import Stop
from evener.launch.starters.ray import metrics
from evener.launch.starters.ray.introductions import Introductions
from evener.launch.starters.ray.life import RayTask
from evener.report import Line, Progress, Status


class Actor:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.knows: dict[str, str] = {}
        self.trust = self

    def remote(self, certificates: dict[str, str]) -> str:
        self.knows.update(certificates)
        return "asked"


@pytest.fixture
def introductions(monkeypatch: pytest.MonkeyPatch) -> Introductions:
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (asked, []))
    return Introductions()


def test_who_comes_and_who_is_there_know_each_other(introductions):
    ps, worker = Actor(), Actor()
    introductions.introduce("ps:0", ps, "A")
    introductions.introduce("worker:0", worker, "B")
    assert ps.knows == worker.knows == {"ps-0": "A", "worker-0": "B"}


def test_who_comes_back_is_known_by_the_new_key_and_the_dead_are_told_nothing(introductions):
    ps, worker, again = Actor(), Actor(), Actor()
    introductions.introduce("ps:0", ps, "A")
    introductions.introduce("worker:0", worker, "B")
    introductions.gone("ps:0", ps)
    introductions.introduce("ps:0", again, "C")
    introductions.gone("ps:0", ps)  # its thread leaves late
    introductions.introduce("worker:1", Actor(), "D")

    assert worker.knows == again.knows == {"ps-0": "C", "worker-0": "B", "worker-1": "D"}
    assert "worker-1" not in ps.knows


def test_a_life_that_never_had_an_actor_leaves_nothing(introductions):
    introductions.gone("ps:0", None)


@pytest.fixture
def life() -> Iterator[tuple[RayTask, list[tuple[Any, bool]], list[Any]]]:
    killed: list[tuple[Any, bool]] = []
    watched: list[Any] = []
    task = RayTask("ps:0", "log", lambda actor, stands: killed.append((actor, stands)), watched.append)
    yield task, killed, watched
    task.over("the test is")
    task.close()


def test_orders_wait_until_it_stands_and_keep_their_order(life):
    task, _, _ = life
    sent: list[bytes] = []
    task.order(Stop("one"))
    task.stands("host", sent.append)
    task.order(Stop("two"))
    task.close()
    assert sent == [control.framed(Stop("one")), control.framed(Stop("two"))]
    assert task.host == "host"


def test_what_it_tells_is_heard_and_watched_and_then_its_end(life):
    task, killed, watched = life
    task.stands_as("actor")
    task.tell(Line("ps:0", "last words"))
    task.over("ended with status 3")
    assert task.ended() is None  # its last words are not read yet
    assert task.reports() == watched == [Line("ps:0", "last words")]
    assert (task.open, task.ended()) == (False, "ended with status 3")
    assert killed == [("actor", False)], "it leaves its place to the next life"
    task.kill()
    task.close()
    assert len(killed) == 1 and not task.killed


def test_killed_where_it_stands_its_process_ends_first(life):
    task, killed, _ = life
    task.stands_as("actor")
    task.stands("host", lambda data: None)
    task.kill()
    assert killed == [("actor", True)] and task.killed
    task.close()


def test_killed_before_it_stands_no_actor_of_it_stays(life):
    task, killed, _ = life
    task.kill()
    assert killed == []
    task.stands_as("late")
    assert killed == [("late", False)]
    task.close()


def test_closed_while_its_actor_does_not_answer_it_is_ended_all_the_same(life, monkeypatch):
    monkeypatch.setattr("evener.launch.starters.ray.life.CLOSE", 0.01)
    task, killed, _ = life
    never = threading.Event()
    task.stands_as("actor")
    task.stands("host", lambda data: None)
    task.begin(lambda: (never.wait(60), None)[1])
    task.close()
    assert killed == [("actor", True), ("actor", False)]
    never.set()


def test_the_dashboard_is_shown_the_figures_of_the_run_and_of_each_task(monkeypatch):
    shown: dict[tuple[str, ...], float] = {}

    class Gauge:
        def __init__(self, name: str, text: str, tags: tuple[str, ...]) -> None:
            self.name, self.tags = name, tags

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tuple(tags) == self.tags
            shown[(self.name.removeprefix("evener_"), *tags.values())] = value

    monkeypatch.setattr(metrics, "Gauge", Gauge)
    gauges = metrics.Metrics("r")
    gauges.hear(Progress(7, 10, 100.0, 2.0, 0.5, 3))
    gauges.hear(Status("worker:1", "waiting", 4, 50.0, 1.5, "ps:0"))
    gauges.hear(Line("ps:0", "no figure"))

    assert shown == {
        ("global_step", "r"): 7, ("steps_per_second", "r"): 2, ("dropped_gradients", "r"): 3,
        ("examples_per_second", "r", "worker:1"): 50, ("staleness", "r", "worker:1"): 1.5,
        ("waiting", "r", "worker:1"): 1,
    }  # fmt: skip
