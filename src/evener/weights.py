"""Files of weights that other programs write and read: `.pt` and `.safetensors`.

This module alone calls `torch.load` and `torch.save`. A `.pt` file is a pickle, so it is read with `weights_only=True`:
what is not a tensor, a number, text or a collection of them is refused, and nothing in it is run.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save as save_safetensors
from torch import Tensor

from evener import files, pickle_cost
from evener.allowance import Excess
from evener.errors import ConfigError, InputError
from evener.state.atomic import atomic_write

#: Suffixes by which a file is known.
PICKLED, SAFE = (".pt", ".pth", ".bin"), ".safetensors"
#: Where training programs put the state_dict in what they save.
INSIDE = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file holds, by the names in it."""

    tensors: dict[str, Tensor]
    others: tuple[str, ...] = ()  # names of what is no plain tensor, such as a module's extra state


def read(path: Path) -> Weights:
    """The tensors of one file, on the CPU.

    Raises:
        ConfigError: no such file, a suffix that is not known, or more in it than tensors.
        InputError: it is damaged.
    """
    if path.suffix not in (*PICKLED, SAFE):
        raise ConfigError(
            f"{path} is no file of weights that is known by its suffix.",
            why=f"weights are read from {', '.join((*PICKLED, SAFE))} files, and from checkpoints of evener.",
            fix="name such a file, a logdir, or one of its checkpoints/step-* directories.",
        )
    try:
        with files.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no file {path} on this machine.", fix="check the path, or copy the file there."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", fix="copy or write it again.") from error
    if size > files.memory():
        raise InputError(f"{path} has {size} bytes, more than there is memory for.", fix="use a larger machine.")
    found = _safe(path) if path.suffix == SAFE else _unpickled(path)
    tensors = {name: value for name, value in found.items() if _plain(value)}
    return Weights(tensors, tuple(name for name in found if name not in tensors))


def _plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _safe(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read: {error}.", fix="copy or write it again.") from error


def _unpickled(path: Path) -> Mapping[str, Any]:
    try:
        # Warnings are of what is refused a moment later.
        with warnings.catch_warnings(action="ignore"), files.opened(path) as file:
            pickle_cost.check(file, os.fstat(file.fileno()).st_size)
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Excess as error:
        raise InputError(
            f"{path} is refused: it holds {error}.",
            why="read as it says, it would take more time or memory than its tensors do.",
            fix="where the file comes from, save the tensors alone: torch.save(model.state_dict(), path).",
        ) from error
    except Exception as error:  # PyTorch has no class of its own for what it refuses
        raise _unread(path, error) from error
    for name in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{path} holds {type(found).__name__}, not named tensors.",
            fix="write it by torch.save(model.state_dict(), path).",
        )
    return {str(name): value for name, value in found.items()}


def _unread(path: Path, error: Exception) -> ConfigError | InputError:
    text = str(error)
    names = re.search(r"(?:GLOBAL|Unsupported class|function) (\S+)", text)
    if names or "TorchScript" in text:
        named = names[1][:80] if names else "a TorchScript program"
        return ConfigError(
            f"{path} is refused: it does not hold tensors alone, but {named}.",
            why="a .pt file is a pickle, and to read any other object is to run whatever code the file names.",
            fix="where the file comes from, save the tensors alone: torch.save(model.state_dict(), path).",
        )
    told = text.partition(". ")[0][:200] if " " in text else type(error).__name__
    return InputError(
        f"{path} cannot be read: {told}.", why="it is damaged, or torch.save did not write it.",
        fix="copy or write it again.",
    )  # fmt: skip


def suffix_to_write(path: Path) -> str:
    """The suffix of a file to be written. Raises ConfigError for one that says nothing."""
    if path.suffix not in (*PICKLED, SAFE):
        raise ConfigError(
            f"{path} has no suffix that says how to write it.",
            why="a state_dict is written by torch.save, or as safetensors.",
            fix=f"name it {path.stem or 'model'}.pt or {path.stem or 'model'}.safetensors.",
        )
    return path.suffix


def write(state: Mapping[str, Any], path: Path) -> int:
    """Write a model's `state_dict`, all or nothing; returns the bytes.

    Raises:
        ConfigError: it holds what such a file cannot, or could not be read again without running code.
    """
    others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    safe = suffix_to_write(path) == SAFE
    if others:
        _check_plain(others, path, safe)
    try:
        if safe:
            # Each in memory of its own: safetensors refuses tied weights, and files of Transformers have a format.
            own = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
            return atomic_write(path, [save_safetensors(own, metadata={"format": "pt"})]).nbytes
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return atomic_write(path, [buffer.getbuffer()]).nbytes
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).", fix="choose another file.") from error


def _check_plain(others: Mapping[str, Any], path: Path, safe: bool) -> None:
    """Extra state of modules may be anything; a file that only runs code to be read again is not written."""
    name = next(iter(others))
    if safe:
        raise ConfigError(
            f"{name!r} is {type(others[name]).__name__}, no tensor.",
            why="safetensors files hold tensors alone; this is a module's extra state.",
            fix=f"write {path.stem}.pt.",
        )
    for name, value in others.items():
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        except Exception as error:
            raise ConfigError(
                f"{name!r} is {type(value).__name__}, which a file of weights cannot hold.",
                why="it could be read again only by running code that the file names.",
                fix="let get_extra_state() return tensors, numbers, text, or lists and dicts of them.",
            ) from error
