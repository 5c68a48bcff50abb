"""`with evener.device("cuda:1"):` in a recipe's model: what is made inside wants to be there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from evener.devices.plan import canonical

#: The attribute of a module that says where it wants to be.
_MARK = "_evener_wants"
_open: list[str] = []


@contextmanager
def device(name: str) -> Iterator[None]:
    """Modules made in this block want to be on this device; the innermost block counts. TensorFlow's `tf.device`.

    Unlike ``with torch.device(...)`` nothing is put there yet. Every task makes the same parameters from the same seed
    on the processor, ps tasks need no GPU, and soft placement can still decide; the worker moves the modules.

    Raises:
        ConfigError: the name is none of a device.
    """
    _open.append(canonical(name))
    hooks = [register_module_parameter_registration_hook(_mark), register_module_buffer_registration_hook(_mark)]
    try:
        yield
    finally:
        _open.pop()
        for hook in hooks:
            hook.remove()


def _mark(module: nn.Module, _name: str, _tensor: Any) -> None:
    module.__dict__[_MARK] = _open[-1]


def marked(model: nn.Module) -> dict[str, str]:
    """Module name -> the device that it wants: by its mark, or because its parameters lie there already."""
    wants: dict[str, str] = {}
    for name, module in model.named_modules():
        if _MARK in module.__dict__:
            wants[name] = module.__dict__[_MARK]
            continue
        homes = {parameter.device for parameter in module.parameters(recurse=False)}
        if len(homes) == 1 and (home := homes.pop()).type != "cpu":
            wants[name] = canonical(str(home))
    return wants
