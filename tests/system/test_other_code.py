"""Real tasks whose code or data differ are told so; what is random in their data sets makes none of them differ."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

import pytest
from running import EVENER, PATIENCE, RECIPE, Run, checkpoint_files, evener, start, until

pytestmark = pytest.mark.slow
DIGESTS = r"worker:1 runs mine\.py:([0-9a-f]{8}), ps:0 runs mine\.py:([0-9a-f]{8})\."
SMALL = ["--batch-size", 20, "--train-steps", 60, "--logdir", "run"]


# --- edited while a run goes on


@contextlib.contextmanager
def edited_and_killed(place: Path, *options: object):
    """A run whose file is edited while all wait at a gate; then worker:1 is killed, and the gate opened."""
    (place / "mine.py").write_text(RECIPE)
    gate = place / "gate"
    words = ["train", "mine.py:recipe", "--ps", 1, "--workers", 2, "--set", f"gate={gate}", *SMALL, *options]
    with start(place, *words) as run:
        until(lambda: list(place.glob("worker:1-*.waits")), PATIENCE, "worker:1 is at the gate")
        (place / "mine.py").write_text(RECIPE.replace("lr=0.1", "lr=0.01"))
        run.task("worker:1").kill()
        run.wait_for("worker:1 +was killed by SIGKILL")
        logs = (place / "run" / "logs").glob
        until(
            lambda: re.search(DIGESTS, run.said() + "".join(log.read_text() for log in logs("worker-1*.log"))),
            PATIENCE, "worker:1 is back and compared",
        )  # fmt: skip
        gate.touch()
        yield run


def test_a_worker_that_is_started_again_after_its_file_was_edited_is_refused_with_both_digests(tmp_path):
    with edited_and_killed(tmp_path) as run:
        done = run.finish()
    found = re.search(DIGESTS, done.text)
    assert found, done.text
    assert found[1] != found[2]
    assert "its files differ, or were edited since a task was started" in done.err
    assert "--allow-difference" in done.err
    assert done.code == 1


def test_or_it_is_told_where_that_is_allowed_and_the_run_goes_on(tmp_path):
    with edited_and_killed(tmp_path, "--allow-difference") as run:
        done = run.finish()
    assert done.code == 0, done.text
    assert re.search(rf"warning: {DIGESTS}", done.text)


# --- another file, or other data, on another machine


@contextlib.contextmanager
def three_tasks(one: Path, other: Path, *options: object):
    """ps:0 and worker:0 in one directory, worker:1 in the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        hosts = f"--ps-hosts=127.0.0.1:{server.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        tasks = []
        for job, index, place in (("ps", 0, one), ("worker", 0, one), ("worker", 1, other)):
            words = [*EVENER, "task", "mine.py:recipe", f"--job-name={job}", f"--task-index={index}", hosts,
                     "--worker-hosts=localhost:1,localhost:2", "--mode=sync", *SMALL, *options]  # fmt: skip
            tasks.append(stack.enter_context(Run(words, place)))
        yield tasks


def two_machines(place: Path, other: str) -> tuple[Path, Path]:
    for name, text in (("one", RECIPE), ("other", other)):
        (place / name).mkdir()
        (place / name / "mine.py").write_text(text)
    return place / "one", place / "other"


def test_a_worker_whose_file_is_another_one_is_refused_with_both_digests(tmp_path):
    with three_tasks(*two_machines(tmp_path, RECIPE.replace("lr=0.1", "lr=0.01"))) as (_, _, stranger):
        done = stranger.finish()
    found = re.search(DIGESTS, done.err)
    assert found, done.text
    assert found[1] != found[2]
    assert done.code == 1


def test_or_joins_and_is_told_where_that_is_allowed(tmp_path):
    places = two_machines(tmp_path, f"{RECIPE}\nmore = 1\n")
    with three_tasks(*places, "--allow-difference") as tasks:
        ended = [task.finish() for task in tasks]
    assert [done.code for done in ended] == [0, 0, 0], "\n".join(done.text for done in ended)
    assert re.search(rf"warning: {DIGESTS}", ended[0].text)


def test_the_same_file_in_another_directory_is_no_difference(tmp_path):
    with three_tasks(*two_machines(tmp_path, RECIPE)) as tasks:
        ended = [task.finish() for task in tasks]
    assert [done.code for done in ended] == [0, 0, 0], "\n".join(done.text for done in ended)
    assert "warning: worker" not in ended[0].text


#: The file says of what its data are made, so that no file of the recipe differs.
OTHER_DATA = RECIPE.replace("manual_seed(1)", "manual_seed(int(Path('seed.txt').read_text()))")


def test_a_worker_with_another_first_batch_is_refused_with_both(tmp_path):
    one, other = two_machines(tmp_path, OTHER_DATA)
    (one / "mine.py").write_text(OTHER_DATA)
    (one / "seed.txt").write_text("1")
    (other / "seed.txt").write_text("2")
    says = re.compile(r"the first samples of this worker are float32\[4, 6\] .*, those of the run float32\[4, 6\] ")
    with three_tasks(one, other) as (_, *workers):
        until(lambda: any(says.search(worker.said()) for worker in workers), PATIENCE, "the second one is refused")


# --- random data sets

RANDOM = """
import random

import numpy as np
import torch
from torch import nn

import evener


class Jittered(torch.utils.data.Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, index):
        return torch.full((8,), random.random() + np.random.rand() + float(torch.rand(()))), index % 3


def recipe():
    return evener.Recipe(model=lambda: nn.Linear(8, 3), data=Jittered,
                         optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
"""


@pytest.mark.parametrize(
    "way", [["--ps", 2, "--workers", 2, "--mode", "sync"], ["--towers", 2]], ids=["workers in sync", "towers"]
)
def test_two_runs_with_random_transforms_are_equal_bit_for_bit(way, tmp_path):
    (tmp_path / "mine.py").write_text(RANDOM)
    saved = []
    for name in ("first", "second"):
        done = evener(tmp_path, "train", "mine.py:recipe", *way, *SMALL[:4], "--logdir", name)
        assert done.code == 0, done.text
        saved.append(checkpoint_files(tmp_path / name / "checkpoints" / "step-00000060"))
    assert saved[0]
    assert saved[0] == saved[1]
