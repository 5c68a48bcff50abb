"""A model is cut where its recipe says; what cannot be cut is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.worker.pipeline.splitting import Foreign, cut, points_of


def chain(layers: int = 5) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))


def recipe(*points: str) -> Recipe:
    return Recipe(
        model=chain, data=lambda: (None, None), optimizer=lambda model: torch.optim.SGD(model.parameters()),
        split_points=points, name="chained",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "begin"), [(2, ["2"]), (3, ["1", "3"]), (4, ["1", "2", "3"]), (5, ["1", "2", "3", "4"])]
)
def test_stages_begin_at_split_points_evenly_spread(stages, begin):
    assert points_of(recipe("1", "2", "3", "4"), chain(), stages) == begin


def test_more_stages_than_split_points_are_refused_with_the_modules_that_could_be_named():
    with pytest.raises(ConfigError) as refused:
        points_of(recipe("2"), chain(), 3)

    assert "3 pipeline stages need 2 split points; the recipe chained names '2'" in refused.value.what
    assert "'0', '1', '2', '3', '4'" in refused.value.fix
    assert "--pipeline-stages 2" in refused.value.fix


def test_a_split_point_that_is_no_module_is_named():
    with pytest.raises(ConfigError, match="'layer9' is no module"):
        points_of(recipe("layer9"), chain(), 2)


def test_each_stage_holds_the_models_own_parameters():
    model = chain(3)

    made = cut(model, ["1", "2"], torch.rand(2, 4))

    assert made.homes == {"0.weight": 0, "0.bias": 0, "1.weight": 1, "1.bias": 1, "2.weight": 2, "2.bias": 2}
    assert next(iter(made.pipe.get_stage_module(1).parameters())) is model[1].weight


def test_what_travels_between_stages_lies_in_the_order_of_its_dimensions():
    """Gloo takes nothing else."""
    images = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).to(memory_format=torch.channels_last)
    assert not model[0](images).is_contiguous()

    first = cut(model, ["1"], images).pipe.get_stage_module(0)

    assert first(images).is_contiguous()
    assert torch.equal(first(images), model[0](images))


def test_weights_tied_across_the_cut_are_refused():
    model = chain(3)
    model[2].weight = model[0].weight

    with pytest.raises(ConfigError, match=r"'0.weight' is used by stage 0 and by stage 1"):
        cut(model, ["1"], torch.rand(2, 4))


def test_weights_tied_inside_a_stage_are_one():
    model = chain(4)
    model[3].weight = model[2].weight

    made = cut(model, ["1"], torch.rand(2, 4))

    assert {id(p) for p in made.pipe.get_stage_module(1).parameters()} == {id(p) for p in model[1:].parameters()}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs)) if inputs.sum() > 0 else self.first(inputs)


def test_a_model_that_branches_on_values_is_refused():
    with pytest.raises(ConfigError, match="the model cannot be cut into stages"):
        cut(Branching(), ["second"], torch.rand(2, 4))


def test_a_cut_before_everything_makes_no_stage():
    with pytest.raises(ConfigError, match="give 1 stages, not 2"):
        cut(chain(2), ["0"], torch.rand(2, 4))


def test_what_other_stages_own_is_nothing_until_it_is_shown_and_frozen_parameters_stay():
    model = chain(3)
    model[2].weight.requires_grad_(False)
    own, frozen = model[0].weight.clone(), model[2].weight.clone()
    foreign = Foreign(model, ["1.weight", "1.bias", "2.weight", "2.bias"], {"1.weight", "1.bias", "2.bias"})
    model[1].weight.grad = torch.ones(4, 4)

    foreign.hide()

    assert model[1].weight.grad is None
    assert sum(p.numel() for p in model.parameters()) == model[0].weight.numel() + model[0].bias.numel()
    assert [p.dim() for p in model[1].parameters()] == [2, 1]  # a penalty that asks for matrices still finds them
    foreign.fill({name: torch.ones(shape) for name, shape in [("1.weight", (4, 4)), ("1.bias", 4), ("2.bias", 4)]})
    assert torch.equal(model[1].weight, torch.ones(4, 4))
    assert torch.equal(model[2].weight, frozen)
    assert torch.equal(model[0].weight, own)
    with foreign.hidden():
        assert model[1].weight.numel() == model[2].weight.numel() == 0
    assert torch.equal(model[1].weight, torch.ones(4, 4))
    assert torch.equal(model[2].weight, frozen)
