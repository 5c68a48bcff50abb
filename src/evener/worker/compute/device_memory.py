"""A model on other devices than the memory that travels, and the copies between the two.

Answers land in this process's memory, which the servers or the optimizer fill; the model computes elsewhere. On each
device its tensors lie in one block, in the order of the memory that travels, so that a step costs one copy each way for
every run of neighbours: a single one for a model on one device.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evener.state.tensors import Bytes, as_tensor, dtype_of, spans
from evener.wire.layout import Layout
from evener.worker.exchange.exchange import Computed, Exchange, Flies, Shrinks, Turn

log = logging.getLogger(__name__)

#: A run starts at the same place within so many bytes on both sides: whatever is aligned here is aligned there.
_ALIGNMENT = 512


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbours in the memory that travels which live on one device, in bytes."""

    device: torch.device
    start: int  # here
    stop: int
    there: int  # where it starts in the device's block


def runs_of(layout: Layout, devices: Mapping[str, torch.device]) -> tuple[list[Run], dict[str, int]]:
    """The copies that a whole model takes, in the order of the memory, and in which of them each tensor is."""
    runs: list[Run] = []
    mine: dict[str, int] = {}
    ends: dict[torch.device, int] = {}
    for name, (start, stop) in spans(layout).items():
        device = devices[name]
        if runs and runs[-1].device == device:  # what lies between them is nobody's
            last = runs.pop()
            run = Run(device, last.start, stop, last.there)
        else:
            end = ends.get(device, 0)
            run = Run(device, start, stop, end + (start - end) % _ALIGNMENT)
        runs.append(run)
        mine[name] = len(runs) - 1
        ends[device] = run.there + run.stop - run.start
    return runs, mine


class DeviceMemory:
    """The parameters and gradients of a model on its devices.

    Args:
        devices: where each tensor of the layout lives.
        parameters, gradients: the memory blocks that travel; GPUs reach them directly (they are page-locked).
        direct: tensors on the CPU are views of that memory. False: they too are copied, as on another device.
    """

    def __init__(
        self,
        layout: Layout,
        devices: Mapping[str, torch.device],
        *,
        parameters: Bytes,
        gradients: Bytes,
        direct: bool = True,
    ) -> None:
        self._here = [as_tensor(block, "uint8") for block in (parameters, gradients)]
        runs, run_of = runs_of(layout, devices)
        self._runs = [run for run in runs if not (direct and run.device.type == "cpu")]
        self.devices = sorted({run.device for run in self._runs}, key=str)
        sizes = {run.device: run.there + run.stop - run.start for run in self._runs}
        self._there = [
            {device: torch.zeros(nbytes, dtype=torch.uint8, device=device) for device, nbytes in sizes.items()}
            for _ in range(2)
        ]
        homes = {name: runs[index] for name, index in run_of.items()}
        self.parameters, self.gradients = (self._views(layout, homes, block) for block in range(2))
        self._gpus = [device for device in self.devices if device.type == "cuda"]
        self._fetched = {device: torch.cuda.Event() for device in self._gpus}  # type: ignore[no-untyped-call]
        self._locked = [block for block in self._here if self._gpus and _page_lock(block)]

    def _views(self, layout: Layout, homes: Mapping[str, Run], block: int) -> dict[str, Tensor]:
        """Each tensor of the layout where it lives."""
        specs = {spec.name: spec for spec in layout.specs}
        views = {}
        for name, (start, stop) in spans(layout).items():
            home, shift, run = self._here[block], 0, homes[name]
            if run in self._runs:
                home, shift = self._there[block][run.device], run.there - run.start
            flat = home[start + shift : stop + shift].view(dtype_of(specs[name].dtype))
            views[name] = flat.view(specs[name].shape).data  # with a version counter of its own: `whole_views`
        return views

    def fetch(self) -> None:
        """Let the devices have the parameters that lie here: a GPU's work waits for its copy, this process does not."""
        for run, here, there in self._pairs(0):
            there.copy_(here, non_blocking=run.device.type == "cuda")
        for device, event in self._fetched.items():
            event.record(torch.cuda.current_stream(device))

    def settle(self) -> None:
        """Wait until nothing reads the parameters here any more: they may be overwritten."""
        for event in self._fetched.values():
            event.synchronize()

    def deliver(self) -> None:
        """Bring the gradients of all devices here; they are complete when this returns."""
        for run, here, there in self._pairs(1):
            here.copy_(there, non_blocking=run.device.type == "cuda")
        for device in self._gpus:
            torch.cuda.current_stream(device).synchronize()

    def _pairs(self, block: int) -> Iterator[tuple[Run, Tensor, Tensor]]:
        for run in self._runs:
            there = self._there[block][run.device][run.there : run.there + run.stop - run.start]
            yield run, self._here[block][run.start : run.stop], there

    def close(self) -> None:
        """Let go of the page lock, before the memory is unmapped."""
        for device in self._gpus:
            torch.cuda.synchronize(device)
        for block in self._locked:
            _page_unlock(block)
        self._locked = []


def _page_lock(block: Tensor) -> bool:
    """Let GPUs copy from and to this memory without the driver's own buffers between. Works, slower, where it fails."""
    if block.numel() == 0:
        return False
    driver = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(driver.cudaHostRegister(block.data_ptr(), block.numel(), 0))
    if code != 0:
        log.warning("memory of %d bytes cannot be page-locked (CUDA error %d): copies are slower", block.numel(), code)
        with contextlib.suppress(RuntimeError):  # CUDA tells its last error once more: here, and not to the next step
            torch.zeros(1, device="cuda")
    return code == 0


def _page_unlock(block: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(block.data_ptr())  # type: ignore[no-untyped-call]


def generators_of(devices: Collection[torch.device]) -> list[torch.Generator]:
    """PyTorch's own generators of these devices, and always the CPU's: what is random in a model comes from them."""
    gpus = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    return [torch.default_generator, *(torch.cuda.default_generators[index] for index in gpus)]


class Fetching:
    """An exchange for a model on other devices: what it brings is copied there."""

    def __init__(self, exchange: Exchange, memory: DeviceMemory) -> None:
        self._exchange, self._memory = exchange, memory

    @property
    def arrivals(self) -> int:
        return self._exchange.arrivals

    def start(self) -> Turn:
        return self._then_fetch(self._exchange.start())

    def update(self, computed: Computed) -> Turn:
        self._memory.settle()
        return self._then_fetch(self._exchange.update(computed))

    def too_big(self) -> Turn:
        assert isinstance(self._exchange, Shrinks)
        self._memory.settle()
        return self._then_fetch(self._exchange.too_big())

    def newest(self, turn: Turn) -> Turn:
        if not isinstance(self._exchange, Flies):
            return turn
        self._memory.settle()
        now = self._exchange.newest(turn)
        return turn if now is turn else self._then_fetch(now)

    def free(self) -> None:
        if isinstance(self._exchange, Flies):
            self._exchange.free()

    def show(self, what: str) -> int:
        self._memory.settle()
        version = self._exchange.show(what)
        self._memory.fetch()
        return version

    def judge(self, figures: Mapping[str, float]) -> None:
        self._exchange.judge(figures)

    def returned(self) -> Turn | None:
        return self._exchange.returned()

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        return self._exchange.stop(reason, complete=complete)

    def conclude(self) -> None:
        self._exchange.conclude()

    def close(self, reason: str = "") -> None:
        try:
            # A GPU that failed fails here again: the first error is the one to tell.
            with contextlib.suppress(Exception) if reason else contextlib.nullcontext():
                self._memory.close()
        finally:
            self._exchange.close(reason)

    def fetch(self) -> None:
        """Copy to the devices what the exchange has brought by another way."""
        self._memory.fetch()

    def _then_fetch(self, answer: Turn) -> Turn:
        self._memory.fetch()
        return answer
