"""The devices of this machine: which there are, which module runs on which, and what a process may use of them.

`plan` decides (no PyTorch inside), `machine` looks, `modules` moves, `marks` remembers what a recipe asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evener.devices.machine import existing
    from evener.devices.marks import device
    from evener.devices.modules import joined, place
    from evener.devices.plan import Device, Plan
    from evener.devices.process import prepare_process

_HOMES = {
    "Device": "plan", "Plan": "plan", "device": "marks", "existing": "machine", "joined": "modules",
    "place": "modules", "prepare_process": "process",
}  # fmt: skip

__all__ = ["Device", "Plan", "device", "existing", "joined", "place", "prepare_process"]


def __getattr__(name: str) -> Any:
    """Names are found when they are used: settings check device names without PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evener.devices' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"evener.devices.{_HOMES[name]}"), name)
