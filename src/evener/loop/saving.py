"""`ev.save`: a model of a program, as others read it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from evener.errors import ConfigError
from evener.loop.parts import bare
from evener.state.atomic import atomic_write


def save(path: Path, models: Sequence[nn.Module]) -> None:
    """Write the `state_dict` of one model, on the CPU, under the names of the plain module.

    Raises:
        ConfigError: several models, or a name whose ending says nothing.
        OSError: it cannot be written; a file that was there before is whole.
    """
    if len(models) != 1:
        raise ConfigError(
            f"{path}: which of {len(models)} models?", fix='name it: ev.save("generator.pt", generator).'
        )
    tensors: dict[str, Tensor] = {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
        for name, value in bare(models[0]).state_dict().items()
    }
    if path.suffix == ".safetensors":
        whole = {name: value.contiguous() for name, value in tensors.items() if isinstance(value, Tensor)}
        data = safetensors.torch.save(whole)
    elif path.suffix in (".pt", ".pth", ".bin"):
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        data = buffer.getvalue()
    else:
        raise ConfigError(f"{path} has an ending that says nothing.", fix="end it in .pt or .safetensors.")
    atomic_write(path, [data])
