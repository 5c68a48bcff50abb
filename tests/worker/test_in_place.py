"""The gradient of a process alone: large tensors stay where autograd made them, and nothing else of it changes."""

import weakref

import pytest
import torch
from torch import nn
from training import fresh, recipe_of, sgd

from evener.state import in_place as module
from evener.state.in_place import InPlace
from evener.state.state import State
from evener.state.tensors import Slot, specs_of, zeros
from evener.wire.layout import Layout
from evener.worker.compute.towers import Towers


class Mixed(nn.Module):
    """Large, small, large, small; buffers, another dtype, and a parameter that only some batches use."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(7, 61), nn.BatchNorm1d(61), nn.Linear(61, 5)
        self.wide = nn.Parameter(torch.randn(90, dtype=torch.float64))
        self.rare = nn.Parameter(torch.randn(80))
        self.uses = True

    def forward(self, x):
        out = self.second(torch.relu(self.norm(self.first(x)))) * self.wide.sum().float()
        return out + self.rare.sum() if self.uses else out


@pytest.fixture
def towers(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 300)
    recipe = recipe_of(sgd, Mixed)
    made = []
    for kind in (Slot, InPlace):
        model = fresh(recipe)
        layout = Layout(specs_of(model))
        block = zeros(layout.nbytes)
        parts = [block[at : at + nbytes] for at, nbytes in layout.ranges(0)]
        slot = InPlace(layout, parts) if kind is InPlace else Slot(layout, 0, parts)
        made.append((Towers(
            model, recipe, layout, parameters=bytearray(layout.nbytes), gradients=block, seed=1,
            apart=kind is Slot, in_place=slot if kind is InPlace else None,
        ), slot))  # fmt: skip
    return made


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 7, generator=generator), torch.arange(6) % 5


def test_gradients_and_buffers_are_those_of_one_memory(towers):
    for number in range(4):
        for compute, _ in towers:
            compute.model.uses = number != 2
            compute.begin(batch(number), number)
        assert list(towers[0][0].collect()) == list(towers[1][0].collect()) == (["rare"] if number == 2 else [])
        (_, one), (_, other) = towers
        assert set(other.large) == {"first.weight", "second.weight", "wide", "rare"}
        for (piece, expected), (_, found) in zip(one.named(), other.named(), strict=True):
            assert torch.equal(expected, found), piece.key


def test_large_ones_are_autograds_own_and_let_go_before_the_next(towers):
    compute, slot = towers[1]
    compute.begin(batch(0), 0)
    compute.collect()
    index = slot.large["first.weight"]
    assert slot.views[index].data_ptr() == compute.model.first.weight.grad.data_ptr()

    state = State(compute.model, compute.recipe, slot.layout, slot=Slot(slot.layout, 0))
    state.apply(slot)
    before = weakref.ref(compute.model.first.weight.grad.untyped_storage())
    seen = []
    compute.model.register_forward_pre_hook(lambda *_: seen.append((before(), int(slot.views[index].sum()))))
    compute.begin(batch(1), 1)
    assert seen == [(None, 0)]


@pytest.mark.parametrize("name", ["first.weight", "first.bias", "wide", "second.bias", "norm.running_mean"])
def test_what_is_not_finite_is_found_and_named(towers, name):
    compute, slot = towers[1]
    compute.begin(batch(0), 0)
    compute.collect()
    assert slot.first_non_finite() == ""
    view = next(view for piece, view in slot.named() if piece.spec.name == name)
    with torch.no_grad():
        view.view(-1)[3] = torch.inf

    assert slot.first_non_finite() == name


def test_it_changes_places_with_parameters_and_back(towers):
    compute, slot = towers[1]
    compute.begin(batch(0), 0)
    compute.collect()
    shown = Slot(slot.layout, 0)
    for view in shown.views:
        view.fill_(7)
    before = [view.clone() for view in slot.views]
    shown.swap(slot)
    assert all(torch.equal(mine, then) for mine, then in zip(shown.views, before, strict=True))
    shown.swap(slot)

    assert all(torch.equal(mine, then) for mine, then in zip(slot.views, before, strict=True))
    assert all(int(view.min()) == 7 for view in shown.views if view.numel())
