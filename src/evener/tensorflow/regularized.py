"""FTRL and proximal Adagrad as `tf.compat.v1.train` has them: optimizers that hold L1 and L2 penalties themselves.

Sources: the functors of tensorflow/core/kernels/training_ops.cc, and tensorflow/python/training/. In the formulas g is
the gradient; all that an optimizer keeps is shaped as its parameter. Each works element by element, so evener may
split a parameter over several ps tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from evener.tensorflow.stepping import check, option, step_each


class Ftrl(Optimizer):
    """TensorFlow's `FtrlOptimizer`: follow the regularized leader (McMahan et al., 2013).

        new = accum + g^2;  p = -learning_rate_power;  l2 = l2_regularization_strength + beta / (2 * lr)
        linear += g + 2 * l2_shrinkage * parameter - (new^p - accum^p) / lr * parameter
        parameter = (sign(linear) * l1 - linear) / (new^p / lr + 2 * l2) where |linear| > l1, else 0
        accum = new

    The parameter follows from `linear` alone, so the first update forgets its initial value where the gradient is
    zero: it becomes 0.

    Keeps accum (`initial_accumulator_value` at first) and linear (zero). (Functors `ApplyFtrl`, `ApplyFtrlV2`.)
    """

    elementwise = True

    def __init__(  # noqa: PLR0913 - TensorFlow's options
        self,
        params: ParamsT,
        lr: float,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        *,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
    ) -> None:
        options = {
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
            "beta": beta,
        }
        check(
            "Ftrl",
            lr=(lr, lr > 0, "above 0"),
            learning_rate_power=(learning_rate_power, learning_rate_power <= 0, "0 or less"),
            **{name: (value, value >= 0, "0 or more") for name, value in options.items()},
        )
        super().__init__(params, {"lr": lr, "learning_rate_power": learning_rate_power, **options})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return step_each(self, _ftrl, closure)


def _ftrl(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["accum"] = torch.full_like(parameter, group["initial_accumulator_value"])
        state["linear"] = torch.zeros_like(parameter)
    accum, linear = state["accum"], state["linear"]
    lr, l1 = option(group["lr"]), option(group["l1_regularization_strength"])
    l2 = option(group["l2_regularization_strength"] + option(group["beta"] / (2 * lr)))
    shrinkage = 2 * option(group["l2_shrinkage_regularization_strength"])
    before = _power(accum, group["learning_rate_power"])
    accum.addcmul_(gradient, gradient)
    after = _power(accum, group["learning_rate_power"])
    linear.add_(gradient).add_(parameter, alpha=shrinkage).sub_((after - before).div_(lr).mul_(parameter))
    new = (linear.sign().mul_(l1) - linear).div_(after.div_(lr).add_(2 * l2))
    parameter.copy_(torch.where(linear.abs() > l1, new, 0.0))  # not new * 0: it may be 0 / 0


def _power(accum: Tensor, learning_rate_power: float) -> Tensor:
    return accum.sqrt() if learning_rate_power == -0.5 else accum.pow(-option(learning_rate_power))


class ProximalAdagrad(Optimizer):
    """TensorFlow's `ProximalAdagradOptimizer`: Adagrad, then the penalties' proximal step (Duchi et al., 2009).

        accumulator += g^2;  rate = lr / sqrt(accumulator)
        moved = parameter - rate * g
        parameter = sign(moved) * max(|moved| - rate * l1, 0) / (1 + rate * l2)

    Keeps accumulator, `initial_accumulator_value` at first. (Functor `ApplyProximalAdagrad`.)
    """

    elementwise = True

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
    ) -> None:
        l1, l2 = l1_regularization_strength, l2_regularization_strength
        check(
            "ProximalAdagrad",
            lr=(lr, lr >= 0, "0 or more"),
            initial_accumulator_value=(initial_accumulator_value, initial_accumulator_value > 0, "above 0"),
            l1_regularization_strength=(l1, l1 >= 0, "0 or more"),
            l2_regularization_strength=(l2, l2 >= 0, "0 or more"),
        )
        options = {"lr": lr, "initial_accumulator_value": initial_accumulator_value}
        options |= {"l1_regularization_strength": l1, "l2_regularization_strength": l2}
        super().__init__(params, options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return step_each(self, _proximal_adagrad, closure)


def _proximal_adagrad(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["accumulator"] = torch.full_like(parameter, group["initial_accumulator_value"])
    rate = state["accumulator"].addcmul_(gradient, gradient).rsqrt().mul_(option(group["lr"]))
    l1, l2 = option(group["l1_regularization_strength"]), option(group["l2_regularization_strength"])
    parameter.addcmul_(rate, gradient, value=-1)
    shrunk = parameter.sign() * (parameter.abs() - rate * l1).clamp_(min=0)
    parameter.copy_(shrunk.div_(rate.mul_(l2).add_(1)))
