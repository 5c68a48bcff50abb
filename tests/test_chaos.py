"""Faults on demand: a plan names the task, its life, the point and the pass; everything else goes on undisturbed."""

import ast
import errno
import os
import signal
from pathlib import Path

import pytest

from evener import chaos
from evener.chaos import Fault, parse, point
from evener.cluster.environment import chaos_plan
from evener.errors import ConfigError

SRC = Path(chaos.__file__).parent


@pytest.fixture(autouse=True)
def disarmed():
    yield
    chaos.arm("", "")


@pytest.fixture
def signals(monkeypatch):
    """The signals that this process would have sent to itself."""
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid == os.getpid(), number)))
    return sent


def test_a_plan_is_a_list_of_faults():
    text = " ps:0/server.applied@17=kill; worker:1#2/worker.pushed@40=stop;checkpoint.writing=enospc; "

    assert parse(text) == [
        Fault("ps:0", 1, "server.applied", 17, "kill"),
        Fault("worker:1", 2, "worker.pushed", 40, "stop"),
        Fault("", 1, "checkpoint.writing", 1, "enospc"),
    ]
    assert parse("worker:0#*/worker.hello=sleep:0.5") == [Fault("worker:0", 0, "worker.hello", 1, "sleep", 0.5)]
    assert parse("") == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server.applied", "'server.applied'"),
        ("server.aplied=kill", "the point 'server.aplied'"),
        ("server.applied=die", "the action 'die'"),
        ("ps/server.applied=kill", "'ps/server.applied=kill'"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_by_name(text, named):
    with pytest.raises(ConfigError, match=named):
        chaos.arm(text, "ps:0")


def test_the_plan_comes_from_one_variable():
    assert chaos_plan({}) == ""
    assert chaos_plan({"EVENER_CHAOS": "server.applied=kill"}) == "server.applied=kill"


def test_without_a_plan_a_point_is_nothing(signals):
    for name in chaos.POINTS:
        point(name)

    assert signals == []


def test_a_fault_happens_once_at_its_pass_of_its_point(signals):
    chaos.arm("ps:0/server.applied@3=kill", "ps:0")
    seen = []
    for _ in range(5):
        point("server.held")
        point("server.applied")
        seen.append(len(signals))

    assert seen == [0, 0, 1, 1, 1]
    assert signals == [(True, signal.SIGKILL)]


@pytest.mark.parametrize(
    ("task", "life", "happens"),
    [("ps:0", 1, 2), ("ps:0", 2, 1), ("ps:0", 3, 0), ("ps:1", 1, 1), ("worker:0", 1, 1), ("worker:0", 2, 1)],
)
def test_a_fault_is_of_one_task_and_one_life_unless_it_says_otherwise(signals, task, life, happens):
    chaos.arm(
        "ps:0/server.bound=kill; ps:0#2/server.bound=stop; server.bound@1=stop; worker:0#2/server.bound=kill",
        task, life,
    )  # fmt: skip
    point("server.bound")

    assert len(signals) == happens


def test_what_can_happen(signals, monkeypatch):
    chaos.arm(
        "worker.hook@1=stop; worker.hook@2=raise; worker.hook@3=enospc; worker.hook@4=sleep:7; worker.hook@5=exit",
        "worker:0",
    )  # fmt: skip
    slept, left = [], []
    monkeypatch.setattr(chaos.time, "sleep", slept.append)
    monkeypatch.setattr(os, "_exit", left.append)

    point("worker.hook")
    assert signals == [(True, signal.SIGSTOP)]
    with pytest.raises(RuntimeError, match=r"worker\.hook"):
        point("worker.hook")
    with pytest.raises(OSError, match="No space left") as full:
        point("worker.hook")
    assert full.value.errno == errno.ENOSPC
    point("worker.hook")
    assert slept == [7.0]
    point("worker.hook")
    assert left == [3]


def test_every_point_is_in_the_product_once_and_in_the_table():
    calls = [
        node.args[0].value
        for file in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "chaos.point"
    ]

    assert sorted(calls) == sorted(chaos.POINTS)
