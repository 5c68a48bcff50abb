"""A checkpoint as one file that plain PyTorch loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evener import weights
from evener.errors import ConfigError
from evener.trained import FoundCheckpoint, bring, find, recipe_of


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and the line of PyTorch that reads it."""

    file: str
    nbytes: int
    tensors: int
    recipe: str
    global_step: int
    checkpoint: str
    ema: bool
    compiled: bool  # the recipe's model is, as a whole; the file is of the module inside
    load: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(  # noqa: PLR0913 - as `evener.api.export`
    path: Path, file: Path, recipe: object = None, *, ema: bool, options: Mapping[str, Any], force: bool
) -> Exported:
    """Write the newest checkpoint in `path` as a `state_dict` with all its names.

    Raises:
        ConfigError: the file exists, cannot be written, or has a suffix that says nothing.
        CheckpointError: there is no whole checkpoint, or it is of another model.
    """
    suffix = weights.suffix_to_write(file)
    _check_free(file, force)
    found = find(path)
    state, name, compiled = (_program if _of_program(found, recipe) else _made)(found, recipe, ema, options)
    nbytes = weights.write(state, file)
    quoted = str(file).replace("\\", "\\\\").replace('"', '\\"')
    reads = f'load_file("{quoted}")' if suffix == weights.SAFE else f'torch.load("{quoted}", weights_only=True)'
    before = "from safetensors.torch import load_file; " if suffix == weights.SAFE else ""
    return Exported(
        str(file), nbytes, sum(isinstance(value, Tensor) for value in state.values()), name,
        found.manifest.step, str(found.path), ema, compiled, f"{before}model.load_state_dict({reads})",
    )  # fmt: skip


def _of_program(found: FoundCheckpoint, recipe: object) -> bool:
    """Whether a program with a loop of its own has trained it: then there is no recipe to make the model by."""
    return recipe is None and found.manifest.recipe.endswith(".py")


def _program(
    found: FoundCheckpoint, _recipe: object, ema: bool, _options: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str, bool]:
    """All tensors as they are, under all their names."""
    tensors = found.tensors(ema=ema)
    tied = json.loads(found.manifest.script or "{}").get("tied", {})
    return {**tensors, **{name: tensors[first] for name, first in tied.items()}}, found.manifest.recipe, False


def _made(
    found: FoundCheckpoint, recipe: object, ema: bool, options: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str, bool]:
    """The `state_dict` of the recipe's model."""
    made = recipe_of(found, recipe, options)
    model = bring(found, made, ema=ema)
    inside = _without_compiler(model)
    name = recipe if isinstance(recipe, str) else found.manifest.recipe if recipe is None else made.name
    return inside.state_dict(), name, inside is not model


def _without_compiler(model: nn.Module) -> nn.Module:
    """`torch.compile(model)` is a module around the model, with names of its own that no plain model has."""
    inside = getattr(model, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else model


def _check_free(file: Path, force: bool) -> None:
    if file.is_dir() or not file.absolute().parent.is_dir():
        what = "is a directory" if file.is_dir() else f"cannot be written: there is no directory {file.parent}"
        raise ConfigError(f"{file} {what}.", fix="name a file in a directory that exists.")
    if file.exists() and not force:
        raise ConfigError(
            f"{file} exists.",
            why="a file is not replaced unasked; it may hold another training.",
            fix="choose another name, or allow it with --force.",
        )
