"""Rules at work on one shard: which numbers they see, of which parameters, and what they leave alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from evener.errors import ConfigError
from evener.rules import DCASGD, GapAware, Late
from evener.state.optimizers import Several, l2_of
from evener.state.tensors import Slot

sys.path.append(str(Path(__file__).parents[1]))
from training import recipe_of, shards_of


class Sees:
    """Remembers what it was given."""

    keeps = ("sees_count",)

    def __init__(self):
        self.arounds, self.steps, self.dtypes = [], [], []

    def compensate(self, gradient, late, around):
        self.arounds.append(around)
        self.dtypes.append(gradient.dtype)
        return gradient * 2

    def stepped(self, step, around):
        self.steps.append(step)


class Two(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.one = nn.Parameter(torch.ones(2, dtype=dtype))
        self.two = nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, inputs):
        return inputs


def state_of(rules, optimizer=None, model=Two):
    make = optimizer or (lambda model: torch.optim.SGD(model.parameters(), lr=0.5))
    (state,) = shards_of(recipe_of(make, model, rules=rules))
    return state


def filled(state, value):
    slot = Slot(state.parameters.layout, 0)
    for view in slot.views:
        view.fill_(value)
    return slot


def late(staleness=1):
    return Late(0, staleness, workers=2)


def test_rate_and_penalty_are_those_of_the_parameters_own_group():
    def groups(model):
        return torch.optim.SGD(
            [{"params": [model.one], "lr": 0.25, "weight_decay": 0.5}, {"params": [model.two]}], lr=1.0
        )

    rule = Sees()
    state = state_of([rule], groups)
    state.ruled.sent(0, 0)
    state.ruled.compensated(filled(state, 1.0), state.averaged, late(), sent=state.ruled.has(0))
    names = [piece.spec.name for piece in state.parameters.pieces]
    seen = {name: (around.rate, around.decay) for name, around in zip(names, rule.arounds, strict=True)}
    assert seen == {"one": (0.25, 0.5), "two": (1.0, 0.0)}


def test_a_rule_is_told_how_far_each_parameter_has_moved_at_its_unscaled_rate():
    rule = Sees()
    state = state_of([rule], lambda model: torch.optim.Adam(model.parameters(), lr=0.5))
    state.apply(filled(state, 3.0), unused=["two"], scale=0.5)
    (step,) = rule.steps
    torch.testing.assert_close(step, torch.full((2,), -0.25))
    state.apply(filled(state, 3.0))
    assert len(rule.steps) == 3


def test_what_was_sent_stays_as_it_was_when_parameters_move():
    state = state_of([DCASGD()])
    state.ruled.sent(0, 0)
    sent = state.ruled.has(0)
    state.apply(filled(state, 2.0))
    assert sent.slot.views[0].tolist() == [1.0, 1.0]
    assert state.parameters.views[0].tolist() == [0.0, 0.0]


def test_numbers_of_16_bits_are_seen_in_32():
    """g g of 1e-4 is no float16."""
    rule = Sees()
    state = state_of([rule, DCASGD(1e4)], model=lambda: Two(torch.float16))
    state.ruled.sent(0, 0)
    gradient = filled(state, 1e-4)
    sent = state.ruled.has(0)
    state.apply(filled(state, 2.0))
    made = state.ruled.compensated(gradient, state.averaged, late(), sent=sent)
    assert set(rule.dtypes) == {torch.float32} and made.views[0].dtype == torch.float16
    assert made.views[0][0].item() == pytest.approx(2e-4 + 1e4 * 4e-8 * -1.0, rel=1e-2)


def test_without_a_rule_the_gradient_is_the_workers_own():
    state = state_of([])
    gradient = filled(state, 1.0)
    assert state.ruled.compensated(gradient, state.averaged, late(), sent=None) is gradient
    state.ruled.sent(0, 0)
    assert state.ruled.has(0) is None


def test_what_nobody_was_sent_is_never_guessed():
    with pytest.raises(AssertionError, match="what worker 0 was sent is not known"):
        state = state_of([DCASGD()])
        state.ruled.compensated(filled(state, 1.0), state.averaged, late(), sent=None)


def test_uphill_is_refused():
    with pytest.raises(ConfigError, match="maximize=True"):
        state_of([GapAware()], lambda model: torch.optim.SGD(model.parameters(), lr=0.1, maximize=True))


def test_an_l2_penalty_is_one_that_the_optimizer_adds_to_the_gradient():
    parameters = list(Two().parameters())

    class Mine(torch.optim.SGD):
        pass

    kinds = {torch.optim.SGD: 0.5, torch.optim.Adam: 0.5, torch.optim.AdamW: 0.0, Mine: 0.0}
    for kind, decay in kinds.items():
        optimizer = kind(parameters, lr=0.1, weight_decay=0.5)
        assert l2_of(optimizer, optimizer.param_groups[0]) == decay
    one = torch.optim.SGD(parameters[:1], lr=0.1, weight_decay=0.25)
    both = Several([one, torch.optim.AdamW(parameters[1:], weight_decay=0.5)])
    assert [l2_of(both, group) for group in both.param_groups] == [0.25, 0.0]
