"""Tensors on their way into a safetensors file: the same bytes as its own library writes, without a copy of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load, save

from evener.state.serialized import serialized

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def written(tensors):
    return b"".join(bytes(piece) for piece in serialized(tensors))


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    )
)
def test_the_bytes_are_those_of_safetensors(kinds):
    kinds.pop("__metadata__", None)
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in kinds.items()}

    assert written(tensors) == save(tensors)


def test_what_is_written_is_the_memory_of_the_tensors_themselves():
    """One piece for each, and none of them a copy."""
    tensors = {"weight": torch.randn(30, 20), "bias": torch.randn(30), "none": torch.zeros(0)}
    head, *pieces = serialized(tensors)

    assert len(head) < 400
    addresses = [np.frombuffer(piece, dtype=np.uint8).ctypes.data for piece in pieces]
    assert addresses == [tensors["bias"].data_ptr(), tensors["weight"].data_ptr()]


@pytest.mark.parametrize("tensor", [torch.arange(12.0).reshape(3, 4).T, torch.arange(12.0)[::2]])
def test_a_tensor_that_is_not_contiguous_is_written_as_it_is_seen(tensor):
    assert torch.equal(load(written({"one": tensor}))["one"], tensor)


def test_tied_tensors_are_written_twice():
    one = torch.randn(3)
    assert all(torch.equal(value, one) for value in load(written({"a": one, "b": one})).values())
