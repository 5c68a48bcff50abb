"""Every way of training, as a user starts it: it ends well, after exactly the steps asked for, and says what it did."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from running import Done, evener, here

STEPS, BATCH = 200, 50
KEYS = {
    "recipe", "mode", "ps", "workers", "replicas_to_aggregate", "global_step", "examples", "seconds",
    "steps_per_second", "examples_per_second", "train_loss", "validation_loss", "validation_accuracy",
    "validation_accuracy_ema", "dropped_gradients", "mean_staleness", "max_staleness", "checkpoint", "logdir",
}  # fmt: skip

#: name -> (options, gradients in one update)
CLUSTERS = {
    "async": ("--ps 1 --workers 2", 1),
    "sync": ("--ps 1 --workers 2 --mode sync", 2),
    "bounded": ("--ps 1 --workers 2 --mode bounded --staleness 0", 1),
    "a backup worker": ("--ps 1 --workers 2 --mode sync --replicas-to-aggregate 1", 1),
    "accumulation": ("--ps 1 --workers 2 --mode sync --replicas-to-aggregate 3 --accumulate", 3),
    "async on 3 ps": ("--ps 3 --workers 2", 1),
    "sync on 3 ps": ("--ps 3 --workers 2 --mode sync", 2),
    "tcp": ("--ps 1 --workers 2 --mode sync --transport tcp", 2),
}


def train(*options: str) -> list[str]:
    return ["train", "mnist", "--hidden", "20", "--train-steps", str(STEPS), "--batch-size", str(BATCH), *options]


def check_json(done: Done, gradients: int) -> dict:
    """One object as the last line, with every key of the promise and values that can be true."""
    assert done.code == 0, done.text
    result = done.json
    assert [line for line in done.out.splitlines() if line.startswith("{")] == [done.out.splitlines()[-1]]
    assert result.keys() >= KEYS
    assert (result["recipe"], result["global_step"]) == ("mnist", STEPS)
    assert result["examples"] == STEPS * BATCH * gradients
    assert 0 < result["seconds"] < done.seconds
    assert math.isclose(result["steps_per_second"], STEPS / result["seconds"])
    assert math.isclose(result["examples_per_second"], result["examples"] / result["seconds"])
    assert 0 < result["train_loss"] < 1.5
    assert 0 < result["validation_loss"] < 1.5
    assert 0.7 < result["validation_accuracy"] < 1
    assert 0.7 < result["validation_accuracy_ema"] < 1
    return result


def check_files(result: dict, cwd: Path) -> None:
    logdir = cwd / result["logdir"]
    assert (cwd / result["checkpoint"]) == logdir / "checkpoints" / f"step-{STEPS:08d}"
    assert len(list(logdir.glob("events.out.tfevents.*"))) == 1
    logs = {path.name for path in (logdir / "logs").iterdir()}
    ps = [f"ps-{index}.log" for index in range(result["ps"])]
    assert logs == {*ps, *(f"worker-{index}.log" for index in range(result["workers"]))}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_makes_exactly_the_steps_asked_for_and_its_checkpoint_is_as_good_as_it_said(name, tmp_path, capfd):
    options, gradients = CLUSTERS[name]
    result = check_json(evener(tmp_path, *train(*options.split()), "--logdir", tmp_path / "run", "--json"), gradients)
    check_files(result, tmp_path)
    words = options.split()
    asked = dict(zip(words[::2], words[1::2], strict=False))
    assert (result["mode"], result["ps"]) == (asked.get("--mode", "async"), int(asked["--ps"]))
    if name != "a backup worker":
        assert result["dropped_gradients"] == 0
    limit = {"async": STEPS, "bounded": 2}.get(result["mode"], 0)
    assert 0 <= result["mean_staleness"] <= result["max_staleness"] <= limit

    judged = here(capfd, "eval", "mnist", "--checkpoint", result["logdir"], "--json").json
    assert judged["global_step"] == STEPS
    for metric in ("validation_loss", "validation_accuracy", "validation_accuracy_ema"):
        assert judged[metric] == result[metric], metric


def test_one_process_does_the_same_without_any_cluster(tmp_path, capfd):
    result = check_json(here(capfd, *train("--json", "--logdir", str(tmp_path / "run"))), gradients=1)
    check_files(result, tmp_path)
    assert (result["mode"], result["ps"], result["workers"]) == ("single", 0, 1)
    assert (result["dropped_gradients"], result["max_staleness"]) == (0, 0)
    judged = here(capfd, "eval", "mnist", "--checkpoint", result["checkpoint"], "--json").json
    assert judged["validation_accuracy"] == result["validation_accuracy"]


@pytest.mark.slow
def test_the_command_alone_tells_people_how_it_went_and_what_to_type_next(tmp_path):
    done = evener(tmp_path, *train("--eval-every", "100", "--log-every", "50"))
    assert done.code == 0, done.text
    assert done.err == ""
    logdir = next((tmp_path / "evener-runs").iterdir())
    for words in (
        "mnist: one process", "global step 50, local step 50: loss", "evaluation at global step 100",
        "final evaluation", f"mnist: reached step {STEPS}",
        f"--checkpoint evener-runs/{logdir.name}/checkpoints/step-{STEPS:08d}",
        f"tensorboard --logdir evener-runs/{logdir.name}",
    ):  # fmt: skip
        assert words in done.out, words
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.out.splitlines()[-1])


def test_epochs_are_turned_into_steps(tmp_path, capfd):
    args = ["train", "mnist", "--hidden", "20", "--epochs", "0.5", "--json", "--logdir", tmp_path / "run"]
    result = here(capfd, *args).json
    samples = 1437  # of the digits that one trains on
    assert result["global_step"] == math.ceil(0.5 * samples / 100)


def test_a_run_of_no_steps_evaluates_the_first_parameters(tmp_path, capfd):
    done = here(capfd, "train", "mnist", "--hidden", "20", "--train-steps", "0", "--json", "--logdir", tmp_path / "run")
    assert (done.code, done.json["global_step"], done.json["examples"]) == (0, 0, 0)
    assert done.json["validation_accuracy"] is not None
