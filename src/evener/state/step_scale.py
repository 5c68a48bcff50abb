"""How long a step of an optimizer is: the one place that a scale of a single update goes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.optim import Optimizer

from evener.state.optimizers import parts_of

#: In these a gradient of half the size makes half the step, momentum included. A smaller learning rate would not
#: do where there is momentum: the gradient would stay in it at full weight, and others would be damped for it.
LINEAR: frozenset[type[Optimizer]] = frozenset({torch.optim.SGD})
#: In these the size of a gradient cancels out, so the learning rate of this step is scaled, and AdamW's decay with it.
ADAPTIVE: frozenset[str] = frozenset(
    {"Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "RMSProp", "Adagrad", "Adadelta"}
)

_NOTHING = nullcontext()


class StepScale:
    """Takes steps of an optimizer that are shorter or longer than it would take them.

    Where the optimizer is linear in its gradient, this is scaled; L2 decay of the weights is not. Of others the
    learning rate is, for one step; a sentence says so of those that we do not know.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        parts = parts_of(optimizer)
        self._linear = all(type(part) in LINEAR for part in parts)
        unknown = [type(part).__name__ for part in parts if type(part) not in LINEAR]
        unknown = sorted({name for name in unknown if name not in ADAPTIVE})
        #: What people should know of it; empty where nothing is to be said.
        self.note = "" if not unknown else (
            f"{', '.join(unknown)}: a step of another size is one at another learning rate; whether that is what this "
            "optimizer makes of it is for you to know"
        )  # fmt: skip

    def scales_gradients(self, scale: float) -> bool:
        """Whether the optimizer is to see its gradient times this, rather than another learning rate."""
        return self._linear and scale != 1.0

    def learning_rate(self, scale: float) -> AbstractContextManager[None]:
        """Around the optimizer's step. What a schedule or a script has set is there again after it, to the bit."""
        return _NOTHING if self._linear or scale == 1.0 else self._scaled(scale)

    @contextmanager
    def _scaled(self, scale: float) -> Iterator[None]:
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            for group in groups:
                group["lr"] = group["lr"] * scale
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate
