"""Modules on devices: parameters are moved there, and what is given to a module follows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from evener.devices.machine import existing as _existing
from evener.devices.marks import marked
from evener.devices.plan import Device, ModulePart, Plan, canonical, merged, plan

_hooks: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()


def place(
    model: nn.Module,
    wanted: Mapping[str, str] | str | None = None,
    *,
    existing: Sequence[Device] | None = None,
    soft: bool = True,
    default: str = "cpu",
) -> Plan:
    """Put a model's modules on devices and let their inputs follow.

    Args:
        model: is changed. What it marked by `evener.device` is obeyed where `wanted` does not say otherwise.
        wanted: module name -> device, or one device for the whole model.
        existing: the devices that there are; those of this machine if None.
        soft: what a device cannot take goes to the CPU, and the plan's `warning` says so.
        default: where modules go that nobody names.

    Raises:
        ConfigError: see `plan`.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> place(model, {"2": "cuda:7"}).warning
    '2 wanted cuda:7, is on cpu: there is no cuda:7'
    """
    decided = decide(model, wanted, existing=existing, soft=soft, default=default)
    put(model, decided)
    return decided


def decide(
    model: nn.Module,
    wanted: Mapping[str, str] | str | None = None,
    *,
    existing: Sequence[Device] | None = None,
    soft: bool = True,
    default: str = "cpu",
) -> Plan:
    """The plan of `place`, before anything is moved."""
    named = {"": wanted} if isinstance(wanted, str) else wanted or {}
    wishes = merged(named, marked(model))
    if existing is None:
        existing = _existing(measured={canonical(default), *wishes.values()})
    return plan(parts_of(model), wishes, existing, soft=soft, default=default)


def parts_of(model: nn.Module) -> list[ModulePart]:
    """Every module and the tensors that it holds itself; a shared tensor has the name of its first place."""
    names: dict[int, str] = {}
    parts = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        tensors = []
        for leaf, tensor in own:
            full = names.setdefault(id(tensor), f"{name}.{leaf}".removeprefix("."))
            count = tensor.numel() if isinstance(tensor, nn.Parameter) else 0
            tensors.append((full, count, tensor.numel() * tensor.element_size()))
        parts.append(ModulePart(name, type(module).__name__, tuple(tensors)))
    return parts


def put(model: nn.Module, decided: Plan) -> None:
    """Do what a plan says. A model that is on the CPU as a whole stays as it is."""
    for module in model.modules():
        if (hook := _hooks.pop(module, None)) is not None:
            hook.remove()
    _move(model, decided)
    if len(decided.devices) > 1:
        for entry in decided.placed:
            _follow(model.get_submodule(entry.name), entry.given)
    elif decided.devices != ("cpu",):
        _follow(model, decided.devices[0])


def _move(model: nn.Module, decided: Plan) -> None:
    for entry in decided.placed:
        home = torch.device(entry.given)
        module = model.get_submodule(entry.name)
        if any(tensor.device != home for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]):
            # What `Module.to` does, for this module alone.
            module._apply(lambda tensor, home=home: tensor.to(home), recurse=False)  # type: ignore[no-untyped-call]


def _follow(module: nn.Module, device: str) -> None:
    home = torch.device(device)

    def move(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return moved(args, home), moved(kwargs, home)

    _hooks[module] = module.register_forward_pre_hook(move, with_kwargs=True)


def moved(value: Any, device: torch.device) -> Any:
    """The same value with every tensor in it on a device, through tuples, lists and dictionaries of any depth.

    What holds no tensor that has to move is given back as it is.
    """
    # Towards the CPU a copy that does not wait could be read before it is there.
    wait = device.type == "cpu"
    return mapped(value, lambda held: held if held.data.device == device else held.to(device, non_blocking=not wait))


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same value with every tensor and packed sequence in it changed; without a change, the very same object."""
    if isinstance(value, Tensor | PackedSequence):  # the latter is a named tuple, whose batch sizes stay on the CPU
        return change(value)
    if isinstance(value, tuple | list):
        entries = [mapped(entry, change) for entry in value]
        if any(new is not old for new, old in zip(entries, value, strict=True)):
            return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    elif isinstance(value, dict):
        changed = {key: new for key, old in value.items() if (new := mapped(old, change)) is not old}
        if changed:
            value = value.copy()
            value.update(changed)
    return value


def to_match(value: Any, other: Any) -> Any:
    """`value` on the device of the first tensor in `other`: a target beside its output."""
    first = _first(other)
    return value if first is None else moved(value, first.device)


def moved_to(model: nn.Module, batch: Any) -> Any:
    """A batch on the one device of a model. One on several devices moves what each module is given itself."""
    devices = {tensor.device for tensor in model.parameters()}
    return moved(batch, devices.pop()) if len(devices) == 1 else batch


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((found for entry in entries if (found := _first(entry)) is not None), None)


def joined(model: nn.Module) -> AbstractContextManager[Any]:
    """In this block, functions of tensors on several devices work: the others are copied to the first one's device.

    For what happens between modules: a sum of two branches, a penalty over all weights. Does nothing, and costs
    nothing, for a model on one device.
    """
    homes = {tensor.device for tensor in model.parameters()}
    return _Joined() if len(homes) > 1 else nullcontext()


class _Joined(TorchFunctionMode):
    """Tries as usual; what fails with tensors of several devices is tried again on the first one's."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            first = _first((args, kwargs))
            if first is None:
                raise
            args_there, kwargs_there = moved(args, first.device), moved(kwargs, first.device)
            if args_there is args and kwargs_there is kwargs:
                raise
            return func(*args_there, **kwargs_there)
