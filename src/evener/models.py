"""A model that is looked at before it is trained: what cannot travel as flat buffers of numbers is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from evener.errors import ConfigError
from evener.recipes.references import kind_of


def check_model(model: object, made_by: str = "") -> None:
    """Refuse a model that cannot be trained through flat buffers of gradients.

    Raises:
        ConfigError: no parameter to train; parameters of whole or complex numbers, without a shape yet, or
            sharing memory without being the same parameter.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"the recipe's model(){made_by} returned {kind_of(model)}.",
            why="it makes a torch.nn.Module.",
            fix="return the module.",
        )
    script = next((name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if script is not None:
        raise ConfigError(
            f"{script or 'the model'} is TorchScript (torch.jit), which cannot be trained here.",
            why="its tensors cannot move into the memory that travels.",
            fix="return the module itself; script or trace the trained one (evener.load).",
        )
    parameters = dict(model.named_parameters())
    _check_kinds(parameters, dict(model.named_buffers()))
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(
            f"the model has nothing to train: {len(parameters)} parameters, none of which requires a gradient.",
            why="training changes parameters.",
            fix="add layers with parameters, or leave requires_grad=True on some.",
        )
    _check_memory(parameters)


def _check_kinds(parameters: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor]) -> None:
    """Refuse tensors without shape or values, and numbers that have no gradient."""
    for name, tensor in {**parameters, **buffers}.items():
        what = "parameter" if name in parameters else "buffer"
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise _unfit(name, "has no shape yet", "run one batch through the model before model() returns it.", what)
        if tensor.is_meta:
            raise _unfit(
                name, "is on the device meta, without values", "call model.to_empty(...) and initialize it.", what
            )
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise _unfit(
                name,
                f"holds {str(parameter.dtype).removeprefix('torch.')} numbers",
                "keep its real view as the parameter, torch.view_as_real(tensor), and in forward use "
                "torch.view_as_complex(parameter).",
            )
        if not parameter.is_floating_point():
            raise _unfit(
                name,
                f"holds {str(parameter.dtype).removeprefix('torch.')} numbers (integer parameters have no gradient)",
                "make it a buffer, self.register_buffer(name, tensor), or a floating-point tensor.",
            )


def check_inputs(model: nn.Module, made_by: str = "") -> None:
    """Refuse a model that is called with more than the inputs of a batch. Raises ConfigError."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ConfigError(
            f"the model{made_by} takes {len(needed)} inputs: forward({', '.join(needed)}).",
            why="it is called with one: whatever the data give as the inputs of a batch.",
            fix="let a sample be ((first, second), target) and take them apart in forward(self, inputs): "
            f"{', '.join(needed)} = inputs; or give the recipe a step=(model, batch) -> loss, which calls the model.",
        )


def _check_memory(parameters: Mapping[str, nn.Parameter]) -> None:
    spans = sorted(
        (str(p.device), p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name)
        for name, p in parameters.items()
        if p.numel() and p.device.type != "meta"
    )
    for (device, _, end, first), (other, start, _, second) in pairwise(spans):
        if device == other and start < end:
            raise _unfit(
                second,
                f"shares memory with {first!r}",
                "tie weights by assigning the same Parameter object: a.weight = b.weight.",
            )


def _unfit(name: str, what: str, fix: str, kind: str = "parameter") -> ConfigError:
    return ConfigError(
        f"{kind} {name!r} {what}.",
        why="parameters and gradients travel as flat buffers of floating-point numbers, each in its own place.",
        fix=fix,
    )
