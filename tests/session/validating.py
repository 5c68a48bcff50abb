"""A small recipe with a validation set, for the tests of validation: what it is judged on is what it is trained on."""

import torch
from torch import nn

import evener
from evener.data.dataset import as_data
from evener.recipes.recipe import Recipe
from evener.session.evaluate import evaluate

GENERATOR = torch.Generator().manual_seed(0)
INPUTS, TARGET = torch.randn(70, 8, generator=GENERATOR), torch.arange(70) % 3
DATA = INPUTS, TARGET


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def recipe_of(model=lambda: nn.Linear(8, 3), data=lambda: (DATA, DATA), **parts):
    return Recipe(model=model, data=data, optimizer=sgd, **parts)


def run(recipe, logdir, **options):
    """A run alone, in this process."""
    return evener.run(recipe, **({"quiet": True, "train_steps": 6, "batch_size": 10, "logdir": str(logdir)} | options))


def figures(recipe, model=None, *, batch_size=10, **more):
    return evaluate(model or recipe.model(), recipe, as_data(recipe.data()).validations, batch_size=batch_size, **more)
