"""Large parameters are updated in parts: the bits, the files, and what goes on from them are those of whole ones."""

import pytest
import torch
from test_state import OPTIMIZERS, parameters_of, trained_plainly
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import assert_equal, largest_taken, recipe_of, restored, shards_of, train

from evener.state import trained_parts
from evener.tensorflow import Adam as TensorFlowAdam

PIECE, PART = 70, 16  # of 427 and 305 numbers
MORE = {
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), amsgrad=True, weight_decay=0.1),
    "nadam": lambda model: torch.optim.NAdam(model.parameters()),  # keeps a number that is no element's
    "asgd": lambda model: torch.optim.ASGD(model.parameters()),
    "tensorflow": lambda model: TensorFlowAdam(model.parameters()),
    "several": lambda model: [
        torch.optim.Adam(model.first.parameters()),
        torch.optim.SGD([*model.norm.parameters(), *model.second.parameters(), model.scale], lr=0.1, momentum=0.9),
    ],
}


@pytest.fixture
def small(monkeypatch):
    """Parts so small that the layers of the tests' model have several."""
    monkeypatch.setattr(trained_parts, "PIECE", PIECE)
    monkeypatch.setattr(trained_parts, "PART", PART)


def longest(state):
    return max(p.numel() for group in state.optimizer.param_groups for p in group["params"])


def everything_in(contents):
    return {**contents.parameters, **contents.optimizer}


@pytest.mark.parametrize("optimizer", OPTIMIZERS | MORE)
def test_updates_in_parts_have_the_bits_of_whole_ones_and_so_has_their_checkpoint(optimizer, monkeypatch):
    recipe = recipe_of((OPTIMIZERS | MORE)[optimizer])
    (whole,) = shards_of(recipe)
    monkeypatch.setattr(trained_parts, "PIECE", PIECE)
    monkeypatch.setattr(trained_parts, "PART", PART)
    (divided,) = shards_of(recipe)
    assert (longest(whole), longest(divided)) == (427, 61)
    train([whole], 6)
    train([divided], 6)

    expected, found = whole.contents(), divided.contents()
    assert_equal(everything_in(found), everything_in(expected))
    assert found.values == expected.values


@pytest.mark.parametrize("optimizer", OPTIMIZERS | MORE)
def test_a_run_goes_on_from_whole_tensors_in_parts_and_the_other_way_round(optimizer, monkeypatch):
    recipe = recipe_of((OPTIMIZERS | MORE)[optimizer])
    (whole,) = shards_of(recipe)
    train([whole], 3)
    before = whole.contents()
    monkeypatch.setattr(trained_parts, "PIECE", PIECE)
    monkeypatch.setattr(trained_parts, "PART", PART)
    (divided,) = restored(recipe, before, 1)
    assert_equal(everything_in(divided.contents()), everything_in(before))
    train([divided], 3)
    between = divided.contents()
    monkeypatch.undo()
    (again,) = restored(recipe, between, 1)
    train([again], 3)
    train([whole], 6)

    assert_equal(everything_in(again.contents()), everything_in(whole.contents()))


def test_a_shards_slice_of_a_tensor_is_divided_too(small):
    recipe = recipe_of(OPTIMIZERS["adam"])
    states = shards_of(recipe, 3)
    assert all(longest(state) <= PIECE for state in states)
    train(states, 5)

    assert_equal(parameters_of(states), trained_plainly(recipe, 5), rtol=1e-6, atol=1e-7)


def test_shards_go_on_in_parts_as_with_whole_slices(monkeypatch):
    recipe = recipe_of(OPTIMIZERS["adam"])
    (state,) = shards_of(recipe)
    train([state], 3)
    whole = restored(recipe, state.contents(), 3)
    monkeypatch.setattr(trained_parts, "PIECE", PIECE)
    monkeypatch.setattr(trained_parts, "PART", PART)
    divided = restored(recipe, state.contents(), 3)
    train(whole, 3)
    train(divided, 3)

    for one, other in zip(divided, whole, strict=True):
        assert_equal(everything_in(one.contents()), everything_in(other.contents()))


def test_groups_and_their_settings_are_those_of_whole_parameters(small):
    recipe = recipe_of(OPTIMIZERS["adamw_groups"])
    (state,) = shards_of(recipe)
    train([state], 5)

    assert_equal(parameters_of([state]), trained_plainly(recipe, 5), rtol=1e-6, atol=1e-7)
    assert [len(group["params"]) for group in state.contents().values["groups"]] == [2, 6]


def test_a_parameter_that_a_gradient_does_not_have_stays_with_all_its_parts(small):
    (state,) = shards_of(recipe_of(OPTIMIZERS["momentum"]))
    train([state], 1)
    before = parameters_of([state])["first.weight"].clone()
    gradient = state.averaged
    gradient.flats[0].fill_(1.0)
    state.apply(gradient, unused=["first.weight"])

    assert_equal({"first": parameters_of([state])["first.weight"]}, {"first": before})
    assert "first.weight/momentum_buffer" in state.contents().optimizer


class OfOnesOwn(torch.optim.SGD):
    """May look at whole parameters."""


def replaced(model):
    made = torch.optim.SGD(model.parameters(), lr=0.1)
    really = made.step
    made.step = lambda closure=None: really(closure)  # may look at whole parameters first
    return made


def hooked(model):
    made = torch.optim.Adam(model.parameters())
    made.register_step_pre_hook(lambda *_: None)
    return made


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda model: OfOnesOwn(model.parameters(), lr=0.1),
        hooked,
        replaced,
        lambda model: torch.optim.Adam(model.parameters(), fused=True),
        lambda model: torch.optim.Adam(model.parameters(), foreach=True),
        lambda model: torch.optim.Adafactor(model.parameters()),
    ],
    ids=["of_ones_own", "hooked", "replaced", "fused", "foreach", "by_rows"],
)
def test_an_optimizer_that_may_look_at_whole_parameters_gets_them(optimizer, small):
    (state,) = shards_of(recipe_of(optimizer))
    train([state], 2)

    assert longest(state) == 427


def test_a_hook_of_all_optimizers_may_look_at_whole_parameters_too(small):
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        (state,) = shards_of(recipe_of(OPTIMIZERS["adam"]))
    finally:
        handle.remove()
    assert longest(state) == 427


def test_no_temporary_of_an_update_is_as_large_as_a_layer():
    """Adam's over two layers of 4.2 MB; what it keeps of them is there."""
    recipe = recipe_of(OPTIMIZERS["adam"], lambda: nn.Sequential(nn.Linear(1024, 1025), nn.Linear(1024, 1025)))
    (state,) = shards_of(recipe)
    train([state], 1)
    gradient = state.averaged

    assert 0 < largest_taken(lambda: state.apply(gradient)) <= 4 * trained_parts.PART
