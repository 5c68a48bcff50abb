"""Batches come to a GPU while the step before computes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from evener.data.dataset import Batch
from evener.data.prefetch import Feed
from evener.devices.modules import mapped, moved


def feed_for(homes: Mapping[str, torch.device] | None) -> Feed | None:
    """For a model whose tensors live there. One on several devices moves its inputs itself: it knows which goes where.

    >>> feed_for({"weight": torch.device("cpu")}) is None
    True
    """
    devices = set(homes.values()) if homes else set()
    if len(devices) != 1 or (device := devices.pop()).type != "cuda":
        return None
    return GpuFeed(device)


class GpuFeed:
    """Copies from page-locked memory on a stream of their own.

    The thread that makes a batch locks it and starts the copy; neither it nor the one that trains waits for that. The
    model's stream does, on the GPU, if the copy is not done by then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Callable[[], Batch]:
        # The device too, or leaving the block would make a context on GPU 0, where this thread is otherwise.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            there = moved(mapped(batch, _locked), self._device)
            return partial(self._arrived, there, self._stream.record_event())

    def _arrived(self, there: Batch, copied: torch.cuda.Event) -> Batch:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)
        # The memory belongs to the copying stream: it may have it back only when the model's work is done.
        mapped(there, lambda held: _used_by(held, stream))
        return there


def _locked(held: Any) -> Any:
    """A dense copy in page-locked memory: an expanded tensor cannot be locked as it is. Sparse ones travel as ever."""
    if isinstance(held, PackedSequence):
        return held if held.data.is_cuda else held.pin_memory()
    if held.device.type != "cpu" or held.layout != torch.strided or held.is_pinned():
        return held
    return torch.empty_like(held, pin_memory=True).copy_(held)


def _used_by(held: Any, stream: torch.cuda.Stream) -> Any:
    parts = (held.data, held.sorted_indices, held.unsorted_indices) if isinstance(held, PackedSequence) else (held,)
    for part in parts:
        if part is not None and part.is_cuda and part.layout == torch.strided:
            part.record_stream(stream)
    return held
