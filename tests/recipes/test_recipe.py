"""Recipes and models: checked when made, before anything runs."""

import warnings

import pytest
import torch
from torch import nn

from evener.errors import ConfigError
from evener.models import check_model
from evener.recipes.recipe import RECIPES, Recipe, accuracy, resolve

PARTS = {
    "model": lambda: nn.Linear(2, 3),
    "data": lambda: ((torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), None),
    "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
}


def test_a_recipe_needs_three_functions_and_has_defaults_for_the_rest():
    made = Recipe(**PARTS)
    assert made.loss is nn.functional.cross_entropy
    assert made.metrics == {"accuracy": accuracy}
    assert made.penalty is None
    assert made.lr_scheduler is None
    assert made.ema_decay is None


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", nn.Linear(2, 3)),
        ("data", ([], [])),
        ("optimizer", torch.optim.SGD),
        ("optimizer", torch.optim.SGD([nn.Parameter(torch.zeros(1))])),
        ("loss", None),
        ("loss", nn.CrossEntropyLoss),
        ("penalty", 1e-4),
        ("lr_scheduler", "cosine"),
        ("metrics", [accuracy]),
        ("metrics", {"accuracy": 0.9}),
        ("ema_decay", 0),
        ("ema_decay", 1.0),
        ("ema_decay", "0.99"),
        ("ema_decay", True),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused_by_name(part, value):
    with pytest.raises(ConfigError, match=part) as caught:
        Recipe(**(PARTS | {part: value}))
    assert caught.value.why
    assert caught.value.fix


def test_a_class_makes_models_and_a_module_computes_losses():
    Recipe(**(PARTS | {"model": nn.Flatten, "loss": nn.CrossEntropyLoss()}))


def test_accuracy_counts_the_largest_output():
    output = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 5.0]])
    assert accuracy(output, torch.tensor([1, 1, 1])).item() == pytest.approx(2 / 3)
    assert accuracy(output, nn.functional.one_hot(torch.tensor([1, 1, 1])).float()).item() == pytest.approx(2 / 3)
    pixels = torch.zeros(2, 3, 4, 4)
    pixels[:, 2] = 1
    assert accuracy(pixels, torch.full((2, 4, 4), 2)).item() == 1.0


@pytest.mark.parametrize("target", [torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, 1, dtype=torch.int64)])
def test_accuracy_does_not_invent_a_number_for_a_regression(target):
    with pytest.raises(ConfigError, match="accuracy does not fit") as caught:
        accuracy(torch.zeros(4, 1), target)
    assert "metrics={}" in caught.value.fix


def shared_memory():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data)
    return model


def with_integers():
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return model


def with_complex():
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (None, "returned None"),
        (nn.Linear, "the class Linear"),
        (nn.ReLU(), "0 parameters"),
        (nn.Linear(2, 2).requires_grad_(False), "2 parameters, none of which requires a gradient"),
        (with_integers(), "'table' holds int64 numbers .*integer parameters"),
        (with_complex(), "'phase' holds complex64"),
        (shared_memory(), r"'1\.weight' shares memory with '0\.weight'|'0\.weight' shares memory with '1\.weight'"),
    ],
    ids=["none", "class", "empty", "frozen", "integers", "complex", "shared"],
)
def test_models_that_cannot_be_trained_are_refused(model, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_model(model)
    assert caught.value.why
    assert caught.value.fix


def test_a_lazy_model_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "lazy modules are new": some versions say so
        model = nn.LazyLinear(3)
    with pytest.raises(ConfigError, match="'weight' has no shape yet"):
        check_model(model)


def test_tied_weights_partly_frozen_models_and_integer_buffers_are_fine():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.LSTM(3, 3))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    check_model(model)


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_can_be_made_with_its_defaults_and_a_place_for_its_data(name):
    check_model(resolve(name, {"data_dir": "anywhere"}).model())


@pytest.mark.parametrize("points", ["layer3", [3]], ids=repr)
def test_split_points_are_a_list_of_names(points):
    with pytest.raises(ConfigError, match="split_points is"):
        Recipe(model=lambda: None, data=lambda: None, optimizer=lambda model: None, split_points=points)
