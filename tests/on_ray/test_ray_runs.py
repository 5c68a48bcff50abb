"""Runs on a Ray cluster of several nodes: they end whole whatever happens to the nodes, and leave nothing there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_nodes import RayNodes
from running import EVENER, PATIENCE, RECIPE, Run, alive, evener, until

from evener.modes import MODES

pytestmark = pytest.mark.slow
every = pytest.mark.skipif(not os.environ.get("RAY"), reason="all runs on a Ray cluster: make test-ray")

STEPS = 300
SLOW = ["--slow", "worker:0=10ms"]
BOTH_SLOW = ["--slow", "worker:0=20ms,worker:1=20ms"]
#: Of a run that has begun to train.
TRAINS = r"global step [1-9]"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "small.py").write_text(RECIPE)
    return tmp_path


def words(nodes: Any, *options: object, command: str = "train", what: str = "small.py:recipe") -> list[object]:
    where = ["--launcher", "ray", "--ray-address", nodes.address]
    return (
        [*EVENER, command, *where, *options, what]
        if command == "launch"
        else [*EVENER, command, what, *where, *options]
    )


def on(job: str) -> list[str]:
    """The option by which the tasks of a job stand on nodes that have this resource alone."""
    return [f"--resources-per-{'worker' if job == 'workers' else 'ps'}", json.dumps({job: 1})]


def whole(place: Path, steps: int, logdir: str = "run") -> None:
    """The run has ended as it should: each sample exactly once."""
    audit = evener(place, "audit", logdir)
    assert audit.code == 0, audit.text
    assert f"up to step {steps:,}" in audit.text


@pytest.fixture
def gone(nodes: Any) -> Iterator[None]:
    """When the test is over no task of evener stands on the cluster."""
    yield
    until(lambda: not [name for name in nodes.actors() if name.startswith("evener")], PATIENCE, "no actor is left")


@pytest.mark.parametrize(
    "mode", ["async", "sync", *(pytest.param(mode, marks=every) for mode in MODES if mode not in ("async", "sync"))]
)
def test_a_run_in_every_mode(mode, nodes, gone, place):
    nodes.add(CPU=2)
    options = ["--ps", 2, "--workers", 2, "--mode", mode, "--train-steps", 60, "--logdir", "run", "--json"]
    with Run(words(nodes, *options), place) as run:
        done = run.finish()

    assert done.code == 0, done.text
    assert done.json["global_step"] == 60
    whole(place, 60)


def test_it_finishes_when_a_node_with_a_worker_is_lost(nodes, gone, place):
    nodes.add(CPU=1, workers=1)
    lost = nodes.add(CPU=1, workers=1)
    options = ["--ps", 1, "--workers", 2, "--train-steps", 4 * STEPS, "--logdir", "run", *BOTH_SLOW]
    options += on("workers")
    with Run(words(nodes, *options), place) as run:
        run.wait_for(TRAINS)
        nodes.remove(lost)
        run.wait_for(r"worker:\d +is lost with its actor on ")
        done = run.finish()

    assert done.code == 0, done.text
    whole(place, 4 * STEPS)


@every
def test_a_lost_ps_comes_back_elsewhere_and_all_go_on_from_the_newest_checkpoint(nodes, gone, place):
    lost = nodes.add(CPU=1, ps=1)
    options = ["--ps", 1, "--workers", 2, "--train-steps", 2 * STEPS, "--logdir", "run", *BOTH_SLOW, *on("ps")]
    with Run(words(nodes, *options, "--save-checkpoint-steps", 50), place) as run:
        run.wait_for(TRAINS)
        until(lambda: list((place / "run" / "checkpoints").glob("step-*0")), PATIENCE, "a checkpoint")
        nodes.remove(lost)
        run.wait_for(r"ps:0 waits for room on the Ray cluster: they need 1 CPU", PATIENCE)
        nodes.add(CPU=1, ps=1)
        done = run.finish(150)

    assert done.code == 0, done.text
    assert "worker:0 is back (epoch 2)" in done.text
    whole(place, 2 * STEPS)


@every
def test_it_grows_when_a_node_comes(nodes, gone, place):
    nodes.add(CPU=1, workers=1)
    options = ["--ps", 1, "--workers", "1..2", "--train-steps", 8 * STEPS, "--logdir", "run", *BOTH_SLOW]
    options += on("workers")
    with Run(words(nodes, *options), place) as run:
        run.wait_for(TRAINS)
        run.wait_for("worker:1 waits for room on the Ray cluster")
        nodes.add(CPU=1, workers=1)
        run.wait_for("worker:1 stands on")
        run.wait_for("worker:1 [0-9]+ examples/s")
        done = run.finish()

    assert done.code == 0, done.text
    whole(place, 8 * STEPS)


@every
def test_tasks_leave_a_node_that_is_to_go_away(nodes, gone, place):
    drained = nodes.add(CPU=2, ps=1, workers=1)
    options = [
        "--ps",
        1,
        "--workers",
        1,
        "--train-steps",
        2 * STEPS,
        "--logdir",
        "run",
        *SLOW,
        *on("ps"),
        *on("workers"),
    ]
    with Run(words(nodes, *options), place) as run:
        run.wait_for(TRAINS)
        nodes.add(CPU=2, ps=1, workers=1)
        nodes.drain(drained)
        for task in ("ps:0", "worker:0"):
            run.wait_for(rf"{task} +its node is to go away: it leaves")
            run.wait_for(rf"{task} +left, as it was told to; it starts again in 0.25 s, at no cost")
        done = run.finish(150)

    assert done.code == 0, done.text
    assert "updates" not in "".join(re.findall(r".*are lost.*", done.text)), done.text
    whole(place, 2 * STEPS)


@every
def test_a_worker_whose_node_goes_away_is_done_without_until_there_is_another(nodes, gone, place):
    nodes.add(CPU=1, workers=1)
    drained = nodes.add(CPU=1, workers=1)
    options = ["--ps", 1, "--workers", "1..2", "--train-steps", 6 * STEPS, "--logdir", "run", *BOTH_SLOW]
    with Run(words(nodes, *options, *on("workers")), place) as run:
        run.wait_for(TRAINS)
        run.wait_for("worker:1 [0-9]+ examples/s")
        nodes.drain(drained)
        line = run.wait_for(r"worker:(\d) +its node is to go away: it leaves")
        run.wait_for(rf"worker:{line[1]} waits for room on the Ray cluster")
        nodes.add(CPU=1, workers=1)
        run.wait_for(rf"worker:{line[1]} stands on")
        done = run.finish(150)

    assert done.code == 0, done.text
    whole(place, 6 * STEPS)


@every
def test_a_notice_that_all_machines_go_away_saves_the_run_and_the_same_command_goes_on(nodes, gone, place):
    nodes.add(CPU=2)
    options = ["--ps", 1, "--workers", 2, "--train-steps", 3 * STEPS, "--logdir", "run", *BOTH_SLOW]
    command = words(nodes, *options, "--preemption-notice", "notice")
    with Run(command, place) as run:
        run.wait_for(TRAINS)
        (place / "notice").touch()
        done = run.finish()
    assert done.code == 4 and "all is saved" in done.text, done.text
    with Run(command, place) as run:
        done = run.finish()

    assert done.code == 0, done.text
    whole(place, 3 * STEPS)


@every
def test_nothing_is_left_of_a_launcher_that_is_killed(nodes, gone, place):
    with Run(words(nodes, "--ps", 1, "--workers", 1, "--train-steps", 10**6, "--logdir", "run", *SLOW), place) as run:
        run.wait_for(TRAINS)
        assert len([name for name in nodes.actors() if name.startswith("evener")]) == 2
        run.signal(signal.SIGKILL)


@every
def test_interrupted_it_saves_and_the_same_command_continues(nodes, gone, place):
    options = ["--ps", 1, "--workers", 1, "--train-steps", 2 * STEPS, "--logdir", "run", *SLOW]
    with Run(words(nodes, *options), place) as run:
        run.wait_for(TRAINS)
        run.signal(signal.SIGINT)
        done = run.finish()
    assert done.code == 130
    assert "the same command with --logdir" in done.text
    with Run(words(nodes, *options), place) as run:
        assert run.finish().code == 0
    whole(place, 2 * STEPS)


@every
def test_a_detached_run_goes_on_without_who_has_started_it(nodes, gone, place):
    options = ["--ps", 1, "--workers", 1, "--train-steps", 10**6, "--logdir", "far", *SLOW]
    with Run(words(nodes, *options, "--detach"), place) as run:
        assert "evener attach far" in run.finish().text
    with Run([*EVENER, "attach", "far", "--ray-address", nodes.address], place) as watching:
        watching.wait_for(TRAINS)
        watching.signal(signal.SIGKILL)
    again = evener(place, "train", "small.py:recipe", *words(nodes)[5:], "--detach", "--ps", 1, "--logdir", "far")
    assert again.code == 2 and "a run 'far' is detached on this cluster already" in again.text
    stopped = evener(place, "stop", "far", "--ray-address", nodes.address)

    assert stopped.code == 0 and "far: has ended" in stopped.text, stopped.text
    assert evener(place, "audit", "far").code == 0
    missing = evener(place, "attach", "far", "--ray-address", nodes.address)
    assert missing.code == 2 and "no run 'far' is detached on this cluster" in missing.text


@every
def test_what_cannot_be_placed_is_told_with_what_is_missing(nodes, gone, place):
    options = [
        "--ps",
        1,
        "--workers",
        2,
        "--logdir",
        "run",
        "--resources-per-worker",
        '{"GPU": 1}',
        "--stall-timeout",
        8,
    ]
    with Run(words(nodes, *options), place) as run:
        run.wait_for(r"waits for the Ray cluster to place 2 worker tasks: they need .*2 GPU; ")
        done = run.finish()

    assert done.code == 1
    assert "the Ray cluster had no room for the run within 8 s" in done.text


@every
def test_a_program_with_a_loop_of_its_own(nodes, gone, place):
    nodes.add(CPU=1)
    (place / "numbers_of.py").write_text("LIMIT = 0.5\n")
    (place / "train.py").write_text(PROGRAM)
    with Run(
        words(nodes, "--ps", 1, "--workers", 2, "--logdir", "run", command="launch", what="train.py"), place
    ) as run:
        done = run.finish()

    assert done.code == 0, done.text
    assert evener(place, "audit", "run").code == 0


PROGRAM = """
import torch
from numbers_of import LIMIT
from torch import nn

import evener

ev = evener.join()
torch.manual_seed(0)
inputs = torch.randn(640, 4)
targets = (inputs.sum(1) > LIMIT).long()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=32, shuffle=True)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer, loader = ev.prepare(model, optimizer, loader)
for epoch in range(3):
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


@every
def test_without_an_address_it_goes_to_the_ray_that_the_environment_names(nodes, gone, place):
    """One that listens on loopback alone, too, whose address Ray would replace by an outer one."""
    options = ["--launcher", "ray", "--ps", 1, "--workers", 1, "--train-steps", 20, "--logdir", "run"]
    with Run([*EVENER, "train", "small.py:recipe", *options], place, RAY_ADDRESS=nodes.address) as run:
        done = run.finish()

    assert done.code == 0, done.text
    assert f"runs on the Ray cluster at {nodes.address}" in done.text


@every
def test_a_cluster_that_wants_a_token_as_ray_start_makes_it_do(place):
    """Ray makes a token for its user at the first `ray.init()`; `ray start` asks for it from then on."""
    (place / ".ray").mkdir()
    (place / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    nodes = RayNodes(HOME=str(place), RAY_AUTH_MODE="token")
    try:
        nodes.add(CPU=3, left=3, right=3)
        options = words(nodes, "--ps", 1, "--workers", 2, "--train-steps", STEPS, "--logdir", "run")
        with Run(options, place, HOME=str(place)) as run:
            done = run.finish()
        assert done.code == 0, done.text
        whole(place, STEPS)
        other = place / "other"
        other.mkdir()
        with Run(options, place, HOME=str(other)) as run:
            refused = run.finish()
        assert refused.code == 1 and "wants its token" in refused.text and "ray get-auth-token" in refused.text
    finally:
        nodes.close()


def test_without_a_cluster_one_of_this_machine_is_started_on_loopback_and_ended(place):
    options = [
        "--launcher",
        "ray",
        "--ray-address",
        "local",
        "--ps",
        1,
        "--workers",
        1,
        "--train-steps",
        STEPS,
        "--logdir",
        "run",
        *SLOW,
    ]
    with Run([*EVENER, "train", "small.py:recipe", *options], place) as run:
        run.wait_for("runs on a Ray of this machine, started for this run")
        run.wait_for(TRAINS)
        started = psutil.Process(run.process.pid).children(recursive=True)
        heard = [listens for process in started for listens in listening(process)]
        done = run.finish()

    assert done.code == 0, done.text
    assert heard and {address.removeprefix("::ffff:") for address in heard} == {"127.0.0.1"}
    until(lambda: not alive(started), PATIENCE, "Ray has ended")
    whole(place, STEPS)


def listening(process: psutil.Process) -> list[str]:
    """The addresses at which it takes connections."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = process.net_connections(kind="tcp")
        return [connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN]
    return []
