"""What a hook makes of gradients, and whom it freezes, is what is trained, in every way of running.

The judge is the plain loop of the zoo, in which the same function stands between `backward` and the update.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from ways import BATCH, EVERY_WAY, STEPS, every, model, recipe_of, refused, replicas, run, went_well

from evener.session.hooks import Hook

from plain import assert_same, plain  # isort: skip  (ways.py knows where it is)


def expected(way, recipe, change):
    return plain(recipe, replicas(way), steps=STEPS, batch_size=BATCH, change=change).parameters


def clip(model, limit):
    nn.utils.clip_grad_norm_(model.parameters(), limit)


@EVERY_WAY
def test_a_hook_clips_each_workers_own_gradient(way, tmp_path):
    """SGD, since Adam divides what is clipped away again."""
    recipe = recipe_of(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    ran = went_well(run(way, recipe, tmp_path, every(before_update=lambda model, step: clip(model, 0.01))))

    assert_same(ran.parameters, expected(way, recipe, lambda step, model: clip(model, 0.01)), steps=STEPS)


@EVERY_WAY
def test_a_gradient_that_a_hook_takes_away_leaves_its_parameter_alone(way, tmp_path):
    """No decay, no momentum: as with None in PyTorch, and not as with zeros."""
    recipe = recipe_of()
    ran = went_well(run(way, recipe, tmp_path, every(before_update=lambda model, step: forget(model[0]))))

    torch.manual_seed(0)
    first = model()[0]
    assert torch.equal(ran.parameters["0.weight"], first.weight)
    assert torch.equal(ran.parameters["0.bias"], first.bias)
    assert_same(ran.parameters, expected(way, recipe, lambda step, model: forget(model[0])), steps=STEPS)


def forget(layer):
    for parameter in layer.parameters():
        parameter.grad = None


@pytest.mark.parametrize("way", ["2 towers", "1 ps", "3 ps"])
def test_what_one_of_two_batches_did_not_use_counts_as_zero_in_the_mean(way, tmp_path):
    """As in DDP with find_unused_parameters."""
    recipe, leases = recipe_of(), iter(range(2 * STEPS))

    class ForgetsOdd(Hook):
        def before_update(self, session, loss):
            if session.turn.lease % 2:
                forget(session.towers.model[0])

    def forgets_odd(step, model):
        if next(leases) % 2:
            forget(model[0])

    ran = went_well(run(way, recipe, tmp_path, lambda worker: [ForgetsOdd()]))
    assert_same(ran.parameters, expected(way, recipe, forgets_odd), steps=STEPS)


@EVERY_WAY
@pytest.mark.parametrize("until", [4, STEPS], ids=["and is trained again", "to the end"])
def test_a_layer_that_a_hook_freezes_is_left_alone(way, until, tmp_path):
    """From global step 2 on; momentum that it has gathered moves it no more."""
    recipe = recipe_of(optimizer=lambda model: torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1
    ))  # fmt: skip
    freezing = every(before_step=lambda model, step: model[0].requires_grad_(not 2 <= step < until) and None)
    ran = went_well(run(way, recipe, tmp_path, freezing))

    def frozen(step, model):
        if 2 <= step < until:
            forget(model[0])

    right = expected(way, recipe, frozen)
    assert_same(ran.parameters, right, steps=STEPS)
    assert not torch.equal(right["0.weight"], expected(way, recipe, lambda step, model: None)["0.weight"])


@EVERY_WAY
@pytest.mark.parametrize("changing", [(), ("0",)], ids=["frozen", "changed by the model"])
def test_what_the_model_froze_cannot_be_trained_later(way, changing, tmp_path):
    def made():
        built = model()
        built[0].requires_grad_(False)
        return built

    def unfreeze(model, step):
        if step == 2:
            model[0].weight.requires_grad_(True)

    refused(run(way, recipe_of(made, changing=changing), tmp_path, every(before_step=unfreeze)), "'0.weight'", "freeze")


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.used(x)


@EVERY_WAY
def test_a_parameter_that_no_batch_uses_keeps_its_values_under_weight_decay(way, tmp_path):
    ran = went_well(run(way, recipe_of(Branch), tmp_path))

    torch.manual_seed(0)
    first = Branch()
    assert torch.equal(ran.parameters["unused.weight"], first.unused.weight)
    assert not torch.equal(ran.parameters["used.weight"], first.used.weight)
