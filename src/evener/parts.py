"""Parts of split tensors, ``fc.weight[0:1024]``, become whole again: a checkpoint is read by parameter name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PART = re.compile(r"^(?P<name>.*)\[(?P<start>\d+):(?P<stop>\d+)\](?P<key>/[^/]*)?$")


def join(parts: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Whole tensors from parts ``name[start:stop]``; scalars that every part carries are taken once.

    Optimizer state that was kept for each element (``name/exp_avg``) gets the shape of its tensor.
    """
    whole = {name: tensor for name, tensor in parts.items() if not _PART.match(name)}
    split: dict[str, list[tuple[int, int, Tensor]]] = {}
    for key, tensor in parts.items():
        if match := _PART.match(key):
            name = f"{match['name']}{match['key'] or ''}"
            split.setdefault(name, []).append((int(match["start"]), int(match["stop"]), tensor))
    for name, pieces in split.items():
        pieces.sort(key=lambda piece: piece[0])
        elementwise = all(tensor.numel() == stop - start for start, stop, tensor in pieces)
        shape = shapes.get(name) or shapes.get(name.rpartition("/")[0])
        joined = torch.cat([tensor.reshape(-1) for _, _, tensor in pieces]) if elementwise else pieces[0][2]
        whole[name] = joined.view(shape) if elementwise and shape else joined
    return whole


def join_numbers(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Plain optimizer numbers of all shards, by the names of whole tensors."""
    merged: dict[str, Any] = {}
    for of_shard in values.values():
        for name, value in of_shard.get("numbers", {}).items():
            part = _PART.match(name)
            merged[f"{part['name']}{part['key'] or ''}" if part else name] = value
    return merged
