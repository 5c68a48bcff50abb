"""What becomes of an update's gradients before the optimizer: their mean, its norm over all shards, its limits."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from evener.clipping import check_clipping
from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.server.rounds import Products
from evener.settings import Settings
from evener.state import rules
from evener.state.tensors import Slot
from evener.task.build import build
from evener.wire.layout import Layout, Spec

sys.path.append(str(Path(__file__).parents[1]))
from training import recipe_of

SPECS = [
    Spec("weight", (7, 5), "float32", True),
    Spec("half", (6,), "float16", True),
    Spec("seen", (3,), "float32", False),
]


def gradient(layout: Layout, shard: int, whole: dict[str, torch.Tensor]) -> Slot:
    slot = Slot(layout, shard)
    for piece, view in slot.named():
        view.copy_(whole[piece.spec.name].reshape(-1)[piece.start : piece.stop].view(view.shape))
    return slot


def whole(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: scale * torch.randn(spec.shape, generator=generator) for spec in SPECS}


def of_one_shard(seed: int, scale: float = 1.0) -> Slot:
    return gradient(Layout(SPECS, shards=1), 0, whole(seed, scale))


def parameters_with(slot: Slot) -> list[nn.Parameter]:
    """As PyTorch's own clipping wants them."""
    made = []
    for piece, view in slot.named():
        if piece.spec.trained:
            made.append(nn.Parameter(torch.zeros_like(view)))
            made[-1].grad = view.clone()
    return made


# --- the mean


def test_a_mean_of_16_bits_is_finite_where_the_sum_is_not():
    layout = Layout([Spec("row", (4,), "float16", True)], shards=1)
    slots = [gradient(layout, 0, {"row": torch.full((4,), value)}) for value in (40_000.0, 40_000.0, 10_000.0)]
    assert rules.mean(slots[:2], Slot(layout, 0)).views[0].tolist() == [40_000.0] * 4
    assert rules.mean(slots, Slot(layout, 0)).views[0].tolist() == [30_000.0] * 4


def test_a_mean_of_16_bits_rounds_once():
    """1 + 2^-10 + 2^-10 loses both where every sum is rounded."""
    layout = Layout([Spec("row", (1,), "bfloat16", True)], shards=1)
    values = [256.0, 1.0, 1.0, 1.0]
    slots = [gradient(layout, 0, {"row": torch.tensor([value])}) for value in values]
    exact = torch.tensor([sum(values) / 4]).to(torch.bfloat16)
    assert torch.equal(rules.mean(slots, Slot(layout, 0)).views[0], exact)


def test_the_mean_of_one_gradient_is_that_gradient():
    slot = of_one_shard(0)
    assert rules.mean([slot], Slot(slot.layout, 0)) is slot


# --- limits


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e6])
def test_a_limit_of_the_norm_is_pytorchs(limit):
    slot = of_one_shard(3)
    theirs = parameters_with(slot)
    norm = nn.utils.clip_grad_norm_(theirs, limit)

    assert rules.norm(slot) == pytest.approx(float(norm), rel=1e-3)  # theirs is rounded to float16 on the way
    made = rules.scaled(slot, rules.clip_factor(rules.norm(slot), limit), Slot(slot.layout, 0))
    for (piece, view), other in zip(((p, v) for p, v in made.named() if p.spec.trained), theirs, strict=True):
        torch.testing.assert_close(view, other.grad, rtol=2e-3 if piece.spec.dtype == "float16" else 1e-3, atol=0)


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_a_limit_of_each_number_is_pytorchs(limit):
    slot = of_one_shard(3)
    theirs = parameters_with(slot)
    nn.utils.clip_grad_value_(theirs, limit)

    made = rules.clamped(slot, limit, Slot(slot.layout, 0))
    for (_, view), other in zip(((p, v) for p, v in made.named() if p.spec.trained), theirs, strict=True):
        assert torch.equal(view, other.grad)


@pytest.mark.parametrize("clip", [lambda g, out: rules.scaled(g, 0.5, out), lambda g, out: rules.clamped(g, 0.1, out)])
def test_buffers_are_no_gradients(clip):
    slot = of_one_shard(3)
    before = [view.clone() for view in slot.views]
    made = clip(slot, Slot(slot.layout, 0))
    assert torch.equal(made.buffers[0], slot.buffers[0])
    assert all(torch.equal(*pair) for pair in zip(before, slot.views, strict=True)), "the worker's own is not written"


# --- the norm of a mean that lies on several shards


@given(
    shards=st.integers(1, 4),
    gradients=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    data=st.data(),
)
def test_the_norm_of_a_mean_follows_from_products_in_whatever_order_they_come(shards, gradients, seed, scale, data):
    """Each shard tells the products of a gradient with those that it holds already, when it comes there."""
    layout = Layout(SPECS, shards=shards)
    wholes = [whole(seed + number, scale) for number in range(gradients)]
    keys = [(worker, 1, 1 + worker % 2) for worker in range(gradients)]
    stranger = ((99, 1, 1), whole(seed + 50, scale))  # is dropped on the way
    products, told = Products(), []
    for shard in range(shards):
        held: list[tuple[tuple[int, int, int], Slot]] = []
        for number in data.draw(st.permutations(range(gradients + 1))):
            key, tensors = (keys[number], wholes[number]) if number < gradients else stranger
            held.append((key, gradient(layout, shard, tensors)))
            told.append((key, [(other, rules.product(held[-1][1], slot)) for other, slot in held]))
    for index in data.draw(st.permutations(range(len(told)))):
        products.add(*told[index])
    products.forget(stranger[0])

    exact = math.sqrt(sum(
        float((sum(tensors[spec.name].to(getattr(torch, spec.dtype)).double() for tensors in wholes) / gradients)
              .square().sum())
        for spec in SPECS if spec.trained
    ))  # fmt: skip
    assert products.norm(keys) == pytest.approx(exact, rel=1e-4)
    assert products._known == {}, "what was applied or dropped is forgotten"


def test_gradients_that_cancel_have_norm_0_and_no_complex_one():
    keys = [(0, 1, 1), (1, 1, 1)]
    products = Products()
    products.add(keys[0], [(keys[0], 1.0)])
    products.add(keys[1], [(keys[1], 1.0), (keys[0], -1.0000001)])
    assert products.norm(keys) == 0.0
    assert rules.clip_factor(0.0, 1.0) == 1.0


def test_gradients_too_large_for_squares_are_clipped_to_nothing_as_in_pytorch():
    """Also where the products of two of them have infinite parts of either sign."""
    layout = Layout([Spec("row", (4,), "float32", True)], shards=1)
    keys, slots = [(0, 1, 1), (1, 1, 1)], [gradient(layout, 0, {"row": torch.full((4,), v)}) for v in (1e30, -1e30)]
    products = Products()
    products.add(keys[0], [(keys[0], rules.product(slots[0], slots[0]))])
    products.add(keys[1], [(keys[1], rules.product(slots[1], slots[1])), (keys[0], rules.product(slots[0], slots[1]))])
    assert rules.clip_factor(products.norm(keys), 1.0) == 0.0
    assert rules.clip_factor(rules.norm(slots[0]), 1.0) == 0.0, "in one process too"


# --- who says it


@pytest.mark.parametrize("limit", [0, -1.0, math.nan, math.inf, True, "1"])
@pytest.mark.parametrize("field", ["clip_norm", "clip_value"])
@pytest.mark.parametrize("where", [Settings, recipe_of])
def test_a_limit_that_cannot_work_is_refused_by_name(limit, field, where):
    with pytest.raises(ConfigError, match=rf"{field}={limit!r}"):
        where(**{field: limit})


@pytest.mark.parametrize("where", [Settings, recipe_of])
def test_both_limits_at_once_are_refused(where):
    with pytest.raises(ConfigError, match=r"both clip_norm=1\.0 and clip_value=2\.0"):
        where(clip_norm=1.0, clip_value=2.0)
    check_clipping(1.0, None)


@pytest.mark.parametrize(
    ("recipe", "settings", "counts"),
    [
        ({"clip_norm": 1.0}, {}, (1.0, None)),
        ({"clip_norm": 1.0}, {"clip_norm": 2.0}, (2.0, None)),
        ({"clip_norm": 1.0}, {"clip_value": 2.0}, (None, 2.0)),
        ({"clip_value": 1.0}, {"clip_norm": 2.0}, (2.0, None)),
        ({}, {"clip_value": 2.0}, (None, 2.0)),
    ],
)
def test_what_the_command_line_says_counts(recipe, settings, counts):
    made: Recipe = build(Settings(**settings), replace(recipe_of(), **recipe)).recipe
    assert (made.clip_norm, made.clip_value) == counts


# --- of unequal batches


def test_a_weighted_mean_is_that_of_all_samples():
    slots, counts = [of_one_shard(seed) for seed in range(3)], [12, 6, 3]
    found = rules.mean(slots, Slot(Layout(SPECS, shards=1), 0), counts)
    for index, flat in enumerate(found.trained):
        exact = sum(n * slot.trained[index].double() for n, slot in zip(counts, slots, strict=True)) / 21
        assert torch.allclose(flat.double(), exact, rtol=1e-6 if flat.dtype == torch.float32 else 1e-3, atol=1e-6)
    assert torch.equal(found.buffers[0], slots[-1].buffers[0])


def test_narrow_numbers_do_not_overflow_in_a_weighted_sum_either():
    slots = [of_one_shard(0) for _ in range(2)]
    for slot in slots:
        for flat in slot.trained:
            flat.fill_(40_000.0)
    found = rules.mean(slots, Slot(Layout(SPECS, shards=1), 0), [500, 1])
    assert all(bool((flat == 40_000.0).all()) for flat in found.trained)


def test_equal_weights_are_no_weights_so_that_no_bit_changes():
    assert rules.weights([7, 7, 7]) is None and rules.weights([0]) is None
    assert rules.weights([7, 6]) == [7, 6]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_the_norm_of_a_weighted_mean_follows_from_the_products_over_all_shards(counts):
    layout = Layout(SPECS, shards=2)
    keys = [(worker, 1, 1) for worker in range(len(counts))]
    known = Products()
    for shard in range(2):
        slots = [gradient(layout, shard, whole(worker)) for worker in range(len(counts))]
        for at, key in enumerate(keys):
            known.add(key, [(keys[other], rules.product(slots[at], slots[other])) for other in range(at + 1)])
    mean = rules.mean([of_one_shard(worker) for worker in range(len(counts))], Slot(Layout(SPECS, shards=1), 0),
                      rules.weights(counts))  # fmt: skip
    assert known.norm(keys, rules.weights(counts)) == pytest.approx(rules.norm(mean), rel=2e-3)
