"""evener.tensorflow's schedules give TensorFlow's learning rates, and follow the global step through a restart."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from training import recipe_of, restored, save, shards_of, train

import evener.tensorflow
from evener.errors import ConfigError
from evener.state.checkpoint import Store
from evener.tensorflow import (
    ScheduledLR,
    cosine_decay_restarts,
    exponential_decay,
    piecewise_constant,
    polynomial_decay,
    scheduled,
)

VALUES = json.loads((Path(__file__).parent / "data" / "tensorflow_values.json").read_text())


def rate(case, step):
    step_is_called = "x" if case["name"] == "piecewise_constant" else "global_step"
    return getattr(evener.tensorflow, case["name"])(**{step_is_called: step}, **case["options"])


@pytest.mark.parametrize("case", VALUES["schedules"], ids=lambda case: case["name"])
def test_the_rates_are_tensorflows(case):
    first = case["options"].get("learning_rate", 1.0)
    expected = [pytest.approx(value, rel=1e-6, abs=1e-6 * first) for value in case["rates"]]

    assert [rate(case, step) for step in VALUES["steps"]] == expected
    assert len(set(case["rates"])) > 3


def test_each_schedule_was_compared():
    functions = {name for name in evener.tensorflow.__all__ if name.islower()} - {"scheduled"}
    assert functions == {case["name"] for case in VALUES["schedules"]}


def test_a_boundary_belongs_to_the_value_before_it_and_a_milestone_does_not():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    milestones = MultiStepLR(optimizer, milestones=[2], gamma=0.1)
    theirs = []
    for _ in range(4):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        milestones.step()

    assert theirs == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert [piecewise_constant(step, [2], [1.0, 0.1]) for step in range(4)] == [1.0, 1.0, 1.0, 0.1]
    # as the guide says: TensorFlow's boundary is MultiStepLR's milestone less one
    assert [piecewise_constant(step, [1], [1.0, 0.1]) for step in range(4)] == pytest.approx(theirs)


def test_values_and_boundaries_must_fit():
    with pytest.raises(ConfigError, match="2 boundaries and 2 values"):
        piecewise_constant(1, [1, 2], [0.1, 0.2])


def test_stairs_are_exact_where_float32_is_not():
    """2^25 + 1 and 2^25 are one number in float32, and above 2^24 TensorFlow's stairs begin late or early."""
    last = 2**25
    rates = [exponential_decay(1.0, step, last + 1, 0.5, staircase=True) for step in (last, last + 1)]
    assert rates == [1.0, 0.5]
    # 14.37 * 100 is no whole number of steps in binary; the stair is where the decimals say
    assert exponential_decay(1.0, 1437, 14.37, 0.5, staircase=True) == 0.5**100
    assert exponential_decay(1.0, 1, 0.1, 0.5, staircase=True) == 0.5**10


@pytest.mark.parametrize("t_mul", [1.0, 1.1, 1.5, 2.0, 3.0])
def test_every_restart_comes_at_its_step(t_mul):
    """TensorFlow's rounded logarithm misses that of step 2100 with t_mul = 1.1: its rate there is 0."""
    ends = [1000.0]
    for _ in range(6):
        ends.append(ends[-1] + 1000 * t_mul ** len(ends))
    for end in (round(end) for end in ends if abs(end - round(end)) < 1e-6):
        rates = [cosine_decay_restarts(1.0, step, 1000, t_mul=t_mul) for step in (end - 1, end, end + 1)]
        assert rates[0] < 1e-5 and rates[1] == pytest.approx(1.0) and rates[2] > 0.99, end


def test_shrinking_cosines_end_as_in_tensorflow():
    assert cosine_decay_restarts(1.0, 15, 10, t_mul=0.5) == pytest.approx(1.0)
    assert str(cosine_decay_restarts(1.0, 20, 10, t_mul=0.5)) == "nan"


def test_a_cycle_ends_before_the_next_begins():
    rates = [polynomial_decay(1.0, step, 10, end_learning_rate=0.0, cycle=True) for step in range(25)]
    assert rates[10] == rates[20] == 0
    assert [step for step, (now, after) in enumerate(pairwise(rates)) if after > now] == [10, 20]


# --- the scheduler

HALVED = scheduled(lambda step: exponential_decay(0.8, step, 3, 0.5, staircase=True))


def followed(states, steps):
    rates = []
    for _ in range(steps):
        rates.append(states[0].learning_rate)
        train(states, 1)
    return rates


def test_the_rate_at_a_global_step_is_the_functions_whatever_the_optimizer_was_given():
    groups = [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "lr": 5.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = HALVED(optimizer, 1.0)
    rates = []
    for _ in range(7):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates == [[0.8, 0.8]] * 3 + [[0.4, 0.4]] * 3 + [[0.2, 0.2]]
    assert scheduler.get_last_lr() == [0.2, 0.2]


@pytest.mark.parametrize("stopped_at", [2, 3, 4])
def test_it_continues_from_a_checkpoint(stopped_at, tmp_path):
    recipe = recipe_of(lambda model: evener.tensorflow.Adam(model.parameters()), lr_scheduler=HALVED)
    states = shards_of(recipe, 2)
    before = followed(states, stopped_at)
    store = Store(tmp_path)
    save(store, states)
    _, contents = store.newest()
    store.close()

    assert before + followed(restored(recipe, contents, 1), 7 - stopped_at) == [0.8] * 3 + [0.4] * 3 + [0.2]


def test_a_run_that_is_continued_with_another_function_follows_it_at_once():
    recipe = recipe_of(lr_scheduler=HALVED)
    states = shards_of(recipe)
    train(states, 4)
    other = recipe_of(lr_scheduler=scheduled(lambda step: 1.0 / (1 + step)))

    assert followed(restored(other, states[0].contents(), 1), 2) == [1 / 5, 1 / 6]


def test_a_function_may_know_the_steps_of_an_epoch():
    recipe = recipe_of(
        lr_scheduler=lambda optimizer, steps_per_epoch: ScheduledLR(
            optimizer, lambda step: exponential_decay(1.0, step, steps_per_epoch, 0.5, staircase=True)
        )
    )
    assert followed(shards_of(recipe), 4) == [1.0, 1.0, 1.0, 0.5]  # shards_of has 3 steps an epoch


def test_what_is_kept_of_a_scheduler_is_plain():
    scheduler = HALVED(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0), 1.0)
    assert json.loads(json.dumps(scheduler.state_dict())) == scheduler.state_dict()
