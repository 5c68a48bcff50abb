"""Plain values in JSON and back: hyperparameters, schedules, optimizer numbers, as a checkpoint's manifest holds them.

JSON knows no tuples, infinities, keys that are not texts, or tensors. They are written as ``{"@": kind, "is": ...}``.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: Numbers that a tensor among hyperparameters may have: a learning rate, not a model.
LARGEST = 4096


def pack(value: Any) -> Any:
    """A value as JSON can hold it.

    Raises:
        TypeError: it is a function, or an object of a kind that is not known here.

    >>> pack({"betas": (0.9, 0.999), "milestones": {30: 1}, "best": math.inf})
    {'betas': {'@': 'tuple', 'is': [0.9, 0.999]}, 'milestones': {'@': 'dict', 'is': [[30, 1]]}, \
'best': {'@': 'float', 'is': 'inf'}}
    """
    packed: Any = value
    if isinstance(value, float) and not math.isfinite(value):
        packed = {"@": "float", "is": repr(value)}
    elif isinstance(value, list):
        packed = [pack(entry) for entry in value]
    elif isinstance(value, tuple):
        packed = {"@": "tuple", "is": [pack(entry) for entry in value]}
    elif _is_state(value):
        packed = {key: pack(entry) for key, entry in value.items()}
    elif isinstance(value, dict):
        kind = "Counter" if isinstance(value, Counter) else "dict"
        packed = {"@": kind, "is": [[pack(key), pack(entry)] for key, entry in value.items()]}
    elif isinstance(value, Tensor) and value.numel() <= LARGEST and not value.is_complex():
        kind = str(value.dtype).removeprefix("torch.")
        packed = {"@": "tensor", "dtype": kind, "is": pack(value.detach().cpu().tolist())}
    elif value is not None and not isinstance(value, bool | str | int | float):
        raise TypeError(f"{type(value).__name__} cannot be kept as JSON")
    return packed


def unpack(packed: Any) -> Any:
    """What `pack` was given.

    >>> unpack(pack({"lr": torch.tensor(0.5), "milestones": Counter({30: 2})}))
    {'lr': tensor(0.5000), 'milestones': Counter({30: 2})}
    """
    if isinstance(packed, list):
        return [unpack(entry) for entry in packed]
    if not isinstance(packed, dict):
        return packed
    inside = packed.get("is")
    match packed.get("@"):
        case "tuple":
            made: Any = tuple(unpack(inside))
        case "float":
            made = float(str(inside))
        case "dict" | "Counter" as kind:
            made = {unpack(key): unpack(entry) for key, entry in inside or ()}
            made = Counter(made) if kind == "Counter" else made
        case "tensor":
            made = torch.tensor(unpack(inside), dtype=getattr(torch, packed["dtype"]))
        case _:
            made = {key: unpack(entry) for key, entry in packed.items()}
    return made


def check_kinds(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A number may take the place of a number, a text that of a text or of none. Raises TypeError for others."""
    for key, value in saved.items():
        if key not in now:
            continue
        number = isinstance(now[key], int | float | Tensor) and not isinstance(now[key], bool)
        text = isinstance(now[key], str | None)
        if not isinstance(value, int | float | Tensor) if number else isinstance(value, str) and not text:
            raise TypeError(f"{key!r} is {repr(value)[:80]} in it, {repr(now[key])[:80]} here")


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A dictionary, packed; left out is what cannot be (functions), which the recipe makes anew."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        try:
            kept[key] = pack(value)
        except TypeError:
            if isinstance(value, list) and value and all(map(_is_state, value)):
                kept[key] = [plain(entry) for entry in value]  # of the schedules inside a `SequentialLR`
            else:
                log.debug("%r of type %s is not kept in checkpoints", key, type(value).__name__)
    return kept


def _is_state(value: Any) -> bool:
    return type(value) is dict and all(isinstance(key, str) for key in value) and "@" not in value
