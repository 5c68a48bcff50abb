"""An optimizer whose update of one parameter needs the others works with one ps task, and is refused with several."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from ways import BATCH, EVERY_WAY, STEPS, WAYS, recipe_of, replicas, run, went_well

from evener.errors import ConfigError

from plain import assert_same, plain  # isort: skip  (ways.py knows where it is)

SEVERAL = pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("3 ps")])
TOGETHER = pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("3 ps")])


def as_plain(way, recipe, directory):
    ran = went_well(run(way, recipe, directory))
    expected = plain(recipe, replicas(way), steps=STEPS, batch_size=BATCH)
    assert_same(ran.parameters, expected.parameters, steps=STEPS)


def clips_before_steps(model):
    """As `clip_grad_norm_` is often hung on an optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def clip(optimizer, *_):
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.05)

    optimizer.register_step_pre_hook(clip)
    return optimizer


class Coupled(torch.optim.SGD):
    """Says that it works element by element, and looks at the norm of all gradients."""

    elementwise = True

    def step(self, closure=None):
        everything = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in everything]).norm()
        for p in everything:
            p.grad.div_(norm)
        return super().step(closure)


class Boxed(torch.optim.SGD):
    """Does work element by element: each parameter stays in a box."""

    elementwise = True

    def step(self, closure=None):
        done = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.clamp_(-0.2, 0.2)
        return done


def over(kind):
    return lambda model: kind(model.parameters(), lr=0.1)


def scaled_before_steps(model):
    """A hook that looks at one element at a time."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def halve(optimizer, *_):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)

    optimizer.register_step_pre_hook(halve)
    return optimizer


@TOGETHER
@pytest.mark.parametrize("optimizer", [clips_before_steps, over(Coupled)], ids=["hook", "subclass"])
def test_with_the_whole_model_in_one_place_it_works(optimizer, way, tmp_path):
    as_plain(way, recipe_of(optimizer=optimizer), tmp_path)


@SEVERAL
@pytest.mark.parametrize("optimizer", [clips_before_steps, over(Coupled)], ids=["hook", "subclass"])
@pytest.mark.parametrize("placement", ["even", "greedy"])
def test_with_several_servers_it_is_refused_before_the_first_step(optimizer, placement, way, tmp_path):
    with pytest.raises(ConfigError, match="cannot update a model that lies on several shards") as caught:
        run(way, recipe_of(optimizer=optimizer), tmp_path, placement=placement)
    assert "--clip-norm" in caught.value.fix


@EVERY_WAY
@pytest.mark.parametrize("optimizer", [over(Boxed), scaled_before_steps], ids=["subclass", "hook"])
def test_what_does_work_element_by_element_works_everywhere(optimizer, way, tmp_path):
    as_plain(way, recipe_of(optimizer=optimizer), tmp_path)
