"""Whether a checkpoint is of the model and the optimizer that go on from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from evener.errors import CheckpointError
from evener.state.optimizers import known_as
from evener.wire.layout import Layout, Spec

if TYPE_CHECKING:
    from evener.state.contents import Contents


def check(
    contents: Contents, layout: Layout, frozen: Mapping[str, Tensor], stay: Collection[str], optimizer: Optimizer
) -> None:
    """Refuse a foreign checkpoint.

    Args:
        frozen: tensors that nobody trains, as the recipe makes them now.
        stay: tensors that do not travel, by name.

    Raises:
        CheckpointError: it is one.
    """
    if difference := _difference(contents, layout, frozen, stay, optimizer):
        raise CheckpointError(
            f"the checkpoint of step {contents.step} cannot be continued here: {difference}.",
            why="a checkpoint fits the recipe and the options it was made with.",
            fix="give the same recipe, options and --init-from, or choose another --logdir to start afresh.",
        )


def _difference(
    contents: Contents, layout: Layout, frozen: Mapping[str, Tensor], stay: Collection[str], optimizer: Optimizer
) -> str:
    """What makes a checkpoint foreign, as part of a sentence; empty if nothing does."""
    trained = {spec.name: spec.trained for spec in layout.specs}
    theirs = [
        Spec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), trained.get(name, True))
        for name, tensor in contents.parameters.items()
        if name not in stay
    ]
    if difference := layout.difference(theirs, here="this run", there="the checkpoint"):
        return difference
    for name, tensor in frozen.items():
        kept = contents.parameters.get(name)
        if kept is not None and not torch.equal(kept, tensor):
            return f"frozen {name!r} has other values than the recipe gives now"
    mine, kind = known_as(optimizer), contents.values.get("optimizer")
    return f"it was trained with {kind}, this run trains with {mine}" if kind not in (None, mine) else ""
