"""A fresh run begins with weights that were trained before (`--init-from`), and says what of them fits its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from evener import weights
from evener.errors import ConfigError, EvenerError
from evener.state.tensors import named_tensors
from evener.trained import find
from evener.weights import Weights

#: Names that are told of each kind of difference.
FEW = 3


@dataclass(slots=True)
class Match:
    """What of a file fits a model."""

    taken: dict[str, str] = field(default_factory=dict)  # the model's name -> the file's
    only_file: list[str] = field(default_factory=list)
    only_model: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)  # of the file: one tensor in the model, several values there


def warm_start(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Take all that fits from a checkpoint, a logdir or a file of weights; the rest stays as the recipe made it.

    Returns:
        What was taken and what was not, in sentences.

    Raises:
        ConfigError: nothing fits, there is no such file, or it is not one of weights.
        CheckpointError: the logdir has no whole checkpoint.
    """
    try:
        source, held = _read(path)
    except EvenerError as error:
        raise type(error)(f"--init-from: {error.what}", why=error.why, fix=error.fix) from error
    match = matched(model, held.tensors)
    if not match.taken:
        raise _nothing(model, held, match, source)
    mine, converted = named_tensors(model), Counter[str]()
    with torch.no_grad():
        for name, theirs in match.taken.items():
            tensor, value = mine[name], held.tensors[theirs]
            if value.dtype != tensor.dtype:
                converted[f"{_short(value.dtype)} to {_short(tensor.dtype)}"] += 1
            tensor.copy_(value)
    numbers = sum(mine[name].numel() for name in match.taken)
    return (
        f"begins with {source}: {len(match.taken)} of the model's {len(mine)} tensors taken ({numbers:,} numbers)",
        *(f"--init-from: {count} tensors were converted from {how}" for how, count in converted.items()),
        *_differences(match, held),
    )


def _read(path: Path) -> tuple[str, Weights]:
    """A name for people, and what is there."""
    if path.is_dir():
        found = find(path)
        return f"step {found.manifest.step} of {found.path}", Weights(found.contents.parameters)
    if not path.exists():
        raise ConfigError(
            f"there is no {path} on this machine.",
            why="every task makes its own model, and begins with the same weights as the others.",
            fix="check the path, or copy it here. To go on with a logdir without frozen layers, leave it out.",
        )
    return str(path), weights.read(path)


def matched(model: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Which tensor of a file is which of the model: by its name, or by its name without what wrappers put before it."""
    mine, match = named_tensors(model), Match()
    exact = _aliases(model, mine)
    owners: dict[str, set[str]] = {}
    for alias, name in exact.items():
        owners.setdefault(unwrapped(alias), set()).add(name)
    loose = {alias: next(iter(names)) for alias, names in owners.items() if len(names) == 1}
    shapes = set()
    for theirs in sorted(tensors, key=lambda name: name not in exact):  # exact names first
        found = exact.get(theirs) or loose.get(unwrapped(theirs))
        if found is None:
            match.only_file.append(theirs)
        elif tensors[theirs].shape != mine[found].shape:
            there, here = list(tensors[theirs].shape), list(mine[found].shape)
            match.other_shape.append(f"{theirs} is {there} in it, {here} in the model")
            shapes.add(found)
        elif found not in match.taken:
            match.taken[found] = theirs
        elif not torch.equal(tensors[theirs].double(), tensors[match.taken[found]].double()):
            match.untied.append(theirs)
    match.only_model = [name for name in mine if name not in match.taken and name not in shapes]
    return match


def _aliases(model: nn.Module, mine: Mapping[str, Tensor]) -> dict[str, str]:
    """Every name of each tensor -> its first one; a tied tensor has several."""
    first = {id(tensor): name for name, tensor in mine.items()}
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {alias: first[id(tensor)] for alias, tensor in everything if id(tensor) in first}


def unwrapped(name: str) -> str:
    """A name without what `torch.compile` (`_orig_mod.`) and `DistributedDataParallel` (`module.`) make of it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _differences(match: Match, held: Weights) -> list[str]:
    kinds = (
        ("only in the file", match.only_file),
        ("only in the model, left as the recipe makes them", match.only_model),
        ("of another shape, left as the recipe makes them", match.other_shape),
        ("tied in the model but not in the file, of which the first counts", match.untied),
        ("no plain tensors, left out", held.others),
    )
    return [f"warning: --init-from: {len(names)} {kind}: {_few(names)}" for kind, names in kinds if names]


def _nothing(model: nn.Module, held: Weights, match: Match, source: str) -> ConfigError:
    shapes = f"; {_few(match.other_shape)}" if match.other_shape else ""
    return ConfigError(
        f"--init-from: nothing in {source} fits the model.",
        why=f"the names there are {_few(held.tensors)}; those of the model are {_few(named_tensors(model))}{shapes}.",
        fix="give weights of this model (its names are those of model.state_dict()), or leave --init-from out.",
    )


def _few(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - FEW} more" if len(known) > FEW else ""
    return ", ".join(known[:FEW]) + more if known else "none"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
