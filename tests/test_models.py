"""A model is looked at before it is trained: what cannot travel as flat buffers of numbers is refused by name."""

import pytest
import torch
from torch import nn

from evener.errors import ConfigError
from evener.models import check_inputs, check_model


def with_parameter(tensor, *, trained=True):
    model = nn.Linear(2, 2)
    model.extra = nn.Parameter(tensor, requires_grad=trained)
    return model


def shared():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data = model[0].weight.data
    return model


REFUSED = {
    "no module": (lambda: [nn.Linear(2, 2)], "returned an object of type list"),
    "the class": (lambda: nn.Linear, "returned the class Linear"),
    "no parameter": (nn.Identity, "the model has nothing to train: 0 parameters"),
    "all frozen": (lambda: nn.Linear(2, 2).requires_grad_(False), "2 parameters, none of which requires a gradient"),
    "integers": (lambda: with_parameter(torch.zeros(2, dtype=torch.int64), trained=False), "'extra' holds int64"),
    "complex": (lambda: with_parameter(torch.zeros(2, dtype=torch.cdouble)), "'extra' holds complex128"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), "parameter '0.weight' has no shape yet"),
    "lazy buffers": (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)), "'1.running_mean'"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "'weight' is on the device meta"),
    "shared memory": (shared, "'1.weight' shares memory with '0.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_is_refused_by_name_with_a_way_out(kind):
    make, says = REFUSED[kind]
    with pytest.raises(ConfigError) as error:
        check_model(make())
    assert says in error.value.what
    assert error.value.why
    assert error.value.fix


def test_of_a_complex_parameter_the_way_out_can_be_taken():
    """The advice of other number types, a buffer, would be refused too."""
    with pytest.raises(ConfigError) as error:
        check_model(with_parameter(torch.zeros(2, dtype=torch.cfloat)))
    assert "torch.view_as_real(tensor)" in error.value.fix
    check_model(with_parameter(torch.view_as_real(torch.zeros(2, dtype=torch.cfloat))))


def tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


FINE = {
    "tied by the same object": tied,
    "partly frozen": lambda: with_parameter(torch.zeros(2), trained=False),
    "an empty parameter": lambda: with_parameter(torch.zeros(0, 4)),
    "a scalar": lambda: with_parameter(torch.tensor(1.0)),
    "several dtypes": lambda: nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16()),
}


@pytest.mark.parametrize("kind", FINE)
def test_what_can_be_trained_passes(kind):
    check_model(FINE[kind]())


class Two(nn.Module):
    def forward(self, first, second):
        raise NotImplementedError


class TwoOptional(nn.Module):
    def forward(self, inputs, mask=None, *, scale=1.0, **more):
        raise NotImplementedError


def test_a_model_that_is_called_with_more_than_the_inputs_is_refused_with_their_names():
    with pytest.raises(ConfigError) as error:
        check_inputs(Two(), " (train.py, line 3)")
    assert error.value.what == "the model (train.py, line 3) takes 2 inputs: forward(first, second)."
    assert "first, second = inputs" in error.value.fix


@pytest.mark.parametrize("model", [TwoOptional(), nn.Linear(2, 2), nn.Sequential()], ids=lambda m: type(m).__name__)
def test_what_has_defaults_need_not_be_given(model):
    check_inputs(model)
