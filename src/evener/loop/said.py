"""Which settings of an optimizer are for its program to say.

Some optimizers keep numbers of their own beside them, which each step changes: how many steps there were, the sum of
weights (schedulefree), the distance (Prodigy). They are a part of its state, and lie where the steps are taken.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

#: What schedulers of PyTorch put into groups.
OF_SCHEDULERS = frozenset({"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})


def sayable(optimizer: Optimizer) -> frozenset[str]:
    """The settings that it was made with, or that a scheduler adds: its constructors take the former by these names.

    >>> sorted(sayable(torch.optim.SGD([torch.zeros(1)])) & {"lr", "initial_lr", "params", "k"})
    ['initial_lr', 'lr']
    """
    made = [kind for kind in type(optimizer).__mro__ if "__init__" in vars(kind) and kind not in (Optimizer, object)]
    taken = {name for kind in made for name in inspect.signature(kind).parameters}
    return OF_SCHEDULERS | taken - {"params"}


class Said:
    """What a program says of all groups of its optimizers, while the steps are taken elsewhere.

    Besides what it was made with, whatever the program has changed: here nobody else changes a setting. No limit that
    is infinite from the start, which travels badly.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        #: A scheduler that is made later adds settings of its own (`initial_lr`), which ps tasks do not know.
        self._first = [_plain({k: v for k, v in group.items() if k != "params"}) for group in self._groups()]
        self._names = [set(sayable(one)) for one in optimizers for _ in one.param_groups]

    def _groups(self) -> list[dict[str, Any]]:
        """`load_state_dict` makes new ones."""
        return [group for one in self._optimizers for group in one.param_groups]

    def now(self) -> list[dict[str, Any]]:
        """Of each group what a ps task's group of the same kind takes."""
        told = []
        for group, first, names in zip(self._groups(), self._first, self._names, strict=True):
            values = _plain({key: group[key] for key in first if key in group})
            names.update(key for key, value in values.items() if value != first[key])
            told.append({k: v for k, v in values.items() if k in names and (_finite(v) or _finite(first[k]))})
        return told


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, truths, texts, and pairs of numbers."""
    values = {key: float(v) if isinstance(v, torch.Tensor) else v for key, v in settings.items()}
    plain = (bool, int, float, str, tuple, type(None))
    return {key: value for key, value in values.items() if isinstance(value, plain)}
