"""What a manifest keeps of hyperparameters and schedules comes back as it was: kinds, infinities, keys, bits."""

from __future__ import annotations

import json
import math
from collections import Counter

import msgspec
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from evener.state.values import LARGEST, pack, plain, unpack

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(1, 3), max_size=2))
    numbers = draw(st.lists(st.floats(-1e4, 1e4), min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape).to(draw(st.sampled_from(KINDS)))


KEYS = st.text(max_size=4) | st.integers(-(2**53), 2**53) | st.booleans() | st.floats(allow_nan=False)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOATS | st.text(max_size=6) | tensors()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS | st.tuples(KEYS), inner, max_size=3)
        | st.dictionaries(st.sampled_from(["@", "is", "lr", "betas"]), inner, max_size=3)
        | st.dictionaries(KEYS, st.integers(0, 9), max_size=3).map(Counter)
    ),
    max_leaves=8,
)


def same(left, right) -> bool:
    """Equal in kind and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and repr(left) == repr(right))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left), list(right)) and same(list(left.values()), list(right.values()))
    return left == right


@given(VALUES)
def test_whatever_is_packed_comes_back_through_json(value):
    for through in (lambda packed: json.loads(json.dumps(packed, allow_nan=False)),
                    lambda packed: msgspec.json.decode(msgspec.json.encode(packed))):  # fmt: skip
        assert same(unpack(through(pack(value))), value)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_a_whole_dictionary_too(values):
    packed = msgspec.json.decode(msgspec.json.encode(plain(values)))
    assert same({key: unpack(value) for key, value in packed.items()}, values)


def test_what_evener_0_1_0_wrote_is_read_as_it_is():
    assert unpack({"betas": [0.9, 0.999], "foreach": None}) == {"betas": [0.9, 0.999], "foreach": None}


@pytest.mark.parametrize("value", [len, object(), {1, 2}, torch.zeros(LARGEST + 1), torch.zeros(1, dtype=torch.cfloat)])
def test_what_json_cannot_hold_is_left_out_and_nothing_else(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        pack(value)
    assert plain({"lr": 0.1, "function": value}) == {"lr": 0.1}
    assert plain({"schedulers": [{"gamma": 0.1, "function": value}]}) == {"schedulers": [{"gamma": 0.1}]}
