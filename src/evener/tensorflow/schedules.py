"""TensorFlow's learning-rate schedules: functions of the global step, with its names and its order of arguments.

Source: tensorflow/python/keras/optimizer_v2/learning_rate_schedule.py, which `tf.compat.v1.train` uses.

TensorFlow computes in float32, these in Python's float64; they agree to float32's rounding. Where TensorFlow takes the
floor of a quotient, float32 does harm: steps above 2^24 = 16,777,216 cannot be told apart, and in
`cosine_decay_restarts` the rounded logarithm misses some restarts by a step. Here the floor is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evener.errors import ConfigError


def exponential_decay(
    learning_rate: float, global_step: float, decay_steps: float, decay_rate: float, staircase: bool = False
) -> float:
    """learning_rate * decay_rate ^ (global_step / decay_steps); `staircase`: with the quotient's floor.

    >>> exponential_decay(0.1, 250, 100, 0.5, staircase=True)
    0.025
    """
    return learning_rate * math.pow(decay_rate, _quotient(global_step, decay_steps, staircase))


def natural_exp_decay(
    learning_rate: float, global_step: float, decay_steps: float, decay_rate: float, staircase: bool = False
) -> float:
    """learning_rate * exp(-decay_rate * global_step / decay_steps); `staircase`: with the quotient's floor."""
    return learning_rate * math.exp(-decay_rate * _quotient(global_step, decay_steps, staircase))


def inverse_time_decay(
    learning_rate: float, global_step: float, decay_steps: float, decay_rate: float, staircase: bool = False
) -> float:
    """learning_rate / (1 + decay_rate * global_step / decay_steps); `staircase`: with the quotient's floor."""
    return learning_rate / (1 + decay_rate * _quotient(global_step, decay_steps, staircase))


def piecewise_constant(x: float, boundaries: Sequence[float], values: Sequence[float]) -> float:
    """values[k] of the first k with x <= boundaries[k], or the last of the values. x is the global step.

    A boundary belongs to the value before it. PyTorch's `MultiStepLR` changes at its milestone, one step earlier.

    Raises:
        ConfigError: there is not one value more than boundaries.

    >>> [piecewise_constant(step, [100, 200], [1.0, 0.5, 0.1]) for step in (100, 101, 200, 201)]
    [1.0, 0.5, 0.5, 0.1]
    """
    if len(boundaries) != len(values) - 1:
        raise ConfigError(
            f"piecewise_constant has {len(boundaries)} boundaries and {len(values)} values.",
            why="there is a value before the first boundary and one after each.",
            fix="give one value more than boundaries.",
        )
    return next((value for boundary, value in zip(boundaries, values, strict=False) if x <= boundary), values[-1])


def polynomial_decay(  # noqa: PLR0913 - TensorFlow's arguments
    learning_rate: float,
    global_step: float,
    decay_steps: float,
    end_learning_rate: float = 0.0001,
    power: float = 1.0,
    *,
    cycle: bool = False,
) -> float:
    """(learning_rate - end) * (1 - global_step / decay_steps) ^ power + end, with end = end_learning_rate.

    After `decay_steps` it stays at the end; with `cycle`, decay_steps grows to the next of its multiples instead, so
    the rate jumps up after each. A multiple of decay_steps belongs to the cycle before it: there the rate is the end.
    """
    if cycle:
        decay_steps *= max(1, math.ceil(global_step / decay_steps))
    else:
        global_step = min(global_step, decay_steps)
    left = 1 - global_step / decay_steps
    return float((learning_rate - end_learning_rate) * left**power + end_learning_rate)


def cosine_decay(learning_rate: float, global_step: float, decay_steps: float, alpha: float = 0.0) -> float:
    """Half a cosine from learning_rate at step 0 to alpha * learning_rate at `decay_steps`, where it stays."""
    done = min(global_step, decay_steps) / decay_steps
    return learning_rate * ((1 - alpha) * 0.5 * (1 + math.cos(math.pi * done)) + alpha)


def cosine_decay_restarts(  # noqa: PLR0913 - TensorFlow's arguments
    learning_rate: float,
    global_step: float,
    first_decay_steps: float,
    t_mul: float = 2.0,
    m_mul: float = 1.0,
    *,
    alpha: float = 0.0,
) -> float:
    """Half cosines one after the other; each lasts `t_mul` times as long as the one before, and begins `m_mul` times
    as high. The first lasts `first_decay_steps`. A restart belongs to its new cosine: there the rate is high.
    """
    done, restarts = global_step / first_decay_steps, 0  # of this cosine, and those before it
    if t_mul == 1:
        restarts = math.floor(done)
        done -= restarts
    else:
        length, begun = 1.0, 0.0  # counted in first_decay_steps
        while done >= (begun + length) * (1 - 1e-12):  # 1 + 1.1 + 1.1 * 1.1 is 3.31 and a rounding error
            begun, length, restarts = begun + length, length * t_mul, restarts + 1
            if length < 2**-52:  # t_mul < 1: the lengths have a finite sum, TensorFlow gives NaN after it
                return math.nan
        done = (done - begun) / length
    cosine = 0.5 * m_mul**restarts * (1 + math.cos(math.pi * done))
    return float(learning_rate * ((1 - alpha) * cosine + alpha))


def linear_cosine_decay(  # noqa: PLR0913 - TensorFlow's arguments
    learning_rate: float,
    global_step: float,
    decay_steps: float,
    num_periods: float = 0.5,
    alpha: float = 0.0,
    *,
    beta: float = 0.001,
) -> float:
    """learning_rate * ((alpha + left) * cosine + beta): `left` falls from 1 to 0 over `decay_steps`, and the cosine,
    (1 + cos(2 pi * num_periods * (1 - left))) / 2, swings beside it. After `decay_steps` the rate stays.
    """
    done = min(global_step, decay_steps) / decay_steps
    cosine = 0.5 * (1 + math.cos(math.pi * 2 * num_periods * done))
    return learning_rate * ((alpha + 1 - done) * cosine + beta)


def _quotient(global_step: float, decay_steps: float, staircase: bool) -> float:
    """True division, also of whole numbers.

    Its floor is not `//`: 1 // 0.1 is 9, because 0.1 is stored a little larger than it is. The rounded quotient, 10.0,
    is what TensorFlow floors too. For whole numbers both are the same.
    """
    return math.floor(global_step / decay_steps) if staircase else global_step / decay_steps
