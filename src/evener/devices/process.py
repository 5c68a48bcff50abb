"""What this process may use of its machine: threads, pages, a share of a GPU's memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import torch

from evener.devices.compiler import put_off_compiler

#: PyTorch looks at it before its first tensor, and asks for pages of 2 MB for blocks of that size then.
_HUGE_PAGES = b"THP_MEM_ALLOC_ENABLE"
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD, _M_ARENA_MAX = -3, -1, -2, -8
#: Bytes from which a block goes back to the kernel when it is freed: glibc's own upper bound.
LARGE = 32 << 20


def prepare_process(threads: int, *, serves: bool = False) -> None:
    """Set PyTorch's threads, and let the allocator keep its pages and the compiler wait.

    Several tasks share the cores: PyTorch's default pool of one thread a core ruins small steps. And glibc gives blocks
    of more than 128 KB back to the kernel when they are freed, so that each step pays for fresh zeroed pages: keeping
    them made the MNIST step with its gradients of 1.6 MB 15 % faster (2.1 to 1.8 ms). Blocks that are `LARGE` do go
    back: a layer of 200 MB computes for so long that its pages do not matter, and each block that was ever held once
    (the initial values, a checkpoint) would stay in the heap for the rest of the run.

    Where the kernel gives huge pages to who asks (`madvise`, its default), PyTorch is to ask, unless the user has said
    otherwise: fresh pages of 4 KB took 19 of the 94 ms of a step with a layer of 44 MB.

    PyTorch's compiler is not imported before somebody compiles (`compiler.py`).

    Args:
        serves: this is a ps. What the thread of its transport frees is then used again by its own thread, and the other
            way round; otherwise each keeps pages for the most that it ever held, twice the memory with many workers.
    """
    torch.set_num_threads(threads)
    put_off_compiler()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.setenv(_HUGE_PAGES, b"1", 0)
            libc.mallopt(_M_MMAP_THRESHOLD, LARGE)
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
            libc.mallopt(_M_TOP_PAD, 64 << 20)
            if serves:
                libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Let the kernel have the pages that the allocator keeps and nobody uses.

    For the moments after which much is free that will not be needed soon: a task has begun, a checkpoint is written.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another libc
            ctypes.CDLL(None).malloc_trim(0)


def limit_memory(fraction: float | None, device: torch.device) -> None:
    """Let this process take at most this share of a GPU's memory: more is an out-of-memory error of PyTorch.

    Nothing happens for a processor, or without a fraction.
    """
    if fraction is not None and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(fraction, device)
