"""A batch that does not fit into the memory of this worker's device."""

from __future__ import annotations

import gc

import torch
from torch import nn


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no more memory: PyTorch says the latter by a RuntimeError.

    >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return type(error) is RuntimeError and any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory")
    )


def relieve(model: nn.Module) -> None:
    """Let go of what the batch has left behind, once nobody holds its error, whose frames hold its tensors."""
    for parameter in model.parameters():
        parameter.grad = None
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU was used
