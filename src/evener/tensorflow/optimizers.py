"""Adam, RMSProp, Adagrad and Adadelta as `tf.compat.v1.train` has them.

Sources: the functors of tensorflow/core/kernels/training_ops.cc, and tensorflow/python/training/. In the formulas g is
the gradient; all that an optimizer keeps is shaped as its parameter. Each works element by element, so evener may
split a parameter over several ps tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from evener.tensorflow.stepping import check, option, rounding, step_each


class Adam(Optimizer):
    """TensorFlow's `AdamOptimizer`.

        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g^2 - v)
        parameter -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)

    `torch.optim.Adam` divides by sqrt(v / (1 - beta2^t)) + eps instead: there epsilon counts fully from the first step
    on, here it is sqrt(1 - beta2^t) times as strong, 32 times stronger at t = 1. Gradients around epsilon or smaller,
    as of pixels that are rarely lit, make the two differ.

    Keeps m and v, both zero at first, and the powers of beta1 and beta2, which are rounded to float32 at each step as
    TensorFlow's variables are. (Functor `ApplyAdam`.)

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = Adam([weight], lr=0.01)
    >>> weight.grad = torch.tensor([1.0, 1e-7])
    >>> optimizer.step()
    >>> [round(number, 5) for number in weight.tolist()]  # torch.optim.Adam: [0.99, 0.99091]
    [0.99, 0.9976]
    """

    elementwise = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        check(
            "Adam",
            lr=(lr, lr >= 0, "0 or more"),
            beta1=(beta1, 0 <= beta1 < 1, "at least 0 and below 1"),
            beta2=(beta2, 0 <= beta2 < 1, "at least 0 and below 1"),
            epsilon=(epsilon, epsilon >= 0, "0 or more"),
        )
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return step_each(self, _adam, closure)


def _adam(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    rounded = rounding(parameter)
    beta1, beta2 = option(group["beta1"]), option(group["beta2"])
    if not state:
        state |= {"m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
        state |= {"beta1_power": beta1, "beta2_power": beta2}
    m, v = state["m"], state["v"]
    correction = rounded(math.sqrt(rounded(1 - state["beta2_power"])))
    alpha = rounded(rounded(option(group["lr"]) * correction) / rounded(1 - state["beta1_power"]))
    m.lerp_(gradient, rounded(1 - beta1))
    v.lerp_(gradient * gradient, rounded(1 - beta2))
    parameter.addcdiv_(m, v.sqrt().add_(option(group["epsilon"])), value=-alpha)
    state["beta1_power"] = option(state["beta1_power"] * beta1)
    state["beta2_power"] = option(state["beta2_power"] * beta2)


class RMSProp(Optimizer):
    """TensorFlow's `RMSPropOptimizer`.

        rms += (1 - decay) * (g^2 - rms)
        momentum_buffer = momentum * momentum_buffer + lr * g / sqrt(rms + epsilon)
        parameter -= momentum_buffer

    and if `centered`, mg += (1 - decay) * (g - mg), and rms - mg^2 stands under the root instead of rms.

    `torch.optim.RMSprop` begins with rms = 0 instead of 1, adds eps outside the root, and multiplies by lr after the
    buffer: no setting of it gives these numbers.

    Keeps rms (one at first), momentum_buffer and, centered, mg (zero at first). (Functors `ApplyRMSProp`,
    `ApplyCenteredRMSProp`.)
    """

    elementwise = True

    def __init__(  # noqa: PLR0913 - TensorFlow's options
        self,
        params: ParamsT,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        *,
        centered: bool = False,
    ) -> None:
        check(
            "RMSProp",
            lr=(lr, lr >= 0, "0 or more"),
            decay=(decay, 0 <= decay <= 1, "between 0 and 1"),
            momentum=(momentum, momentum >= 0, "0 or more"),
            epsilon=(epsilon, epsilon >= 0, "0 or more"),
        )
        options = {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon, "centered": centered}
        super().__init__(params, options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return step_each(self, _rmsprop, closure)


def _rmsprop(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    rounded = rounding(parameter)
    if not state:
        state |= {"rms": torch.ones_like(parameter), "momentum_buffer": torch.zeros_like(parameter)}
        if group["centered"]:
            state["mg"] = torch.zeros_like(parameter)
    rms, rate = state["rms"], rounded(1 - option(group["decay"]))
    rms.lerp_(gradient * gradient, rate)
    under = rms + option(group["epsilon"])
    if group["centered"]:
        mg = state["mg"].lerp_(gradient, rate)
        under = (rms - mg * mg).add_(option(group["epsilon"]))
    buffer = state["momentum_buffer"].mul_(option(group["momentum"]))
    buffer.addcdiv_(gradient, under.sqrt_(), value=option(group["lr"]))
    parameter.sub_(buffer)


class Adagrad(Optimizer):
    """TensorFlow's `AdagradOptimizer`.

        accumulator += g^2
        parameter -= lr * g / sqrt(accumulator)

    `torch.optim.Adagrad` gives the same numbers with initial_accumulator_value=0.1 and eps=0; its defaults are 0 and
    1e-10.

    Keeps accumulator, `initial_accumulator_value` at first. (Functor `ApplyAdagrad`.)
    """

    elementwise = True

    def __init__(self, params: ParamsT, lr: float, initial_accumulator_value: float = 0.1) -> None:
        check(
            "Adagrad",
            lr=(lr, lr >= 0, "0 or more"),
            initial_accumulator_value=(initial_accumulator_value, initial_accumulator_value > 0, "above 0"),
        )
        super().__init__(params, {"lr": lr, "initial_accumulator_value": initial_accumulator_value})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return step_each(self, _adagrad, closure)


def _adagrad(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["accumulator"] = torch.full_like(parameter, group["initial_accumulator_value"])
    accumulator = state["accumulator"].addcmul_(gradient, gradient)
    parameter.addcdiv_(gradient, accumulator.sqrt(), value=-option(group["lr"]))


class Adadelta(Optimizer):
    """TensorFlow's `AdadeltaOptimizer`.

        accum = rho * accum + (1 - rho) * g^2
        update = sqrt(accum_update + epsilon) / sqrt(accum + epsilon) * g
        accum_update = rho * accum_update + (1 - rho) * update^2
        parameter -= lr * update

    `torch.optim.Adadelta` has this formula with other defaults: lr=1.0, rho=0.9, eps=1e-6.

    Keeps accum and accum_update, zero at first. (Functor `ApplyAdadelta`.)
    """

    elementwise = True

    def __init__(self, params: ParamsT, lr: float = 0.001, rho: float = 0.95, epsilon: float = 1e-8) -> None:
        check(
            "Adadelta",
            lr=(lr, lr >= 0, "0 or more"),
            rho=(rho, 0 <= rho <= 1, "between 0 and 1"),
            epsilon=(epsilon, epsilon >= 0, "0 or more"),
        )
        super().__init__(params, {"lr": lr, "rho": rho, "epsilon": epsilon})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return step_each(self, _adadelta, closure)


def _adadelta(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    rounded = rounding(parameter)
    if not state:
        state |= {"accum": torch.zeros_like(parameter), "accum_update": torch.zeros_like(parameter)}
    rho, epsilon = option(group["rho"]), option(group["epsilon"])
    accum = state["accum"].mul_(rho).addcmul_(gradient, gradient, value=rounded(1 - rho))
    update = (state["accum_update"] + epsilon).sqrt_().div_((accum + epsilon).sqrt_()).mul_(gradient)
    state["accum_update"].mul_(rho).addcmul_(update, update, value=rounded(1 - rho))
    parameter.add_(update, alpha=-option(group["lr"]))
