"""Parameters that ps tasks have filled: what a worker does to them is seen, and seldom at the price of reading all."""

import pytest
import torch
from torch import nn

from evener.errors import ConfigError
from evener.state.tensors import specs_of
from evener.wire.layout import Layout
from evener.worker.compute import constants
from evener.worker.compute.constants import FEW, Constants

#: No view of a few of its numbers has this one.
UNSEEN = 1
STEPS = 40


@pytest.fixture
def model():
    return nn.Linear(100 * FEW, 1, bias=False)


@pytest.fixture
def made(monkeypatch):
    """How many checksums of all parameters were made, as a list of their number."""
    made, checksum = [0], constants.checksum

    def counted(tensors):
        made[0] += 1
        return checksum(tensors)

    monkeypatch.setattr(constants, "checksum", counted)
    return made


def live(model, write, steps=range(1, STEPS + 1)):
    """The steps of a worker: parameters come, the program does what it does, its gradient is collected."""
    held = Constants(model, Layout(specs_of(model), shards=1))
    for step in steps:
        with torch.no_grad():
            model.weight.add_(1.0)
        held.arrived(step)
        with torch.no_grad():
            write(model.weight, step)
        held.compare_arrived(step, deep=False)
        held.look(step)


def nothing(weight, step): ...


def puts_back(weight, step):
    own = weight.clone()
    weight.zero_()
    weight.copy_(own)


def test_all_are_read_at_steps_1_2_4_8_and_so_on_twice(model, made):
    live(model, nothing)
    assert made == [2 * 6]


@pytest.mark.parametrize("every", [1, 3, 4, 7])
def test_once_it_is_known_that_a_program_puts_back_what_was_there_no_more_are_read(every, model, made):
    live(model, lambda weight, step: step % every or puts_back(weight, step))
    first = every if every & (every - 1) == 0 else every + 1  # the first write is judged by a sample
    assert made[0] <= 2 * 6 + 6 + 2 * (first + every)


@pytest.mark.parametrize("step", range(1, 12))
def test_a_change_is_refused_at_any_step(step, model):
    with pytest.raises(ConfigError, match="has changed trained parameters by itself"):
        live(model, lambda weight, now: now != step or weight.mul_(1.001))


@pytest.mark.parametrize("step", range(1, 12))
def test_also_past_the_version_counters(step, model):
    with pytest.raises(ConfigError, match="has changed trained parameters by itself"):
        live(model, lambda weight, now: now != step or weight.data.clamp_(-0.001, 0.001))


@pytest.mark.parametrize("tenth", range(10))
def test_also_one_of_a_tenth_of_a_parameter(tenth, model):
    def writes(weight, step):
        if step == 5:
            weight.view(10, -1)[tenth].add_(1.0)

    with pytest.raises(ConfigError, match="has changed trained parameters by itself"):
        live(model, writes)


def test_also_one_of_a_column_of_a_square_matrix():
    model = nn.Linear(4 * FEW, 4 * FEW, bias=False)

    def writes(weight, step):
        if step == 5:
            weight[:, 7].add_(1.0)

    with pytest.raises(ConfigError, match="has changed trained parameters by itself"):
        live(model, writes)


def test_one_of_a_single_number_is_refused_at_the_latest_when_it_comes_again(model):
    """A row that is kept at zero, say."""
    begun = []

    def writes(weight, step):
        if step >= 5:
            begun.append(step)
            weight[0, UNSEEN] = 0.5

    with pytest.raises(ConfigError, match="has changed trained parameters by itself"):
        live(model, writes)
    assert begun == [5, 6]


def test_also_after_a_program_has_put_back_other_values_at_the_next_power_of_two(model):
    seen = []

    def writes(weight, step):
        seen.append(step)
        puts_back(weight, step)
        if step >= 9:
            weight[0, UNSEEN] = 0.5

    with pytest.raises(ConfigError, match="has changed trained parameters by itself"):
        live(model, writes)
    assert seen[-1] == 16


def frees(model):
    model.bias.requires_grad_(True)


def adds(model):
    model.register_buffer("late", torch.zeros(1))


def replaces(model):
    model.weight = nn.Parameter(torch.zeros(2, 3))


@pytest.mark.parametrize("change", [frees, adds, replaces])
def test_what_is_refused_is_told_in_words_for_recipes_and_for_loops_of_one_s_own(change):
    """Whose models no `model()` has returned."""
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    held = Constants(model, Layout(specs_of(model), shards=1))
    change(model)
    with pytest.raises(ConfigError) as refused:
        held.look(0)
    assert "model() returned" not in f"{refused.value.what} {refused.value.why}"
    assert "prepare" in refused.value.fix
