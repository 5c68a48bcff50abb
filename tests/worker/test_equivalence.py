"""N workers in sync, or N towers, at batch B are one process at batch N*B: the same parameters, averages and schedule.

Towers and ps tasks sum gradients in the order of their leases, so they give each other's bits (Gloo's ring sums three
or more in another order; `test_process_group.py` compares its bits for two).

The measure is ||a - b|| / ||b|| with 2-norms, of each parameter tensor by itself; the worst tensor counts. float64
models are also compared element by element, |a - b| / max(|b|, root mean square of the tensor), lest an element that
happens to be 1e-17 decides. float32 is held to the norm alone: Adam divides by the root of a mean square, so where a
gradient is rounding noise the noise may become a whole step of that element.

Worst values measured over 50 steps; P = 1, P = 3 and towers give the same bits:

| model, optimizer | float32, norm | float64, norm | float64, element |
|------------------|---------------|---------------|------------------|
| MLP, SGD         | 2.1e-07       | 5.0e-16       | 1.1e-15          |
| MLP, momentum    | 3.3e-07       | 4.0e-16       | 7.3e-16          |
| MLP, TF's Adam   | 2.1e-07       | 2.8e-16       | 7.2e-16          |
| MLP, Adam        | 1.2e-07       | 2.1e-16       | 5.7e-16          |
| CNN, SGD         | 3.6e-07       | 7.9e-16       | 1.4e-15          |
| CNN, momentum    | 3.4e-07       | 1.1e-15       | 2.1e-15          |
| CNN, TF's Adam   | 1.1e-07       | 1.5e-16       | 9.0e-16          |
| CNN, Adam        | 1.0e-07       | 1.4e-16       | 9.2e-16          |
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from random import Random

import pytest
import torch
import towers_in_one_process as in_threads
from torch import nn

from evener.data import digits
from evener.data.dataset import Data, Tensors
from evener.recipes.mnist import OPTIMIZERS, l2_loss, mnist, network
from evener.recipes.recipe import Recipe
from evener.testing import Cluster, Trainer, differences, finished, one_process, same_bits, train

STEPS, BATCH = 50, 8
RATES = {"sgd": 0.1, "momentum": 0.02, "adam": 0.001, "torch_adam": 0.001}


@cache
def images(dtype: torch.dtype) -> Data:
    """The digits, as images of a dtype."""
    found = digits.load()
    parts = [Tensors(part.inputs.to(dtype) / 255, part.target) for part in (found.train, found.validation)]
    return Data(*parts)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )


MODELS = {"mlp": partial(network, 20), "cnn": cnn}


def recipe_of(model: str, optimizer: str, dtype: torch.dtype) -> Recipe:
    """The MNIST recipe with its penalty, schedule and averages, for any model and dtype."""
    shipped = mnist(hidden=20)
    return Recipe(
        model=lambda: MODELS[model]().to(dtype), data=lambda: images(dtype),
        optimizer=lambda made: OPTIMIZERS[optimizer](made, RATES[optimizer], 0.9),
        penalty=lambda made: l2_loss(made, 1e-4), lr_scheduler=shipped.lr_scheduler, ema_decay=0.99, name=model,
    )  # fmt: skip


def alone(recipe: Recipe, directory: Path, **options):
    """One process: its parameters, averages and next learning rate."""
    session, _, _ = one_process(recipe, directory, train_steps=STEPS, **options)
    session.run()
    state = session.exchange._state
    names = [spec.name for spec in state.parameters.layout.specs]
    return (
        dict(zip(names, state.parameters.views, strict=True)), dict(zip(names, state.averages.views, strict=True)),
        session.turn.learning_rate,
    )  # fmt: skip


def together(recipe: Recipe, directory: Path, *, chance: Random | None = None, steps: int = STEPS, **options):
    """The same of a cluster of trainers in sync mode."""
    with Cluster(recipe, directory, mode="sync", train_steps=steps, **options) as cluster:
        workers = [Trainer(cluster, index) for index in range(cluster.settings.workers)]
        train(workers, chance=chance)
        finished(workers)
        rates = {worker.turn.learning_rate for worker in workers}
        assert len(rates) == 1
        return cluster.parameters(), cluster.parameters("averages"), rates.pop()


def as_towers(recipe: Recipe, directory: Path, count: int, **options):
    """The same of so many towers."""
    sessions = in_threads.towers(recipe, directory, count, train_steps=STEPS, **options)
    assert in_threads.run(sessions) == [f"reached step {STEPS}"] * count
    last = sessions[-1]
    return in_threads.named(last), in_threads.named(last, "averages"), last.turn.learning_rate


def elementwise(left, right):
    """The largest difference of two elements, over the larger of the element and its tensor's root mean square."""
    worst = 0.0
    for name, value in right.items():
        scale = value.abs().clamp(min=float(value.pow(2).mean().sqrt()))
        worst = max(worst, float(((left[name] - value).abs() / scale).nan_to_num(0.0).max()))
    return worst


@dataclass(frozen=True)
class Case:
    model: str
    optimizer: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.model}-{self.optimizer}-{str(self.dtype)[-2:]}"


CASES = [Case(m, o, d) for m in MODELS for o in OPTIMIZERS for d in (torch.float32, torch.float64)]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=str(case), marks=[pytest.mark.slow] * (case.model == "cnn")) for case in CASES]
)
def test_two_workers_in_sync_and_two_towers_are_one_process_at_twice_the_batch(case, tmp_path):
    recipe = recipe_of(case.model, case.optimizer, case.dtype)
    expected = alone(recipe, tmp_path / "alone", batch_size=2 * BATCH)
    several = {
        shards: together(recipe, tmp_path / str(shards), ps=shards, workers=2, batch_size=BATCH) for shards in (1, 3)
    }

    several[0] = as_towers(recipe, tmp_path / "towers", 2, batch_size=BATCH)

    assert same_bits(several[1][0], several[3][0])
    assert same_bits(several[1][0], several[0][0])
    assert same_bits(several[1][1], several[0][1])
    for parameters, averages, rate in several.values():
        assert max(differences(parameters, expected[0])) <= 1e-6
        assert max(differences(averages, expected[1])) <= 1e-6
        assert rate == expected[2]  # the schedule's epochs count the aggregate
        if case.dtype == torch.float64:
            assert elementwise(parameters, expected[0]) <= 1e-6
    assert expected[2] < RATES[case.optimizer]  # it did decay


def test_three_workers_too(tmp_path):
    recipe = recipe_of("mlp", "momentum", torch.float32)
    expected = alone(recipe, tmp_path / "alone", batch_size=3 * BATCH)
    parameters, averages, _ = together(recipe, tmp_path / "three", workers=3, batch_size=BATCH)

    assert max(differences(parameters, expected[0])) <= 1e-6
    assert max(differences(averages, expected[1])) <= 1e-6
    assert same_bits(as_towers(recipe, tmp_path / "towers", 3, batch_size=BATCH)[0], parameters)


def test_two_workers_that_accumulate_four_gradients_are_one_process_at_four_batches(tmp_path):
    recipe = recipe_of("mlp", "adam", torch.float64)
    expected = alone(recipe, tmp_path / "alone", batch_size=4 * BATCH)
    parameters, averages, rate = together(
        recipe, tmp_path / "two", workers=2, replicas_to_aggregate=4, accumulate=True, batch_size=BATCH
    )

    assert max(differences(parameters, expected[0])) <= 1e-6
    assert max(differences(averages, expected[1])) <= 1e-6
    assert rate == expected[2]


@pytest.mark.parametrize(
    "crew", [{"workers": 3}, {"workers": 2, "replicas_to_aggregate": 4, "accumulate": True}], ids=["R=W", "R>W"]
)
def test_sync_without_backups_gives_the_same_bits_whatever_the_order_of_arrival(crew, tmp_path):
    recipe = recipe_of("mlp", "momentum", torch.float32)
    runs = [
        together(recipe, tmp_path / str(seed), chance=Random(seed), steps=20, batch_size=BATCH, ps=2, **crew)
        for seed in range(3)
    ]

    for parameters, averages, _ in runs[1:]:
        assert same_bits(parameters, runs[0][0])
        assert same_bits(averages, runs[0][1])


def test_a_lease_gives_the_same_gradient_whoever_computes_it_dropout_included(tmp_path):
    recipe = Recipe(
        model=lambda: nn.Sequential(nn.Linear(784, 20), nn.Dropout(0.5), nn.Linear(20, 10)),
        data=lambda: images(torch.float32), optimizer=lambda made: torch.optim.SGD(made.parameters(), lr=0.1),
    )  # fmt: skip
    with Cluster(recipe, tmp_path, workers=2, train_steps=9) as cluster:
        first, second = (Trainer(cluster, index) for index in range(2))
        losses = {}
        for lease, worker in ((3, first), (4, first), (5, second), (4, second), (3, second)):
            torch.rand(worker.index + 1)  # whatever else it did before
            loss = worker.towers.begin(worker.batches.batch(lease), lease)
            worker.towers.collect()
            found = losses.setdefault(lease, (loss, worker.towers.copy_of_gradients()))
            assert loss == found[0]
            assert same_bits(worker.towers.copy_of_gradients(), found[1])
        assert len({loss for loss, _ in losses.values()}) == 3


def test_one_process_is_plain_pytorch_bit_for_bit(tmp_path):
    """Our own arithmetic has another judge than ourselves."""
    recipe = recipe_of("mlp", "adam", torch.float32)
    parameters, _, _ = alone(recipe, tmp_path, batch_size=BATCH)

    session, _, _ = one_process(recipe, tmp_path / "other", batch_size=BATCH)
    torch.manual_seed(0)
    model = recipe.model()
    optimizer = recipe.optimizer(model)
    samples = len(images(torch.float32).train)
    schedule = recipe.lr_scheduler(optimizer, 0, Fraction(samples, BATCH))
    for step in range(STEPS):
        inputs, target = session.batches.batch(step)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(inputs), target) + recipe.penalty(model)).backward()
        optimizer.step()
        schedule.step()
    session.exchange.close("not run")

    assert same_bits(parameters, {name: value.detach() for name, value in model.named_parameters()})
