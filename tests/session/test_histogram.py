"""The counts of a histogram: every finite number in its bucket."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from evener.session.histogram import EDGES, PIECE, spread_of


def test_edges_lie_on_both_sides_of_zero_a_tenth_apart():
    assert sorted(set(EDGES)) == EDGES
    assert [-edge or 0.0 for edge in reversed(EDGES)] == EDGES
    positive = [edge for edge in EDGES if edge > 0]
    assert all(1.09 < after / before < 1.11 for before, after in itertools.pairwise(positive))
    assert positive[0] < 1e-12 and positive[-1] > 3.1e38


def bucket(number: float) -> int:
    """As anybody would look for it: from zero outwards."""
    zero = EDGES.index(0.0)
    if number >= 0:
        return next(i for i in range(zero, len(EDGES) - 1) if number < EDGES[i + 1])
    if -number < EDGES[zero + 1]:  # nothing is between
        return zero if -number < 2.0**-133 else zero - 1
    return next(i for i in range(zero - 1, -1, -1) if EDGES[i] < number <= EDGES[i + 1])


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=20))
def test_every_number_lies_in_its_bucket(numbers):
    found = spread_of(torch.tensor(numbers))
    expected = np.zeros(len(EDGES) - 1, dtype=np.int64)
    for number in numbers:
        expected[bucket(number)] += 1
    assert found.counts.tolist() == expected.tolist()
    assert (found.low, found.high) == (min(numbers), max(numbers))
    assert found.total == pytest.approx(math.fsum(numbers), rel=1e-6, abs=1e25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_counts_as_numpy_does_over_many_pieces(dtype):
    numbers = torch.randn(PIECE + 1000, generator=torch.Generator().manual_seed(0)).to(dtype).reshape(-1, 8)
    found, wide = spread_of(numbers), numbers.float().numpy()
    expected = np.histogram(wide, bins=EDGES)[0]
    # on an edge below zero NumPy counts a number on the other side
    assert np.abs(found.counts - expected).sum() <= 2 * np.isin(wide, EDGES).sum()
    assert found.counts.sum() == numbers.numel()
    assert found.squares == pytest.approx(float((wide.astype(np.float64) ** 2).sum()))


def test_what_is_not_finite_is_not_counted():
    found = spread_of(torch.tensor([math.nan, math.inf, -math.inf, 1.0, -2.0, -0.0, 0.0]))
    assert (found.low, found.high, found.total, found.squares, found.counts.sum()) == (-2.0, 1.0, -1.0, 5.0, 4)
    assert spread_of(torch.tensor([math.nan, math.inf])) is None
    assert spread_of(torch.tensor([EDGES[-1], EDGES[0]])) is None, "where the last bucket ends"
    assert spread_of(torch.empty(0)) is None
