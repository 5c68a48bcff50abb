"""Which gradient of a process that owns the parameters must not become an update."""

from __future__ import annotations

import math

from evener.state import rules
from evener.state.state import State
from evener.state.tensors import Slot


def wrong_with(gradient: Slot, loss: float, state: State, limit: float | None) -> str:
    """What is wrong with a gradient, as part of a sentence; empty if nothing is.

    Args:
        limit: the longest that is allowed; None: any.
    """
    if bad := gradient.first_non_finite(state.infinite):
        return f"{state.parameters.layout.what(bad)} is not finite"
    if not math.isfinite(loss):
        return "the loss is not finite"
    if limit is not None and (length := rules.norm(gradient)) > limit:
        return f"the gradient has norm {length:.6g}, above --refuse-norm {limit:g}"
    return ""
