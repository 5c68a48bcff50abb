"""`with evener.device(...)`: modules remember where they want to be; nothing is moved yet."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import evener
from evener.devices.marks import marked
from evener.errors import ConfigError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with evener.device("/gpu:0"):
            self.features = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4, affine=False))
            with evener.device("cuda:1"):
                self.inner = nn.Linear(4, 4)
            self.after = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 2)


def test_what_is_made_in_the_block_wants_the_device_and_the_innermost_counts():
    assert marked(Net()) == {
        "features.0": "cuda:0", "features.2": "cuda:0", "inner": "cuda:1", "after": "cuda:0"
    }  # fmt: skip


def test_the_parameters_are_those_that_every_task_makes():
    torch.manual_seed(3)
    with evener.device("cuda:1"):
        wants = nn.Linear(3, 2)
    torch.manual_seed(3)
    plain = nn.Linear(3, 2)

    assert wants.weight.device.type == "cpu"
    assert torch.equal(wants.weight, plain.weight)
    assert not torch.cuda.is_initialized()


def test_a_copy_wants_what_its_original_wanted():
    assert marked(copy.deepcopy(Net())) == marked(Net())


def test_parameters_that_lie_elsewhere_already_want_to_stay():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    assert marked(model) == {"0": "meta"}


def test_the_block_ends_also_when_it_fails():
    with pytest.raises(ZeroDivisionError), evener.device("cuda:0"):
        raise ZeroDivisionError
    assert marked(nn.Linear(2, 2)) == {}


def test_no_device_no_block():
    with pytest.raises(ConfigError, match="is no device"), evener.device("the fast one"):
        pass
    assert marked(nn.Linear(2, 2)) == {}
