"""Parameters over one memory: each gets its own where they are moved, so they are refused unless they are apart."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim import SGD

from evener.errors import ConfigError
from evener.loop.parts import build, sorted_out
from evener.settings import Settings


def settings(**options):
    return Settings(recipe="train.py", script="train.py", **options)


def parts(model):
    return sorted_out([model, SGD(model.parameters(), lr=0.1)])


def over(*tensors):
    """A model whose parameters are these tensors."""
    model = nn.Module()
    for number, tensor in enumerate(tensors):
        model.register_parameter(f"p{number}", nn.Parameter(tensor))
    return parts(model)


def by_data():
    embedding, decoder = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    decoder.weight.data = embedding.weight.data
    return nn.Sequential(embedding, decoder)


def by_itself():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    return model


MOVED = [{"ps": 1}, {"logdir": "logs"}, {"towers": 2}]


@pytest.mark.parametrize("options", MOVED)
def test_parameters_tied_by_their_data_are_refused_with_the_way_to_tie_them(options):
    with pytest.raises(ConfigError, match=r"'(0|1).weight' and '(0|1).weight' are two parameters over") as refused:
        build(parts(by_data()), settings(**options))
    assert "decoder.weight = embedding.weight" in refused.value.fix
    build(parts(by_itself()), settings(**options))


def test_alone_they_stay_tied_as_in_plain_pytorch():
    build(parts(by_data()), settings())


flat = torch.arange(12.0)
square = flat.view(3, 4)


@pytest.mark.parametrize(
    ("tensors", "shared"),
    [
        ([flat[:6], flat[6:]], False), ([flat[:7], flat[6:]], True), ([flat, flat[3:4]], True),
        ([square[:, :2], square[:, 2:]], False), ([square[:, :3], square[:, 2:]], True),
        ([square[:, 0], square[:, 1], square[:, 2:]], False), ([square, square.T], True),
        ([flat[:0], flat[:0], flat], False), ([flat[:6], flat[6:], flat[2:3]], True),
    ],
)  # fmt: skip
def test_parts_of_one_memory_may_be_parameters_that_have_no_number_in_common(tensors, shared):
    refused = pytest.raises(ConfigError, match="are two parameters over the same memory")
    with refused if shared else nullcontext():
        build(over(*tensors), settings(ps=1))


def test_those_that_nobody_trains_may_share_it():
    given = over(flat, flat)
    given.model.requires_grad_(False)
    given.model.register_parameter("more", nn.Parameter(torch.zeros(1)))
    build(parts(given.model), settings(ps=1))
