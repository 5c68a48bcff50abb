"""A recipe's optimizer is looked at when it is made: one, over the model's parameters, that takes steps by itself."""

import pytest
import torch
from torch import nn
from training import Net, recipe_of

from evener.errors import ConfigError
from evener.state.optimizers import known_as, names_of_groups, optimizer_of
from evener.tensorflow import Adam

SGD = torch.optim.SGD
STRANGER = nn.Linear(3, 8)


class NeedsClosure(SGD):
    def step(self, closure):
        closure()


class MayTakeClosure(SGD):
    def step(self, closure=None):
        return super().step(closure)


REFUSED = {
    "None": (lambda model: None, "returned None", "return one torch.optim optimizer."),
    "the class": (lambda model: SGD, "returned the class SGD", "return one torch.optim optimizer."),
    "two": (lambda model: (SGD(model.parameters()), SGD(model.parameters())), "of which two have 'first.bias'", "own"),
    "one that is none": (lambda model: {"g": SGD([model.scale]), "d": 1}, "returned 2 objects in a dict", "several"),
    "no optimizers": (lambda model: [], "returned 0 objects in a list", "several with parameters of their own"),
    "one of two by closure": (
        lambda model: [SGD([model.scale]), torch.optim.LBFGS(model.first.parameters())],
        "several optimizers, of which number 2 is LBFGS, whose step() needs a closure",
        "Adam",
    ),
    "LBFGS": (lambda model: torch.optim.LBFGS(model.parameters()), "LBFGS, whose step() needs a closure", "Adam"),
    "closure": (lambda model: NeedsClosure(model.parameters()), "NeedsClosure, whose step() needs", "Adam"),
    "SparseAdam": (lambda model: torch.optim.SparseAdam(model.parameters()), "returned SparseAdam.", "use Adam"),
    "stranger": (lambda model: SGD(STRANGER.parameters()), "of shape [8, 3] that is not in the model", "lambda model:"),
    "one stranger": (lambda model: SGD([*model.parameters(), *STRANGER.parameters()]), "of shape [8, 3]", "belongs"),
    "a copy": (lambda model: SGD([p.detach().clone() for p in model.parameters()]), "not in the model", "lambda"),
    "nothing": (lambda model: SGD([{"params": []}]), "over no parameter that is trained", "model.parameters()"),
    "frozen": (lambda model: SGD([model.fixed]), "over no parameter that is trained", "model.parameters()"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_makes_no_single_update_of_the_models_gradients_is_refused_with_its_line(kind):
    make, says, fix = REFUSED[kind]
    with pytest.raises(ConfigError) as error:
        optimizer_of(recipe_of(make), Net())
    assert says in error.value.what
    assert f"(test_optimizers.py, line {make.__code__.co_firstlineno})" in error.value.what
    assert fix in error.value.fix
    assert error.value.why


FINE = {
    "SGD": lambda model: SGD(model.parameters()),
    "some of the parameters": lambda model: SGD(model.first.parameters()),
    "frozen ones beside others": lambda model: SGD([model.fixed, model.scale]),
    "groups": lambda model: SGD([{"params": [model.scale], "lr": 1.0}, {"params": model.first.parameters()}]),
    "by names": lambda model: SGD(model.named_parameters()),
    "a closure that may be": lambda model: MayTakeClosure(model.parameters()),
    "one, by name": lambda model: {"g": SGD(model.parameters())},
    "several": lambda model: {"d": SGD([model.scale]), "g": torch.optim.Adam(model.first.parameters())},
}


@pytest.mark.parametrize("kind", FINE)
def test_one_optimizer_of_whatever_kind_over_parameters_of_the_model_is_taken(kind):
    assert isinstance(optimizer_of(recipe_of(FINE[kind]), Net()), torch.optim.Optimizer)


def test_groups_are_told_by_the_names_of_their_parameters():
    model = Net()
    assert names_of_groups(FINE["groups"](model), model) == [["scale"], ["first.weight", "first.bias"]]


def test_an_optimizer_by_tensorflows_formula_is_another_kind_than_pytorchs():
    model = Net()
    assert known_as(Adam(model.parameters())) == "evener.tensorflow.Adam"
    assert known_as(torch.optim.Adam(model.parameters())) == "Adam"
    assert known_as(MayTakeClosure(model.parameters())) == "MayTakeClosure"


def test_several_optimizers_are_known_by_all_their_names_and_leave_alone_what_has_no_gradient():
    model = Net()
    made = optimizer_of(recipe_of(FINE["several"]), model)
    before = model.first.weight.detach().clone()
    model.scale.grad = torch.ones_like(model.scale)

    made.step()

    assert known_as(made) == "SGD and Adam"
    assert names_of_groups(made, model) == [["scale"], ["first.weight", "first.bias"]]
    assert torch.equal(model.first.weight, before)
    assert list(made.state) in ([], [model.scale])
