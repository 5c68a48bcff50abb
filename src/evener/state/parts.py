"""Parts of split tensors become whole again: a checkpoint is read by parameter name.

Which key of a file is a part of which tensor stands in the manifest (`Layout.parts`); names are not parsed, since a
parameter may be called ``a[0:3]``. Evener 0.1.0 had no such table: there, a key that is no tensor's name is read as
``name[start:stop]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PART = re.compile(r"^(?P<name>.*)\[(?P<start>\d+):(?P<stop>\d+)\]$", re.DOTALL)

Parts = Mapping[str, tuple[str, int, int]]


class Names:
    """What the keys of a checkpoint's files mean.

    Args:
        shapes: every tensor that travels, by name.
        parts: key -> (tensor, start, stop) of those that are parts; None: evener 0.1.0 wrote them.
    """

    def __init__(self, shapes: Mapping[str, list[int]], parts: Parts | None) -> None:
        self.shapes, self._parts = shapes, parts

    def part(self, key: str) -> tuple[str, int, int] | None:
        """(tensor, start, stop) of a part, with the ``/exp_avg`` that the key may have; None: the key is a whole's."""
        owner, slash, state = key.rpartition("/")
        for name, rest in ((key, ""), (owner, slash + state)):
            if name in self.shapes:
                return None
            found = self._parts.get(name) if self._parts is not None else _parsed(name)
            if found is not None:
                return f"{found[0]}{rest}", found[1], found[2]
        return None


def _parsed(name: str) -> tuple[str, int, int] | None:
    match = _PART.match(name)
    return (match["name"], int(match["start"]), int(match["stop"])) if match else None


def join(parts: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Whole tensors from their parts; scalars that every part carries are taken once.

    Optimizer state that was kept for each element (``name/exp_avg``) gets the shape of its tensor.
    """
    whole: dict[str, Tensor] = {}
    split: dict[str, list[tuple[int, int, Tensor]]] = {}
    for key, tensor in parts.items():
        part = names.part(key)
        if part is None:
            whole[key] = tensor
        else:
            split.setdefault(part[0], []).append((part[1], part[2], tensor))
    for name, pieces in split.items():
        pieces.sort(key=lambda piece: piece[0])
        elementwise = all(tensor.numel() == stop - start for start, stop, tensor in pieces)
        shape = names.shapes.get(name) or names.shapes.get(name.rpartition("/")[0])
        joined = torch.cat([tensor.reshape(-1) for _, _, tensor in pieces]) if elementwise else pieces[0][2]
        whole[name] = joined.view(shape) if elementwise and shape else joined
    return whole


def join_numbers(values: Mapping[str, Mapping[str, Any]], names: Names) -> dict[str, Any]:
    """Plain optimizer numbers of all shards, by the names of whole tensors."""
    merged: dict[str, Any] = {}
    for of_shard in values.values():
        for name, value in of_shard.get("numbers", {}).items():
            part = names.part(name)
            merged[part[0] if part else name] = value
    return merged
