"""The scale of one step: of the gradient where the optimizer is linear in it, of the learning rate where it cancels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from evener.state.step_scale import StepScale
from evener.tensorflow import Adam as TensorFlowAdam

sys.path.append(str(Path(__file__).parents[1]))
from training import fresh, gradient_at, recipe_of, shards_of, slot_of, whole_of


def stepped(make, scales, *, by_hand=None, **parts):
    """Parameters after updates of these scales; `by_hand(step, scale)`: what is done instead of saying the scale."""
    (state,) = shards_of(recipe_of(make, **parts))
    model = state.recipe.model()
    for number, scale in enumerate(scales):
        gradient = {name: value.clone() for name, value in gradient_at(number, model).items()}
        if by_hand is None:
            state.apply(slot_of(state, gradient), scale=scale)
        else:
            by_hand(state, gradient, scale)
    return whole_of([state]), state


def trained(tensors):
    return {name: value for name, value in tensors.items() if value.is_floating_point()}


def near(one, two):
    return all(torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-7) for name in trained(one))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1}])
def test_sgd_sees_a_gradient_of_that_size_and_decays_as_ever(options):
    def make(model):
        return torch.optim.SGD(model.parameters(), lr=0.1, **options)

    def smaller(state, gradient, scale):
        names = {spec.name for spec in state.parameters.layout.specs if spec.trained}
        state.apply(slot_of(state, {k: v * scale if k in names else v for k, v in gradient.items()}))

    scales = [1.5, 0.5, 1.0, 0.25]
    assert near(stepped(make, scales)[0], stepped(make, scales, by_hand=smaller)[0])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad,
                                  lambda parameters, lr: TensorFlowAdam(parameters, lr=lr)])  # fmt: skip
def test_adaptive_optimizers_take_the_step_at_another_learning_rate(kind):
    def make(model):
        return kind(model.parameters(), lr=0.01)

    def slower(state, gradient, scale):
        for group in state.optimizer.param_groups:
            group["lr"] *= scale
        state.apply(slot_of(state, gradient))
        for group in state.optimizer.param_groups:
            group["lr"] = 0.01

    scales = [1.5, 0.5, 1.0, 0.25]
    scaled, state = stepped(make, scales)
    assert near(scaled, stepped(make, scales, by_hand=slower)[0])
    assert not near(scaled, stepped(make, [1.0] * 4)[0])
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.01]


def test_a_schedule_goes_on_from_the_rate_that_was_there_not_from_the_scaled_one():
    parts = {"lr_scheduler": lambda made, _: torch.optim.lr_scheduler.ExponentialLR(made, 0.5)}
    _, state = stepped(lambda model: torch.optim.Adam(model.parameters(), lr=0.5), [0.3, 0.3], **parts)
    assert state.learning_rate == 0.125


def test_the_rate_is_there_again_also_when_the_step_fails():
    optimizer = torch.optim.Adam(fresh(recipe_of()).parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), StepScale(optimizer).learning_rate(0.5):
        assert optimizer.param_groups[0]["lr"] == 0.05
        raise ZeroDivisionError
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.Adam])
def test_a_scale_of_one_changes_no_bit(make):
    def usual(state, gradient, scale):
        state.apply(slot_of(state, gradient))

    one, two = (
        stepped(lambda model: make(model.parameters()), [1.0] * 3, by_hand=how)[0] for how in (None, usual)
    )  # fmt: skip
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_of_an_optimizer_that_nobody_knows_it_says_so():
    class Mine(torch.optim.SGD):
        pass

    model = fresh(recipe_of())
    assert StepScale(Mine(model.parameters(), lr=0.1)).note.startswith("Mine: a step of another size")
    assert not StepScale(torch.optim.SGD(model.parameters(), lr=0.1)).note
    assert not StepScale(torch.optim.AdamW(model.parameters())).note
