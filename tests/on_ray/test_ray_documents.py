"""docs/ray.md and docs/ray-train.md: their commands as printed there, on a cluster that the environment names."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from running import EVENER, PATIENCE, Run, evener

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ray_train"
every = pytest.mark.skipif(not os.environ.get("RAY"), reason="all runs on a Ray cluster: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def blocks(language: str, document: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)


def commands(document: str, *, word: str) -> list[list[str]]:
    lines = [line.removeprefix("$ ") for block in blocks("console", document) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"evener {word} ") and "--detach" not in line]


RUNS = [*commands("ray.md", word="train"), *commands("ray.md", word="launch"),
        *commands("ray-train.md", word="launch")]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for file in EXAMPLE.glob("*.py"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_the_programs_of_the_page_are_those_of_the_example():
    (theirs, ours) = blocks("python", "ray-train.md")
    assert theirs in (EXAMPLE / "trainer.py").read_text()
    assert ours in (EXAMPLE / "train.py").read_text()


def test_the_example_runs_by_itself_as_any_program_does(place):
    with Run([sys.executable, "train.py"], place) as run:
        done = run.finish(PATIENCE)
    assert done.code == 0, done.text
    assert "epoch 4: accuracy 0.9" in done.text


@every
@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_a_command_does_what_the_page_says(words, nodes, place):
    nodes.add(CPU=8)
    with Run([*EVENER, *words], place, RAY_ADDRESS=nodes.address) as run:
        done = run.finish(200)
    assert done.code == 0, done.text
    assert re.search(r"(validation )?accuracy +0\.9", done.text), done.text
    logdir = words[words.index("--logdir") + 1] if "--logdir" in words else ""
    if logdir:
        assert evener(place, "audit", logdir).code == 0


@every
def test_a_run_is_left_alone_looked_at_and_ended_as_the_page_says(nodes, place):
    nodes.add(CPU=4)
    (block,) = [block for block in blocks("console", "ray.md") if "--detach" in block]
    train, attach, stop = [shlex.split(line)[2:] for line in block.splitlines()]
    with Run([*EVENER, *train], place, RAY_ADDRESS=nodes.address) as run:
        assert run.finish(PATIENCE).code == 0
    with Run([*EVENER, *attach], place, RAY_ADDRESS=nodes.address) as run:
        run.wait_for("global step [1-9]", 120)
        ended = evener(place, *stop, RAY_ADDRESS=nodes.address)
        assert ended.code == 0, ended.text
        run.finish(PATIENCE)
    assert evener(place, "audit", train[train.index("--logdir") + 1]).code == 0


@every
@pytest.mark.skipif(not importlib.util.find_spec("pandas"), reason="pip install 'ray[train]' to try trainer.py")
def test_the_program_that_the_page_begins_with_runs_in_ray_train(nodes, place):
    nodes.add(CPU=4)
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray puts this machine's outer address in its place
    with Run([sys.executable, "trainer.py"], place, RAY_ADDRESS=nodes.address, **loopback) as run:
        done = run.finish(200)
    assert done.code == 0 and "{'accuracy': 0.9" in done.text, done.text
