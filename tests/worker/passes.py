"""Passes over large memory, counted: operations of PyTorch that read or write tensors of some size, in this thread."""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: What is written by these was not read before.
_OVERWRITE = ("copy_", "_foreach_copy_", "fill_", "zero_")


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
        self.read = self.written = 0  # bytes of large tensors
        self.paused = False  # others use this thread

    def __enter__(self) -> Self:
        _counting.here = [*getattr(_counting, "here", []), self]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _counting.here = _counting.here[:-1]
        super().__exit__(*error)

    def memmove(self, nbytes: int) -> None:
        """libc has copied so many bytes, of float32 as all models that are counted."""
        if nbytes >= 4 * self._numel and not self.paused:
            self.seen["memmove"] += 1
            self.read += nbytes
            self.written += nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        before = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, list(kwargs.values())))}
        out = func(*args, **kwargs)
        if not func.is_view and any(tensor.numel() >= self._numel for tensor in _tensors((args, out))):
            self.seen[func.overloadpacket.__name__] += 1
            made = [tensor for tensor in _tensors(out) if tensor.untyped_storage().data_ptr() not in before]
            self.blocks += sum(tensor.numel() >= self._numel for tensor in made)
            read, written = _moved(func, args, kwargs)
            self.read += self._bytes_of(read)
            self.written += self._bytes_of([*written, *made])
        return out

    def _bytes_of(self, tensors: list[torch.Tensor]) -> int:
        """Of the large ones; a number that is seen many times (`expand`) is there once."""
        return sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors if t.numel() >= self._numel)


def _moved(func: Any, args: Any, kwargs: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What an operation reads and writes, of what it is given."""
    read, written = list[torch.Tensor](), list[torch.Tensor]()
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        target = argument.alias_info is not None and argument.alias_info.is_write
        if target:
            written += _tensors(value)
        if not (target and (argument.kwarg_only or func.overloadpacket.__name__ in _OVERWRITE)):
            read += _tensors(value)
    return read, written


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from _tensors(each)


_counting, _memmove = threading.local(), ctypes.memmove


def _counted(target: Any, source: Any, nbytes: int) -> Any:
    for passes in getattr(_counting, "here", [])[-1:]:
        passes.memmove(nbytes)
    return _memmove(target, source, nbytes)


ctypes.memmove = _counted
