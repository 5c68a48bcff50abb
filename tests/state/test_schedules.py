"""The clock of a schedule: whole steps an epoch, epochs, validations; and what it says where it has no rate to give."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from training import recipe_of, shards_of, train

sys.path.append(str(Path(__file__).parents[1] / "worker"))
from ways import BATCH, EVERY_WAY, STEPS, recipe_of as small, refused, replicas, run, went_well

from evener import each_epoch, each_validation
from evener.data.dataset import as_data
from evener.errors import ConfigError
from evener.recipes.mnist import mnist
from evener.session.evaluate import Evaluate
from evener.state.schedules import Schedule

#: 1,437 digits in batches of 100: 14.37 updates in an epoch, 15 as a whole number.
PACE, WHOLE = Fraction(1437, 100), 15


def optimizer_at(lr=0.1):
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr, momentum=0.9)


def rates(schedule, updates, pace=PACE):
    """The learning rate of each update."""
    optimizer = optimizer_at()
    at_work = Schedule(recipe_of(lr_scheduler=schedule), optimizer, pace)
    found = []
    for step in range(1, updates + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        at_work.updated(step)
    return found


def plainly(schedule, updates, whole=WHOLE):
    optimizer = optimizer_at()
    scheduler = schedule(optimizer, whole)
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


BY_EPOCH = {
    "StepLR": lambda o, e: StepLR(o, step_size=2 * e),
    "MultiStepLR": lambda o, e: MultiStepLR(o, milestones=[2 * e, 4 * e]),
    "LinearLR": lambda o, e: LinearLR(o, start_factor=0.1, total_iters=e),
    "CosineAnnealingLR": lambda o, e: CosineAnnealingLR(o, T_max=6 * e),
    "CosineAnnealingWarmRestarts": lambda o, e: CosineAnnealingWarmRestarts(o, T_0=2 * e),
    "OneCycleLR": lambda o, e: OneCycleLR(o, max_lr=0.5, epochs=7, steps_per_epoch=e),
    "OneCycleLR by total": lambda o, e: OneCycleLR(o, max_lr=0.5, total_steps=7 * e),
    "SequentialLR": lambda o, e: SequentialLR(o, [LinearLR(o, total_iters=e), ExponentialLR(o, 0.9)], milestones=[e]),
}


@pytest.mark.parametrize("name", BY_EPOCH)
def test_a_schedule_in_epochs_does_what_it_does_with_a_data_loader(name):
    """`len(DataLoader)` is a whole number, rounded up."""
    assert rates(BY_EPOCH[name], 90) == plainly(BY_EPOCH[name], 90)


def test_steps_and_milestones_are_reached_where_they_say():
    steps = rates(BY_EPOCH["StepLR"], 61)
    assert [steps[at] for at in (29, 30, 59, 60)] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    milestones = rates(BY_EPOCH["MultiStepLR"], 61)
    assert [milestones[at] for at in (29, 30, 59, 60)] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert rates(BY_EPOCH["LinearLR"], 17)[15:] == pytest.approx([0.1, 0.1])


def test_who_asks_for_three_gets_the_exact_number_too():
    asked = []

    def schedule(optimizer, whole, exact):
        asked.append((whole, exact))
        return ExponentialLR(optimizer, 0.9)

    def named(optimizer, whole, exact=None):
        return schedule(optimizer, whole, exact)

    def optional(optimizer, whole, gamma=0.9):
        assert gamma == 0.9
        return schedule(optimizer, whole, None)

    def open_to_all(*given):
        return schedule(*given)

    for made in (schedule, named, partial(schedule), open_to_all):
        rates(made, 1)
    assert asked == [(WHOLE, PACE)] * 4
    rates(optional, 1)
    assert asked[4:] == [(WHOLE, None)]


def test_stairs_of_the_shipped_recipes_are_counted_exactly():
    """In floats, 15,625 steps of 96 out of 50,000 samples are 29 epochs."""
    assert math.floor(15_625 / (50_000 / 96)) == 29
    found = rates(mnist(learning_rate=0.1, decay=0.5, staircase=True).lr_scheduler, 15_626, Fraction(50_000, 96))
    assert found[15_624:] == [pytest.approx(0.1 * 0.5**29), pytest.approx(0.1 * 0.5**30)]


# --- once an epoch


@pytest.mark.parametrize("pace", [PACE, Fraction(3), Fraction(1, 2), Fraction(10, 3)])
def test_once_an_epoch_is_after_the_update_that_ends_it(pace):
    found = rates(lambda o, _: each_epoch(ExponentialLR(o, 0.5)), 60, pace)
    assert found == pytest.approx([0.1 * 0.5 ** math.floor(step / pace) for step in range(60)])


@pytest.mark.parametrize("stopped_at", [1, 3, 4])
@pytest.mark.parametrize("hyperparameters", ["checkpoint", "recipe"])
def test_epochs_are_counted_on_when_a_run_continues(stopped_at, hyperparameters):
    recipe = recipe_of(lr_scheduler=lambda o, _: each_epoch(StepLR(o, 2, 0.5)))  # `shards_of`: epochs of 3
    whole = shards_of(recipe)
    train(whole, stopped_at)
    resumed = shards_of(recipe, 2, contents=whole[0].contents(), hyperparameters=hyperparameters)
    for _ in range(12):
        assert [state.learning_rate for state in resumed] == [pytest.approx(whole[0].learning_rate)] * 2
        train(whole, 1)
        train(resumed, 1)
    assert whole[0].learning_rate == pytest.approx(0.1 * 0.5 ** (whole[0].step // 3 // 2))


# --- driven by validations

DRIVEN = {
    "plateau": lambda o, _: ReduceLROnPlateau(o, mode="max", factor=0.5, patience=0, threshold=1e9),
    "each_validation": lambda o, _: each_validation(
        ReduceLROnPlateau(o, mode="max", factor=0.5, patience=0, threshold=1e9), "validation_accuracy"
    ),
}


@EVERY_WAY
@pytest.mark.parametrize("schedule", DRIVEN)
def test_all_who_have_the_optimizer_hear_of_each_validation(schedule, way, tmp_path):
    """Nothing is ever good enough here: the first of four validations sets the mark, three halve the rate."""
    recipe = small(lr_scheduler=DRIVEN[schedule])
    sets = as_data(recipe.data()).validations
    ran = went_well(run(way, recipe, tmp_path, lambda worker: [Evaluate(sets, 1, 10)], eval_every=1))

    assert ran.rates == [[pytest.approx(0.01 * 0.5 ** (STEPS - 2))]] * len(ran.rates)
    assert len(ran.rates) == {"one process": 1, "2 towers": 2, "1 ps": 1}.get(way, 3)


@EVERY_WAY
def test_once_an_epoch_is_the_same_for_all_who_have_the_optimizer(way, tmp_path):
    recipe = small(lr_scheduler=lambda o, _: each_epoch(ExponentialLR(o, 0.5)))
    ran = went_well(run(way, recipe, tmp_path, train_steps=20))

    samples = 20 * BATCH * replicas(way)
    assert ran.rates == [[pytest.approx(0.01 * 0.5 ** (samples // 50))]] * len(ran.rates)


@EVERY_WAY
def test_a_figure_that_no_validation_gives_is_named(way, tmp_path):
    recipe = small(lr_scheduler=lambda o, _: each_validation(ReduceLROnPlateau(o), "validation_beauty"))
    sets = as_data(recipe.data()).validations
    ran = run(way, recipe, tmp_path, lambda worker: [Evaluate(sets, 1, 10)], eval_every=1)
    refused(ran, "'validation_beauty'", "validation_loss", "validation_accuracy")


def test_without_validations_on_the_way_it_is_refused_before_the_first_step():
    schedule = Schedule(recipe_of(lr_scheduler=DRIVEN["plateau"]), optimizer_at(), PACE)
    with pytest.raises(ConfigError, match="ReduceLROnPlateau waits for validations") as caught:
        schedule.check_driven(None)
    assert "--eval-every N" in caught.value.fix
    assert str(WHOLE) in caught.value.fix
    schedule.check_driven(10)


# --- what cannot be


def test_a_schedule_past_its_end_is_named_with_the_way_out():
    """With PyTorch's own error, and the two ways to have a longer one."""
    short = lambda o, _: OneCycleLR(o, max_lr=0.5, total_steps=5)  # noqa: E731
    assert len(rates(short, 5)) == 5
    with pytest.raises(ConfigError, match="OneCycleLR fails at global step 6") as caught:
        rates(short, 7)
    assert "--train-steps" in caught.value.fix
    assert "--hyperparameters recipe" in caught.value.fix


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (lambda o, _: [ExponentialLR(o, 0.9), ExponentialLR(o, 0.9)], "type list"),
        (lambda o, _: None, "None"),
        (lambda o, _: 0.1, "float"),
        (lambda o, _: ExponentialLR(optimizer_at(), 0.9), "another optimizer"),
        (lambda o: ExponentialLR(o, 0.9), "cannot be called"),
    ],
)
def test_what_is_no_schedule_of_this_optimizer_is_refused(schedule, said):
    with pytest.raises(ConfigError, match="lr_scheduler") as caught:
        rates(schedule, 1)
    assert said in str(caught.value)
