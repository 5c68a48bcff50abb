"""Validation in real processes: what was trained is saved before it, and what follows from it holds for all workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import Done, evener, here

pytestmark = pytest.mark.slow

#: `how`: in a validation of all samples the process kills itself, as the kernel does when memory is short, or raises.
#: `script`: the losses that validations give, one after the other, the last one for ever.
RECIPE = """
import os
import signal

import torch
from torch import nn

import evener

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(200, 8, generator=GENERATOR), torch.arange(200) % 3


class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(8, 3), how

    def forward(self, inputs):
        if self.how and not self.training and len(inputs) == 200:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("tried to allocate 40 GB")
        return self.linear(inputs)


def recipe(how: str = "", script: str = "", patience: int = 0, best: bool = False):
    losses = [float(loss) for loss in script.split("/")] if script else []
    given = lambda model, batches: {"loss": losses.pop(0) if len(losses) > 1 else losses[0]}
    return evener.Recipe(
        model=lambda: Net(how), data=lambda: (DATA, {"a": DATA, "b": DATA} if not script else DATA),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), evaluate=given if script else None,
        keep_best=("validation_loss" if script else "validation_b_loss") if best else None,
        early_stopping=evener.EarlyStopping(patience=patience) if patience else None,
    )
"""

WAYS = {
    "one process": [],
    "towers": ["--towers", 2],
    "ps": ["--ps", 1, "--workers", 2],
    "two ps": ["--ps", 2, "--workers", 2, "--mode", "sync"],
}


def train(place: Path, way: str, *options: object) -> Done:
    (place / "mine.py").write_text(RECIPE)
    return evener(place, "train", "mine.py:recipe", *WAYS[way], "--batch-size", 20, "--logdir", "run", *options)


def checkpoints(place: Path) -> list[str]:
    return sorted(path.parent.name for path in (place / "run" / "checkpoints").glob("step-*/manifest.json"))


@pytest.mark.parametrize(
    ("how", "way"), [("kill", way) for way in WAYS] + [("raise", "one process"), ("raise", "two ps")]
)
def test_a_process_that_ends_in_the_final_validation_has_saved_its_last_step(how, way, tmp_path):
    done = train(tmp_path, way, "--set", f"how={how}", "--train-steps", 30, "--eval-batch-size", 200,
                 "--max-restarts", 0)  # fmt: skip

    assert checkpoints(tmp_path) == ["step-00000030"], done.text
    if how == "raise":
        assert done.code == 1
        assert "MemoryError: tried to allocate 40 GB" in done.err
    elif way == "one process":
        assert done.code == -9
    else:  # of several processes the others may end the run without it, and then without figures
        assert "validation" not in done.out.rpartition("reached step 30")[2]


@pytest.mark.parametrize("way", WAYS)
def test_early_stopping_ends_the_run_of_all_with_its_reason_and_the_final_validation(way, tmp_path):
    done = train(tmp_path, way, "--set", "script=3/2/2.5/4/7", "--set", "patience=2", "--eval-every", 5,
                 "--train-steps", 100_000, "--json")  # fmt: skip

    assert done.code == 0, done.text
    assert done.json["reason"] == "early stopping: validation_loss has not improved on 2 in 2 validations"
    assert 20 <= done.json["global_step"] < 1000
    assert done.json["validation_loss"] in (7.0, 3.0), "by the worker that validated before, or one that is there first"
    assert checkpoints(tmp_path)[-1] == f"step-{done.json['global_step']:08}"


@pytest.mark.parametrize("way", ["towers", "two ps"])
def test_the_best_model_is_kept_whoever_holds_the_parameters(way, tmp_path, capfd):
    done = train(tmp_path, way, "--set", "best=true", "--train-steps", 30, "--json")

    assert done.code == 0, done.text
    note = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert note["figure"] == "validation_b_loss"
    assert note["value"] <= done.json["validation"]["validation_b_loss"]
    told = here(capfd, "eval", f"{tmp_path}/mine.py:recipe", "--checkpoint", tmp_path / "run" / "best", "--json",
                "--eval-batch-size", 33)  # fmt: skip
    assert told.json["validation_b_loss"] == pytest.approx(note["value"], rel=1e-5)
    assert told.json["global_step"] == note["step"]


@pytest.mark.parametrize("way", ["towers", "two ps"])
def test_a_figure_that_does_not_exist_is_refused_also_by_a_task(way, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE.replace('"validation_b_loss"', '"validation_c_loss"'))
    done = evener(tmp_path, "train", "mine.py:recipe", *WAYS[way], "--set", "best=true", "--train-steps", 50)

    assert done.code == 2
    assert "there is no 'validation_c_loss' among the figures of the validation." in done.err
    assert (
        "name one of: validation_a_loss, validation_a_accuracy, validation_b_loss, validation_b_accuracy." in done.err
    )
