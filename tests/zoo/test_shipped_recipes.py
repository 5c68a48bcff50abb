"""Every shipped recipe with every option of its own learns what a plain PyTorch loop makes of the same batches.

The judge is `plain.py`; the few samples of each make several epochs of a few steps, so that schedules move.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from plain import assert_same, plain

sys.path.append(str(Path(__file__).parents[1] / "worker"))
import towers_in_one_process as in_threads

from evener.data import digits
from evener.data.dataset import Data, Tensors
from evener.recipes.recipe import Recipe, options_of, resolve
from evener.testing import Cluster, Trainer, finished, one_process, train

STEPS, BATCH, SAMPLES = 4, 8, 20

#: As typed after `--set`. What names files is no way of learning, and tested where files are.
MNIST = (
    "", "decay=0.5", "decay=0.5 staircase=true", "l2=0", "l2=0.1", "ema_decay=0", "ema_decay=0.5", "learning_rate=0.3",
    "optimizer=momentum", "optimizer=momentum momentum=0.5", "optimizer=adam", "optimizer=torch_adam", "net=cnn",
    "net=cnn dropout=0.2 optimizer=adam",
)  # fmt: skip
CIFAR10 = (
    "", "decay=0.5 decay_epochs=0.5", "weight_decay=0.1", "ema_decay=0", "ema_decay=0.5", "distort=false",
    "learning_rate=0.05", "precision=bfloat16", "net=resnet", "net=resnet anneal_epochs=1", "net=resnet ema_decay=0.9",
    "net=resnet weight_decay=0.1", "net=resnet weight_decay=0", "net=resnet momentum=0", "net=resnet momentum=0.5",
    "net=resnet label_smoothing=0", "net=resnet distort=false", "net=resnet precision=bfloat16",
)  # fmt: skip
CASES = [("mnist", options) for options in MNIST] + [("cifar10", options) for options in CIFAR10]
#: In one way of running each, also where the suite must be quick.
ALWAYS = {("mnist", ""), ("mnist", "net=cnn"), ("cifar10", "net=resnet")}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """CIFAR-10 as its authors give it away, but 20 images."""
    directory = tmp_path_factory.mktemp("cifar10")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (SAMPLES, 3072), dtype=np.uint8)
    content = pickle.dumps({"data": images, "labels": [number % 10 for number in range(SAMPLES)]}, 2)
    for name in ("data_batch_1", "test_batch"):
        (directory / name).write_bytes(content)
    return str(directory)


@cache
def few_digits() -> Data:
    inputs, target = digits.load().train.batch(torch.arange(SAMPLES))
    return Data(Tensors(inputs, target))


def recipe_of(name: str, options: str, images: str) -> Recipe:
    chosen = dict(option.split("=") for option in options.split())
    if name == "mnist":
        return replace(resolve(name, {"hidden": "20", **chosen}), data=few_digits)
    small = {"width": "4"} if chosen.get("net") == "resnet" else {}
    return resolve(name, {"data_dir": images, **small, **chosen})


def check(options: str, found, averages, expected) -> None:
    rounded = "bfloat16" in options
    assert_same(found, expected.parameters, steps=STEPS, rounded=rounded)
    assert (averages is None) == (not expected.averages)
    if averages is not None:
        assert_same(averages, expected.averages, steps=STEPS, rounded=rounded)


def every_case(*, quick: bool = False):
    return pytest.mark.parametrize(("name", "options"), [
        pytest.param(*case, id=" ".join(case), marks=[] if quick and case in ALWAYS else [pytest.mark.slow])
        for case in CASES
    ])  # fmt: skip


@pytest.mark.parametrize(("name", "cases"), [("mnist", MNIST), ("cifar10", CIFAR10)])
def test_every_option_is_in_the_table(name, cases):
    """Who gives a recipe an option adds it here."""
    tried = {option.partition("=")[0] for options in cases for option in options.split()} | {"hidden", "width"}
    of_files = {"data", "data_dir", "download", "skip_bad_records"}
    assert set(options_of(name)) - of_files <= tried


@every_case(quick=True)
def test_one_process(name, options, images, tmp_path):
    recipe = recipe_of(name, options, images)
    session, *_ = one_process(recipe, tmp_path, train_steps=STEPS, batch_size=BATCH)
    session.run()

    state = session.exchange._state
    parameters, averages = (
        slot and {piece.spec.name: view for piece, view in slot.named()} for slot in (state.parameters, state.averages)
    )
    check(options, parameters, averages, plain(recipe, steps=STEPS, batch_size=BATCH))


@every_case()
def test_two_towers(name, options, images, tmp_path):
    recipe = recipe_of(name, options, images)
    sessions = in_threads.towers(recipe, tmp_path, 2, train_steps=STEPS, batch_size=BATCH)
    assert in_threads.run(sessions) == [f"reached step {STEPS}"] * 2

    expected = plain(recipe, 2, steps=STEPS, batch_size=BATCH)
    for session in sessions:
        averages = in_threads.named(session, "averages") if recipe.ema_decay else None
        check(options, in_threads.named(session), averages, expected)


@every_case()
@pytest.mark.parametrize(
    ("mode", "ps", "workers"), [("async", 1, 1), ("bounded", 2, 1), ("sync", 1, 2), ("sync", 3, 2)]
)
def test_servers(name, options, mode, ps, workers, images, tmp_path):
    recipe = recipe_of(name, options, images)
    with Cluster(recipe, tmp_path, mode=mode, ps=ps, workers=workers, train_steps=STEPS, batch_size=BATCH) as cluster:
        trainers = [Trainer(cluster, index) for index in range(workers)]
        train(trainers)
        finished(trainers)

        averages = cluster.parameters("averages") if recipe.ema_decay else None
        check(options, cluster.parameters(), averages, plain(recipe, workers, steps=STEPS, batch_size=BATCH))
