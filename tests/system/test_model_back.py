"""`evener export` and `--init-from` as commands, in every way of running, and what docs/model.md shows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import evener, here
from safetensors.torch import load_file

import evener as package

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "model.md").read_text()

#: With a learning rate of 0 a run ends with the weights that it began with. A layer is frozen, one tensor is split.
RECIPE = """
import evener
import torch
from torch import nn


def model(width: int) -> nn.Module:
    made = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))
    made[0].requires_grad_(False)
    return made


def recipe(rate: float = 0.1, width: int = 60) -> evener.Recipe:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, 8, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    return evener.Recipe(
        model=lambda: model(width), data=lambda: (data, data), ema_decay=0.9, split_points=["2"],
        optimizer=lambda made: torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=rate),
    )
"""
WAYS = {
    "one process": (),
    "towers": ("--towers", 2),
    "ps": ("--ps", 1, "--workers", 2),
    "3 ps": ("--ps", 3, "--workers", 1, "--mode", "sync"),
    "pipeline": ("--pipeline-stages", 2),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A directory with a recipe, the logdir of a run of it with 3 ps tasks, and its model as two files."""
    place = tmp_path_factory.mktemp("back")
    (place / "mine.py").write_text(RECIPE)
    done = evener(place, "train", "mine.py:recipe", "--ps", 3, "--workers", 2, "--train-steps", 20, "--batch-size", 10,
                  "--logdir", "run", "--set", "width=40")  # fmt: skip
    assert done.code == 0, done.text
    for file in ("m.pt", "m.safetensors"):
        done = evener(place, "export", "run", file)
        assert done.code == 0, done.text
        assert done.out.startswith(f"{file}: mine.py:recipe at step 20, 6 tensors, ")
    return place


@pytest.mark.slow
def test_the_line_that_export_prints_loads_the_file_into_a_plain_model(made):
    for file in ("m.pt", "m.safetensors"):
        done = evener(made, "export", "run", file, "--force", "--ema")
        line = done.out.partition("read it by: ")[2].strip()
        program = f"import torch, mine; model = mine.model(40); {line}; print(float(model[2].weight.sum()))"
        read = subprocess.run([sys.executable, "-c", program], cwd=made, capture_output=True, text=True, check=True)
        averages = package.load(f"{made}/mine.py:recipe", made / "run", ema=True)
        assert float(read.stdout) == pytest.approx(float(averages[2].weight.detach().sum()), rel=1e-6)
        assert evener(made, "export", "run", file, "--force").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_running_begins_with_the_weights_of_a_file(way, made, tmp_path):
    file = "m.safetensors" if way == "pipeline" else "m.pt"
    logdir = tmp_path / "again"
    args = ("train", "mine.py:recipe", *WAYS[way], "--batch-size", 10, "--set", "rate=0", "--set", "width=40",
            "--logdir", logdir, "--init-from", file)  # fmt: skip
    done = evener(made, *args, "--train-steps", 2)
    assert done.code == 0, done.text
    assert done.out.count("6 of the model's 6 tensors taken") == 1, done.text
    expected = load_file(made / "m.safetensors")
    for ema in (False, True):
        found = package.load(f"{made}/mine.py:recipe", logdir, ema=ema).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)

    done = evener(made, *args, "--train-steps", 3)
    assert done.code == 0, done.text
    assert done.out.count(f"--init-from {made / file} is not used: the logdir has a checkpoint") == 1
    assert "continues from step 2" in done.text
    assert "tensors taken" not in done.text


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ps", "pipeline"])
def test_a_file_that_is_not_there_ends_the_run_by_its_name(way, made, tmp_path):
    args = ("train", "mine.py:recipe", *WAYS[way], "--batch-size", 10)
    done = evener(made, *args, "--init-from", "nowhere.pt", "--logdir", tmp_path / "run")

    assert done.code == 2, done.text
    assert f"--init-from: there is no {made}/nowhere.pt on this machine." in done.err
    assert "fix: check the path" in done.err


def test_export_in_words(tmp_path, capfd):
    logdir, file = tmp_path / "run", tmp_path / "m.pt"
    assert here(capfd, "train", "mnist", "--hidden", 5, "--train-steps", 2, "--logdir", logdir).code == 0
    done = here(capfd, "export", logdir, file, "--json")
    assert done.code == 0, done.text
    assert done.json == {
        "file": str(file), "nbytes": file.stat().st_size, "tensors": 4, "recipe": "mnist", "global_step": 2,
        "checkpoint": str(logdir / "checkpoints/step-00000002"), "ema": False, "compiled": False,
        "load": f'model.load_state_dict(torch.load("{file}", weights_only=True))',
    }  # fmt: skip
    done = here(capfd, "export", logdir, file)
    assert done.code == 2
    assert "m.pt exists" in done.err and "--force" in done.err
    done = here(capfd, "export", logdir, file, "--force", "--ema")
    assert re.fullmatch(
        r".*m\.pt: mnist at step 2, moving averages, 4 tensors, [\d,]+ bytes; read it by: model\.load_state_dict.*\n",
        done.out,
    )
    assert here(capfd, "export", logdir, tmp_path / "n.pt", "--recipe", "mnist", "--set", "hidden=6").code == 1
    assert here(capfd, "export", tmp_path / "nowhere", tmp_path / "n.pt").code == 1


# --- the document


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.slow
def test_each_command_and_program_of_the_document_works(tmp_path):
    shown = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert len(shown) > 4
    for command in shown:
        words = shlex.split(command, comments=True)
        assert words[0] == "evener"
        done = evener(tmp_path, *words[1:])
        assert done.code == 0, done.text
    for program in blocks("python"):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=110)


def test_the_figures_of_a_run_are_what_they_were(tmp_path, capfd):
    """`--json` has no word of the model."""
    done = here(capfd, "train", "mnist", "--hidden", 5, "--train-steps", 1, "--json", "--logdir", tmp_path)
    assert "made" not in done.json
    assert json.loads(done.out.splitlines()[-1])["recipe"] == "mnist"
