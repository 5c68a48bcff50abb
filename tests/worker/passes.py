"""Passes over large memory, counted: operations of PyTorch that read or write tensors of some size, in this thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Passes(TorchDispatchMode):
    """While it is entered. Views, and what copies no numbers, are no passes.

    Args:
        numel: elements of the smallest tensor that counts.
    """

    def __init__(self, numel: int) -> None:
        super().__init__()
        self._numel = numel
        self.seen = Counter[str]()  # "add_": 2
        self.blocks = 0  # large tensors that were made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, list(kwargs.values())))}
        out = func(*args, **kwargs)
        if not func.is_view and any(tensor.numel() >= self._numel for tensor in _tensors((args, out))):
            self.seen[func.overloadpacket.__name__] += 1
            self.blocks += sum(
                tensor.numel() >= self._numel and tensor.untyped_storage().data_ptr() not in before
                for tensor in _tensors(out)
            )
        return out


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from _tensors(each)
