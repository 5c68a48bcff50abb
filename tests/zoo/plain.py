"""The judge: what a plain PyTorch loop makes of a recipe over the same batches.

One process and a single worker are compared with it directly; towers and sync with the mean of the gradients of the
same batches, each computed from the same parameters and buffers, of which the buffers of the last one stay.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor, nn

from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.recipes.recipe import Recipe
from evener.state.tensors import named_tensors


@dataclass(frozen=True)
class Trained:
    parameters: dict[str, Tensor]  # and buffers
    averages: dict[str, Tensor]  # empty if the recipe keeps none
    rates: list[float]  # the learning rate of each update


def plain(
    recipe: Recipe,
    replicas: int = 1,
    *,
    steps: int,
    batch_size: int,
    change: Callable[[int, nn.Module], None] = lambda step, model: None,
) -> Trained:
    """What PyTorch alone makes of the first batches, `replicas` of them for each update.

    Args:
        change: (step, model), between `backward` and the update: what a hook does in `before_update`.
    """
    torch.manual_seed(0)
    model = recipe.model()
    optimizer = recipe.optimizer(model)
    data = as_data(recipe.data()).train
    batches = Batches(data, batch_size=batch_size, seed=0)
    scheduler = _scheduler(recipe, optimizer, Fraction(len(data), batch_size * replicas))
    averages = _values(model) if recipe.ema_decay is not None else {}
    rates = []
    for step in range(steps):
        made: list[dict[str, Tensor | None]] = []
        unchanged = _untrained(model)
        for lease in range(step * replicas, (step + 1) * replicas):
            _put(model, unchanged)
            made.append(_gradients(recipe, model, batches, lease, partial(change, step)))
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            parameter.grad = _mean([gradients[name] for gradients in made])
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_norm)
        if recipe.clip_value is not None:
            nn.utils.clip_grad_value_(parameters.values(), recipe.clip_value)
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if recipe.ema_decay is not None:
            _follow(averages, model, min(recipe.ema_decay, (2 + step) / (11 + step)))
    return Trained(_values(model), averages, rates)


def _gradients(
    recipe: Recipe, model: nn.Module, batches: Batches, lease: int, change: Callable[[nn.Module], None]
) -> dict[str, Tensor | None]:
    inputs, target = batches.batch(lease)
    torch.manual_seed(lease)
    model.zero_grad()
    loss = recipe.loss(model(inputs), target)
    if recipe.penalty is not None:
        loss = loss + recipe.penalty(model)
    loss.backward()
    change(model)
    return {name: None if p.grad is None else p.grad.to_dense().clone() for name, p in model.named_parameters()}


def _untrained(model: nn.Module) -> dict[str, Tensor]:
    """What a batch may change by itself: buffers, and frozen parameters."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {name: value for name, value in _values(model).items() if name not in trained}


def _put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, tensor in named_tensors(model).items():
        if name in values:
            tensor.data.copy_(values[name])


def _scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, pace: Fraction):
    if recipe.lr_scheduler is None:
        return None
    asked = len(inspect.signature(recipe.lr_scheduler).parameters)
    return recipe.lr_scheduler(*(optimizer, math.ceil(pace), pace)[:asked])


def _follow(averages: Mapping[str, Tensor], model: nn.Module, decay: float) -> None:
    """TensorFlow's moving average; buffers are not averaged."""
    parameters = dict(model.named_parameters())
    for name, value in named_tensors(model).items():
        kept = averages[name]
        averaged = kept - (1 - decay) * (kept - value.detach()) if name in parameters else value.detach()
        kept.copy_(averaged)


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def _mean(gradients: Sequence[Tensor | None]) -> Tensor | None:
    if all(gradient is None for gradient in gradients):
        return None
    some = next(gradient for gradient in gradients if gradient is not None)
    total = sum((torch.zeros_like(some) if g is None else g).double() for g in gradients)
    return (total / len(gradients)).to(some.dtype)


def assert_same(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, steps: int, rounded: bool = False
) -> None:
    """All that travels is what plain PyTorch has: by norm, relative to each tensor.

    Args:
        rounded: float32 numbers come of products of 16 bits, which round anew where the last bit is another one.
    """
    travelling = {name: tensor for name, tensor in expected.items() if name in found}
    assert travelling.keys() == found.keys()
    assert travelling
    for name, right in travelling.items():
        left = found[name].detach()
        assert left.dtype == right.dtype, name
        if not right.is_floating_point():
            assert torch.equal(left, right), name
            continue
        narrow = steps * 2**-8
        tolerance = {torch.float64: 1e-12, torch.bfloat16: narrow}.get(right.dtype, narrow if rounded else 1e-6)
        norm = torch.linalg.vector_norm(right.double())
        difference = torch.linalg.vector_norm(left.double() - right.double())
        assert float(difference) <= tolerance * max(float(norm), 1e-3), f"{name}: {left} is not {right}"
