"""What a program keeps goes into text and comes back as it was."""

import json

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from evener.errors import ConfigError
from evener.loop.kept import LARGEST, Kept, states_of, unpacked

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(state=st.dictionaries(st.text(), values, max_size=4), numbers=st.tuples(*[st.integers(0, 2**53)] * 3))
def test_it_comes_back(state, numbers):
    version, passes, ahead = numbers
    kept = Kept(state, version, passes, ahead, [{"last_epoch": 3}], [{"lr": 0.1, "betas": (0.9, 0.99)}])
    assert unpacked(kept.packed()) == kept


def test_nothing_kept_is_nothing():
    assert unpacked(b"") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_come_back_bit_for_bit(dtype):
    tensor = torch.randn(2, 3).to(dtype)
    back = unpacked(Kept({"deep": [{"it": tensor}]}).packed()).state["deep"][0]["it"]
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_tensors_of_any_kind_of_memory():
    whole = torch.arange(12.0).reshape(3, 4)
    for tensor in (whole.t(), whole[:, 1], torch.tensor(3.0), torch.zeros(0, 4), nn.Parameter(whole)):
        back = unpacked(Kept({"it": tensor}).packed()).state["it"]
        assert torch.equal(back, tensor.detach())


def test_the_chance_of_a_program_comes_back():
    state = torch.get_rng_state()
    expected = torch.rand(3)
    torch.set_rng_state(unpacked(Kept({"rng": state}).packed()).state["rng"])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("what", [object(), {1, 2}, lambda: 0, 3j, b"bytes"], ids=lambda what: type(what).__name__)
def test_what_cannot_be_kept_is_named(what):
    with pytest.raises(ConfigError, match=r"ev\.state holds what cannot be kept: .*" + type(what).__name__):
        Kept({"best": what}).packed()


def test_a_ring_is_named_too():
    state = {}
    state["self"] = state
    with pytest.raises(ConfigError, match="cannot be kept"):
        Kept(state).packed()


def test_too_much_is_named():
    Kept({"text": "x" * (LARGEST - 1000)}).packed()
    with pytest.raises(ConfigError, match="the most is 65536"):
        Kept({"text": "x" * LARGEST}).packed()


def test_tuples_become_lists_and_keys_texts():
    assert unpacked(Kept({"pair": (1, 2), 3: "three"}).packed()).state == {"pair": [1, 2], "3": "three"}


def test_numbers_that_are_not_finite_come_back():
    back = unpacked(Kept({"best": float("inf"), "worst": float("-inf")}).packed()).state
    assert back == {"best": float("inf"), "worst": float("-inf")}


def test_schedulers_are_kept_as_far_as_they_are_plain():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plain = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    by_function = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    states = states_of([plain, by_function, plateau])
    assert states[0]["last_epoch"] == 0
    assert states[1]["last_epoch"] == 0
    assert states[2]["best"] == float("inf")
    json.loads(Kept(schedulers=states).packed())
