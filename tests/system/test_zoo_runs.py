"""Five models that clusters get wrong, as real commands in every way of running, and continued where they stopped."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from running import checkpoint_files, evener, here

from evener.state.checkpoint import load

pytestmark = pytest.mark.slow
RECIPES = f"{Path(__file__).with_name('zoo_recipes.py')}:recipe"
STEPS = 5
KINDS = ("resnet", "norms", "lstm", "tied", "teacher")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """20 images in the format of CIFAR-10."""
    directory = tmp_path_factory.mktemp("cifar10")
    generator = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        values = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": values, "labels": [number % 10 for number in range(20)]}
        (directory / name).write_bytes(pickle.dumps(content, 2))
    return directory


@pytest.fixture(params=KINDS)
def recipe(request, images):
    """As it is named on a command line."""
    if request.param == "resnet":
        return ["cifar10", "--set", "net=resnet", "--set", "width=4", "--set", "ema_decay=0.9", "--data-dir", images]
    return [RECIPES, "--set", f"kind={request.param}"]


@pytest.fixture
def words(recipe):
    """The command, but for the way of running."""
    return ["train", *recipe, "--batch-size", 6, "--json"]


def state(logdir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds."""
    _, contents = load(logdir / "checkpoints" / f"step-{step:08d}")
    assert contents.averages
    return {
        **contents.parameters,
        **{f"{name} averaged": value for name, value in contents.averages.items()},
        **contents.optimizer,
    }


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, relative: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        norm = max(float(torch.linalg.vector_norm(right.double())), 1e-3)
        assert float(torch.linalg.vector_norm(found[name].double() - right.double())) <= relative * norm, name


def good(done, step: int = STEPS):
    assert (done.code, done.json.get("global_step")) == (0, step), done.text
    assert done.json["validation_loss"] > 0
    return done


def audited(capfd, logdir: Path) -> None:
    done = here(capfd, "audit", logdir)
    assert done.code == 0, done.text


def test_one_process_continues_bit_for_bit_and_is_evaluated_as_it_said(recipe, words, tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = good(here(capfd, *words, "--train-steps", STEPS, "--logdir", whole))
    good(here(capfd, *words, "--train-steps", 2, "--logdir", parts), 2)
    good(here(capfd, *words, "--train-steps", STEPS, "--logdir", parts))

    last = f"checkpoints/step-{STEPS:08d}"
    assert checkpoint_files(parts / last) == checkpoint_files(whole / last)
    audited(capfd, parts)
    evaluated = here(capfd, "eval", *recipe, "--checkpoint", whole, "--json")
    assert evaluated.code == 0, evaluated.text
    assert evaluated.json["validation_loss"] == done.json["validation_loss"]


def test_two_workers_in_turn_and_audited(words, tmp_path, capfd):
    logdir = tmp_path / "run"
    good(evener(tmp_path, *words, "--ps", 1, "--workers", 2, "--train-steps", STEPS, "--logdir", logdir))
    audited(capfd, logdir)


def test_bounded_over_sockets(words, tmp_path, capfd):
    logdir = tmp_path / "run"
    way = ["--ps", 1, "--workers", 2, "--mode", "bounded", "--transport", "tcp"]
    good(evener(tmp_path, *words, *way, "--train-steps", STEPS, "--logdir", logdir))
    audited(capfd, logdir)


def test_sync_is_two_towers_and_continues_bit_for_bit(words, tmp_path, capfd):
    sync = [*words, "--ps", 2, "--workers", 2, "--mode", "sync", "--logdir"]
    good(evener(tmp_path, *words, "--towers", 2, "--train-steps", STEPS, "--logdir", tmp_path / "towers"))
    good(evener(tmp_path, *sync, tmp_path / "whole", "--train-steps", STEPS))
    good(evener(tmp_path, *sync, tmp_path / "parts", "--train-steps", 2), 2)
    good(evener(tmp_path, *sync, tmp_path / "parts", "--train-steps", STEPS))

    assert_near(state(tmp_path / "whole"), state(tmp_path / "towers"))
    last = f"checkpoints/step-{STEPS:08d}"
    assert checkpoint_files(tmp_path / "parts" / last) == checkpoint_files(tmp_path / "whole" / last)
    for name in ("towers", "whole", "parts"):
        audited(capfd, tmp_path / name)


@pytest.mark.parametrize("clip", [[], ["--clip-norm", 0.05], ["--clip-value", 0.001]], ids=["free", "norm", "value"])
@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_two_stages_are_one_process(net, clip, tmp_path, capfd):
    """Without dropout, whose numbers are another stage's."""
    dropout = ["--set", "dropout=0"] if net == "cnn" else []
    words = ["train", "mnist", "--set", f"net={net}", "--set", "hidden=20", *dropout, *clip, "--batch-size", 8,
             "--json", "--train-steps", STEPS, "--logdir"]  # fmt: skip
    one = good(here(capfd, *words, tmp_path / "one"))
    two = good(evener(tmp_path, *words, tmp_path / "two", "--pipeline-stages", 2))

    assert_near(state(tmp_path / "two"), state(tmp_path / "one"), relative=1e-5)  # it sums over microbatches
    assert two.json["validation_loss"] == pytest.approx(one.json["validation_loss"], rel=1e-6)


def test_two_stages_of_a_resnet_train_and_continue(images, tmp_path, capfd):
    """BatchNorm sees microbatches there, so it is no other way's numbers; that is warned of."""
    words = ["train", "cifar10", "--set", "net=resnet", "--set", "width=4", "--data-dir", images, "--batch-size", 8,
             "--pipeline-stages", 2, "--json", "--logdir", tmp_path / "run", "--train-steps"]  # fmt: skip
    done = good(evener(tmp_path, *words, 2), 2)
    assert "normalizes over each microbatch" in done.text
    good(evener(tmp_path, *words, STEPS))
    audited(capfd, tmp_path / "run")
