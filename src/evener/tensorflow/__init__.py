"""TensorFlow 1's optimizers and learning-rate schedules, with its formulas, on PyTorch. TensorFlow is not needed.

For programs that come from there and must give the same numbers: docs/tensorflow.md has a table.
"""

from __future__ import annotations

from evener.tensorflow.optimizers import Adadelta, Adagrad, Adam, RMSProp
from evener.tensorflow.regularized import Ftrl, ProximalAdagrad
from evener.tensorflow.schedules import (
    cosine_decay,
    cosine_decay_restarts,
    exponential_decay,
    inverse_time_decay,
    linear_cosine_decay,
    natural_exp_decay,
    piecewise_constant,
    polynomial_decay,
)
from evener.tensorflow.scheduling import ScheduledLR, scheduled

__all__ = [
    "Adadelta", "Adagrad", "Adam", "Ftrl", "ProximalAdagrad", "RMSProp", "ScheduledLR", "cosine_decay",
    "cosine_decay_restarts", "exponential_decay", "inverse_time_decay", "linear_cosine_decay", "natural_exp_decay",
    "piecewise_constant", "polynomial_decay", "scheduled",
]  # fmt: skip
