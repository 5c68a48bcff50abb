"""The devices of this machine, with their memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path

from evener.devices.plan import Device, size


def existing(measured: Collection[str] | None = None) -> list[Device]:
    """The processor, then the GPUs that this process may see, in PyTorch's order.

    Args:
        measured: the GPUs whose free memory is asked for; all if None. Asking makes a CUDA context on that GPU (some
            hundred MB), so a worker asks for its own alone.
    """
    return [processor(), *_gpus(measured)]


def processor() -> Device:
    """All cores that this process may use, as one device, as PyTorch sees them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total, free = _memory()
    return Device("cpu", _processor_name(), total, free, cores)


def _memory(path: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Bytes of memory: all, and what could be had without swapping. Linux alone tells the second."""
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return _limited(total, free)
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, OSError, ValueError):
        return None, None


def _limited(total: int, free: int, group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """What a container may have of it (cgroup v2)."""
    try:
        limit, taken = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such file, or "max"
        return total, free
    return min(total, limit), min(free, max(0, limit - taken))


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus(measured: Collection[str] | None) -> list[Device]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        name, properties = f"cuda:{index}", torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0] if measured is None or name in measured else None
        found.append(Device(name, properties.name, properties.total_memory, free))
    return found


def table(devices: Collection[Device]) -> str:
    """For people: one line each."""
    rows = [("device", "memory", "free", "what")]
    for one in devices:
        what = f"{one.description}, {one.cores} cores" if one.cores else one.description
        rows.append((one.name, _size(one.total), _size(one.free), what))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}" for row in rows
    )  # fmt: skip


def _size(nbytes: int | None) -> str:
    return "?" if nbytes is None else size(nbytes)
