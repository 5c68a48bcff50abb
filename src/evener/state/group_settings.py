"""What a user's script sets in the groups of its optimizer, put into the one that holds the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from torch import Tensor
from torch.optim import Optimizer

from evener.files import NOT_JSON

#: All that a setting can be: no deeper, and of no other kind.
Value = None | bool | int | float | str | list[bool | int | float | None]
Setting = Mapping[str, Any]

_decode = msgspec.json.Decoder(list[dict[str, Value]]).decode


def read(text: bytes, optimizer: Optimizer) -> list[Setting]:
    """Settings of each group of an optimizer, from JSON: ``[{"lr": 0.1, "betas": [0.9, 0.999]}, ...]``.

    Raises:
        ValueError: they do not fit its groups; what is wrong, as part of a sentence.
    """
    try:
        groups = _decode(text)
    except NOT_JSON as error:
        raise ValueError(f"it cannot be read ({str(error)[:120]})") from error
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(f"settings of {len(groups)} groups, of {len(optimizer.param_groups)} that there are")
    return [
        {name: _fitting(name, value, group) for name, value in settings.items()}
        for settings, group in zip(groups, optimizer.param_groups, strict=True)
    ]


def put(settings: Sequence[Setting], optimizer: Optimizer) -> None:
    """Let them count from the next step on. A number that is a tensor there stays one: it may be captured."""
    for setting, group in zip(settings, optimizer.param_groups, strict=False):
        for name, value in setting.items():
            if isinstance(group[name], Tensor):
                group[name].fill_(value)
            else:
                group[name] = value


def _fitting(name: str, value: Any, group: Mapping[str, Any]) -> Any:
    """The value in the kind that the optimizer has."""
    if name not in group or name == "params":
        raise ValueError(f"{name[:80]!r}, which its groups do not have")
    now = group[name]
    if isinstance(now, tuple) and isinstance(value, list) and len(value) == len(now):
        return tuple(_fitting("each", one, {"each": mine}) for one, mine in zip(value, now, strict=True))
    kinds: tuple[type, ...] = (str,) if isinstance(now, str) else (bool, type(None))
    if isinstance(now, int | float | Tensor) and not isinstance(now, bool):
        kinds = (int, float)
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name[:80]!r} to {repr(value)[:80]}, where it is {repr(now)[:80]}")
    return value
