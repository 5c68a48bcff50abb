"""A worker's model goes to the devices that the run asks for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from evener.devices.machine import existing, processor
from evener.devices.marks import marked
from evener.devices.modules import decide, put
from evener.devices.plan import Device, Plan, canonical, merged
from evener.devices.process import limit_memory
from evener.report import Line, Reporter
from evener.settings import Settings
from evener.state.tensors import CPU, named_tensors
from evener.task.build import Built, tell_and_log

log = logging.getLogger(__name__)

Devices = dict[str, torch.device]


def place_model(  # noqa: PLR0913 - one worker on one machine
    built: Built,
    settings: Settings,
    *,
    rank: int,
    report: Reporter,
    task: str,
    devices: Sequence[Device] | None = None,
) -> Devices | None:
    """Move the model of worker `rank` of this machine. Nobody asks PyTorch about GPUs unless somebody wants one.

    Returns:
        Where each tensor that travels is now; None if all are on the CPU, in the memory that travels.

    Raises:
        ConfigError: see `evener.devices.plan.plan`.
    """
    default = f"cuda:{rank % settings.num_gpus}" if settings.num_gpus else "cpu"
    wanted = {canonical(default), *merged(settings.place, marked(built.model)).values()}
    if devices is None:
        devices = existing(wanted) if wanted != {"cpu"} else [processor()]
    decided = decide(
        built.model, settings.place, existing=_limited(devices, settings.gpu_memory_fraction),
        soft=settings.soft_placement, default=default,
    )  # fmt: skip
    for device in decided.devices:
        limit_memory(settings.gpu_memory_fraction, torch.device(device))
    put(built.model, decided)
    _tell(decided, settings, report, task)
    homes = {name: tensor.device for name, tensor in named_tensors(built.model).items()}
    found = {spec.name: homes[spec.name] for spec in built.layout.specs}
    return None if set(found.values()) <= {CPU} else found


def _limited(devices: Sequence[Device], fraction: float | None) -> list[Device]:
    """What is free for this process."""
    if fraction is None:
        return list(devices)
    return [
        replace(device, free=min(device.free, int(device.total * fraction)))
        if device.kind != "cpu" and device.free is not None and device.total is not None
        else device
        for device in devices
    ]


def _tell(decided: Plan, settings: Settings, report: Reporter, task: str) -> None:
    if decided.warning:
        tell_and_log(task, report, f"warning: {decided.warning}")
    if settings.log_device_placement:
        for line in decided.table().splitlines():
            log.info("%s", line)
            report(Line(task, line))
