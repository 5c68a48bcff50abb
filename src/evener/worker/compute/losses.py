"""What a recipe may give as its loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evener.errors import ConfigError


def loss_in(returned: object, made_by: str) -> Tensor:
    """The loss in what a recipe's step has returned. Raises ConfigError where there is none."""
    if isinstance(returned, Mapping) and "loss" not in returned:
        raise ConfigError(
            f"the recipe's step{made_by} returned a dictionary of {', '.join(map(repr, returned)) or 'nothing'}.",
            why="training differentiates its entry 'loss'.",
            fix='return {"loss": ...} with whatever else is of interest.',
        )
    loss = returned["loss"] if isinstance(returned, Mapping) else returned
    check_scalar(loss, made_by, "loss in step")
    assert isinstance(loss, Tensor)
    return loss


def check_scalar(loss: object, made_by: str = "", said: str = "loss") -> None:
    """Refuse what cannot be differentiated. Raises ConfigError."""
    if not isinstance(loss, Tensor):
        several = isinstance(loss, tuple | list | dict)
        raise ConfigError(
            f"the recipe's {said}{made_by} returned {type(loss).__name__}, not a tensor.",
            why="training needs a scalar tensor to differentiate.",
            fix="return the mean loss of the batch as a tensor"
            + ("; what else is of interest are metrics of the recipe." if several else "."),
        )
    if loss.numel() != 1:
        raise ConfigError(
            f"the recipe's {said}{made_by} has shape {list(loss.shape)}, not a scalar.",
            why="training needs one number to differentiate.",
            fix='return the mean over the batch, e.g. reduction="mean".',
        )
    if not loss.requires_grad:
        raise ConfigError(
            f"the recipe's {said}{made_by} does not depend on the model's parameters.",
            why="it carries no gradient.",
            fix="compute it from the model's output without detach() or no_grad().",
        )
