"""What is random in people's data sets and models follows from the run's seed and the lease, by whichever generator."""

import random
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evener.data.batches import Batches
from evener.data.chance import seed_all, seed_batch
from evener.data.dataset import Augmented, Data, as_dataset
from evener.recipes.recipe import Recipe
from evener.session.hooks import Hook
from evener.settings import Settings
from evener.task.build import build, data_of

sys.path.append(str(Path(__file__).parents[1] / "worker"))
import towers_in_one_process as in_threads

from evener.testing import Cluster, Trainer, finished, one_process, same_bits, train

GENERATORS = {
    "torch": lambda: float(torch.rand(())),
    "numpy": np.random.rand,
    "python": random.random,
}
BY_EACH = pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
BATCH, STEPS = 6, 10


class Jittered:
    """A map-style data set with a random transform, as people write them."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.full((4,), float(index % 7)) * self.draw(), index % 3


def recipe_of(draw):
    return Recipe(
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)),
        data=lambda: Jittered(draw), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip


def drawn():
    """The next number of each generator."""
    return [draw() for draw in GENERATORS.values()]


def together(draw, directory, *, seed=0, ps=1):
    """Two workers in sync, started anew, whatever was drawn before."""
    with Cluster(recipe_of(draw), directory, mode="sync", ps=ps, batch_size=BATCH, train_steps=STEPS, seed=seed) as one:
        workers = [Trainer(one, index) for index in range(2)]
        train(workers)
        parameters = one.parameters()
        finished(workers)
    return parameters


def alone(draw, directory, *hooks, **options):
    session, *_ = one_process(recipe_of(draw), directory, hooks, batch_size=BATCH, **({"train_steps": STEPS} | options))
    session.run()
    return {name: value.clone() for name, value in session.towers.model.state_dict().items()}


# --- seeds


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_all_three_generators_follow_from_the_runs_seed(seed):
    seed_all(seed)
    first = drawn()
    seed_all(seed)
    assert drawn() == first
    seed_all(seed - 1 if seed else 1)
    assert all(one != other for one, other in zip(drawn(), first, strict=True))


def test_all_three_follow_from_the_seed_and_the_lease():
    def of(seed, lease):
        seed_batch(seed, lease)
        return drawn()

    assert of(3, 8) == of(3, 8)
    places = [of(3, 8), of(3, 9), of(4, 8), of(8, 3), of(38, 0)]
    for kind in range(3):
        assert len({one[kind] for one in places}) == len(places)


@BY_EACH
def test_a_batch_is_the_same_whatever_was_drawn_before_it(draw):
    batches = Batches(_dataset(draw), batch_size=BATCH, seed=1)
    first = batches.batch(5)[0]
    batches.batch(9), drawn()

    assert torch.equal(batches.batch(5)[0], first)
    assert not torch.equal(Batches(_dataset(draw), batch_size=BATCH, seed=2).batch(5)[0], first)


@BY_EACH
def test_each_batch_and_each_pass_draws_other_numbers(draw):
    batches = Batches(_dataset(lambda: draw() + 1.0), batch_size=50, seed=1)
    passes = [batches.batch(lease)[0].sort(0).values for lease in range(4)]
    assert not any(torch.equal(one, other) for one, other in pairwise(passes))


def _dataset(draw):
    return as_dataset(Jittered(draw))


class Quiet(Augmented):
    """All its chance comes from the numbers that it is given, in whatever thread."""


def test_a_data_set_that_is_made_in_another_thread_leaves_the_generators_alone():
    """The model draws from them at the same time."""
    dataset = Quiet(torch.zeros(50, 4), torch.arange(50), augment=lambda x, u: x + u[:, :1], numbers=1)
    seed_all(1)
    expected = drawn()
    seed_all(1)
    Batches(dataset, batch_size=BATCH, seed=1).batch(3)
    assert drawn() == expected

    dataset.thread_safe = False
    seed_all(1)
    Batches(dataset, batch_size=BATCH, seed=1).batch(3)
    assert drawn() != expected


# --- runs


@BY_EACH
def test_two_runs_of_two_workers_in_sync_are_equal_bit_for_bit(draw, tmp_path):
    first = together(draw, tmp_path / "first")
    drawn()
    assert same_bits(together(draw, tmp_path / "second"), first)
    assert same_bits(together(draw, tmp_path / "two", ps=2), first)
    assert not same_bits(together(draw, tmp_path / "other", seed=1), first)


@BY_EACH
def test_towers_take_the_batches_of_workers_in_sync(draw, tmp_path):
    sessions = in_threads.towers(recipe_of(draw), tmp_path / "towers", 2, batch_size=BATCH, train_steps=STEPS)
    assert in_threads.run(sessions) == [f"reached step {STEPS}"] * 2
    assert same_bits(in_threads.named(sessions[0]), together(draw, tmp_path / "workers"))


@BY_EACH
def test_five_steps_and_five_more_are_ten(draw, tmp_path):
    straight = alone(draw, tmp_path / "straight")
    alone(draw, tmp_path / "twice", train_steps=STEPS // 2)
    assert same_bits(alone(draw, tmp_path / "twice"), straight)


@BY_EACH
def test_what_a_hook_draws_changes_no_batch(draw, tmp_path):
    class Draws(Hook):
        def after_step(self, session, result):
            drawn()

    assert same_bits(alone(draw, tmp_path / "with", Draws()), alone(draw, tmp_path / "without"))


# --- what is random in model() and data()


@BY_EACH
def test_what_model_draws_is_the_same_on_every_task(draw):
    def scaled():
        model = nn.Linear(4, 3)
        nn.init.constant_(model.weight, draw())
        return model

    recipe = Recipe(model=scaled, data=lambda: Jittered(draw), optimizer=lambda model: torch.optim.SGD(
        model.parameters(), lr=0.1))  # fmt: skip
    tasks = []
    for _ in range(2):
        drawn()  # each task has drawn something else before
        tasks.append(build(Settings(seed=5), recipe).model.weight)
    assert torch.equal(*tasks)
    assert not torch.equal(build(Settings(seed=6), recipe).model.weight, tasks[0])


@BY_EACH
def test_what_data_draws_is_the_same_on_every_task_whatever_its_model_has_drawn(draw):
    def split():
        inputs = torch.full((20, 4), draw())
        return Data((inputs, torch.zeros(20)))

    recipe = Recipe(model=lambda: nn.Linear(4, 3), data=split, optimizer=lambda model: torch.optim.SGD(
        model.parameters(), lr=0.1))  # fmt: skip
    first = data_of(recipe, 5)[0].train.inputs
    build(Settings(seed=5), recipe), drawn()

    assert torch.equal(data_of(recipe, 5)[0].train.inputs, first)
    assert not torch.equal(data_of(recipe, 6)[0].train.inputs, first)
