"""What becomes of the gradients of one update before the optimizer: their mean, and what is clipped of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evener.state.tensors import Slot

N = TypeVar("N", int, float)
#: Dtypes in which a sum of gradients may overflow, or lose what a mean keeps.
NARROW = (torch.float16, torch.bfloat16)


def weights(counts: Sequence[N]) -> Sequence[N] | None:
    """What gradients that are means over so many samples weigh in their mean; None: all the same.

    >>> weights([12, 6, 3]), weights([7, 7]), weights([0, 0])
    ([12, 6, 3], None, None)
    """
    return None if len(set(counts)) == 1 else counts


def weigh(counts: Sequence[int], scales: Sequence[float]) -> tuple[Sequence[float] | None, float]:
    """What gradients of an update weigh in their mean, and how long its step is (MODES: p_i, s_i, s).

    With p_i = n_i / sum n the step is g = sum p_i s_i g_i / s of length s = sum p_i s_i: that of one gradient of its
    own length, and never a longer one for others that count less.

    Args:
        counts: n_i, the samples that each is a mean of; 0: not said, all are alike.
        scales: s_i, how long the step of each one is.

    Returns:
        Weights in any unit (None: all the same), and s.

    >>> weigh([12, 6], [1.0, 1.0]), weigh([0, 0], [0.5, 0.5]), weigh([0, 0], [1.0, 0.5]), weigh([0, 0], [0.0, 0.0])
    (([12, 6], 1.0), (None, 0.5), ([1.0, 0.5], 0.75), (None, 0.0))
    """
    if len(set(scales)) == 1:
        return weights(counts), scales[0]
    told = counts if sum(counts) else [1] * len(counts)
    found = [count * scale for count, scale in zip(told, scales, strict=True)]
    return weights(found), math.fsum(found) / sum(told)


def mean(gradients: Sequence[Slot], out: Slot, weights: Sequence[float] | None = None) -> Slot:
    """The average of some gradients, summed in the order given; buffers are those of the last one.

    With weights it is sum n_i g_i / sum n_i: the mean over all samples, where each gradient is one over its own.
    Numbers of 16 bits are added in float32: two float16 of 40,000 are no finite float16, their mean is.

    Args:
        out: takes it, unless there is only one gradient, which is given back as it is.
    """
    if len(gradients) == 1:
        return gradients[0]
    for index, into in enumerate(out.trained):
        flats = [gradient.trained[index] for gradient in gradients]
        total = into if into.dtype not in NARROW else torch.empty_like(into, dtype=torch.float32)
        if weights is None:
            torch.add(flats[0].to(total.dtype), flats[1], out=total)
            for more in flats[2:]:
                total.add_(more)
            total.div_(len(gradients))
        else:
            torch.mul(flats[0].to(total.dtype), weights[0], out=total)
            for more, weight in zip(flats[1:], weights[1:], strict=True):
                total.add_(more, alpha=weight)
            total.div_(math.fsum(weights))
        if total is not into:
            into.copy_(total)
    for into, buffer in zip(out.buffers, gradients[-1].buffers, strict=True):
        into.copy_(buffer)
    return out


def product(these: Slot, those: Slot) -> float:
    """The inner product of two gradients, as far as they lie on this shard."""
    found = [torch.dot(_wide(mine), _wide(theirs)) for mine, theirs in zip(these.trained, those.trained, strict=True)]
    return float(sum(value.double() for value in found)) if found else 0.0


def norm(gradient: Slot) -> float:
    """The 2-norm of a gradient, as far as it lies on this shard."""
    wide = [torch.linalg.vector_norm(_wide(flat)).double() for flat in gradient.trained]
    return float(torch.linalg.vector_norm(torch.stack(wide))) if wide else 0.0


def norm_of_mean(products: Iterable[float], count: float) -> float:
    """The 2-norm of the mean of `count` gradients, from the inner products of all ordered pairs of them.

    Where they have weights, `count` is the sum of these, and each product is multiplied by both of its gradients'.
    Infinite where their squares are too large for float32, as `torch.nn.utils.clip_grad_norm_` finds it.
    """
    found = list(products)
    if not all(map(math.isfinite, found)):
        return math.inf
    return math.sqrt(max(0.0, math.fsum(found))) / count


def clip_factor(norm: float, limit: float) -> float:
    """What a gradient of this norm is multiplied by: the rule of `torch.nn.utils.clip_grad_norm_`.

    >>> round(clip_factor(2.0, 1.0), 6)
    0.5
    >>> clip_factor(0.5, 1.0)
    1.0
    """
    return min(1.0, limit / (norm + 1e-6))


def scaled(gradient: Slot, factor: float, out: Slot) -> Slot:
    """The gradient times `factor`, in `out`."""
    for into, flat in zip(out.trained, gradient.trained, strict=True):
        torch.mul(flat, factor, out=into)
    return _with_buffers(gradient, out)


def clamped(gradient: Slot, limit: float, out: Slot) -> Slot:
    """The gradient with every number between -limit and limit, in `out`: `torch.nn.utils.clip_grad_value_`."""
    for into, flat in zip(out.trained, gradient.trained, strict=True):
        torch.clamp(flat, -limit, limit, out=into)
    return _with_buffers(gradient, out)


def _with_buffers(gradient: Slot, out: Slot) -> Slot:
    if out is not gradient:
        for into, buffer in zip(out.buffers, gradient.buffers, strict=True):
            into.copy_(buffer)
    return out


def _wide(flat: Tensor) -> Tensor:
    return flat.float() if flat.dtype in NARROW else flat
