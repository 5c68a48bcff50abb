"""What the optimizers share: one pass over the parameters, and numbers rounded as TensorFlow rounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evener.errors import ConfigError

#: Updates one parameter in place: (parameter, gradient, its state, its group's options).
Update = Callable[[Tensor, Tensor, dict[str, Any], dict[str, Any]], None]


def step_each(optimizer: Optimizer, update: Update, closure: Callable[[], float] | None) -> float | None:
    """One step: every parameter that has a gradient is updated by itself, the others stay. Returns the closure's loss.

    Raises:
        ConfigError: a gradient is sparse.
    """
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    raise ConfigError(
                        f"evener.tensorflow.{type(optimizer).__name__} was given a sparse gradient.",
                        why="it has TensorFlow's formula for dense ones only.",
                        fix="make the layer with sparse=False; under evener gradients are always dense.",
                    )
                update(parameter, gradient, optimizer.state[parameter], group)
    return loss


def option(value: float) -> float:
    """An optimizer's option as TensorFlow has it: rounded to float32, also beside a parameter of float64.

    It matters: 1 - 0.999 is 1.3e-5 of it less when 0.999 is a float32.
    """
    return torch.tensor(value, dtype=torch.float32).item()


def rounding(parameter: Tensor) -> Callable[[float], float]:
    """Rounds what is computed from options as TensorFlow does: to float32, or not at all for a parameter of float64."""
    return float if parameter.dtype == torch.float64 else option


def check(optimizer: str, **conditions: tuple[float, bool, str]) -> None:
    """Refuse options: name -> (value, whether it fits, what does). Raises ConfigError."""
    for name, (value, fits, expected) in conditions.items():
        if not fits:
            raise ConfigError(
                f"{optimizer} cannot work with {name}={value!r}.",
                why=f"{name} is {expected}, as in TensorFlow.",
                fix=f"set {name} to a value that is.",
            )
