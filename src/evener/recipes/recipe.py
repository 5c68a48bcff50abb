"""What is trained: one frozen object that every task of a run makes for itself from the same name and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from evener.clipping import check_clipping
from evener.data.dataset import Data
from evener.errors import ConfigError, SecurityError
from evener.figures import EarlyStopping
from evener.recipes import RECIPES, options as _options
from evener.recipes.parts import check_functions, check_step, check_values
from evener.recipes.references import did_you_mean, find, kind_of, reference_of as _reference_of
from evener.rules import Rule, check_rules
from evener.settings import Settings

__all__ = ["Recipe", "accuracy", "options_of", "recipe", "reference_of", "resolve"]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The share of samples whose largest output is at the target's class.

    Args:
        output: scores [B, C] (or [B, C, ...] with a target [B, ...]).
        target: class numbers [B], or class probabilities [B, C].

    Returns:
        A scalar, 0..1.
    """
    if target.is_floating_point() and target.shape == output.shape and output.dim() > 1 and output.shape[1] > 1:
        target = target.argmax(1)
    if output.dim() < 2 or target.is_floating_point() or target.shape != output.shape[:1] + output.shape[2:]:
        raise ConfigError(
            f"accuracy does not fit output {list(output.shape)} and target {list(target.shape)} of {target.dtype}.",
            why="it compares the largest of C outputs with a class number; a recipe that names no metrics has it.",
            fix="give the recipe metrics of its own, or metrics={} for none.",
        )
    return (output.argmax(1) == target).float().mean()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model, its data and how it learns.

    The parts are functions, not objects: every task calls them after seeding, so all begin with the same parameters.

    Args:
        model: makes a fresh model. Its first parameters depend on PyTorch's global seed only.
        data: makes the data: `Data`, or a pair (train, validation) of whatever `as_dataset` takes, also DataLoaders.
        optimizer: makes the optimizer over the model's parameters, in any groups. It lives where the parameters live.
            Or several, in a dict or a list, over parameters of their own: each takes a step with every update.
        loss: (output, target) -> scalar, the mean over the batch.
        step: instead of loss and metrics: (model, batch) -> the loss of a batch of any form, the mean over it; or a
            dictionary with it as "loss". What else is in it are figures of validations, means over the batch too.
        batches_per_step: a gradient is the mean over so many batches; `--batches-per-step`.
        penalty: (model) -> scalar that is added to the loss, for example L2 on the weights.
        clip_norm: the mean gradient of an update is scaled down to this 2-norm, over the whole model, as
            `torch.nn.utils.clip_grad_norm_` does; `--clip-norm`.
        clip_value: or each number of it is kept between -clip_value and clip_value; `--clip-value`.
        rules: what becomes of gradients that are late, as a chain: `[evener.rules.DelayAdaptive()]`, or objects of your
            own (docs/rules.md). In ps tasks, where gradients may be late. `--staleness-lr`, `--compensate`.
        changing: names of parameters with requires_grad=False, or of modules that hold them, which the model changes
            itself, such as a teacher that follows its student: they travel, are saved and averaged as buffers are.
        lr_scheduler: (optimizer, steps_per_epoch) -> scheduler, stepped once a global step. `steps_per_epoch` is a
            whole number, rounded up, as the length of a DataLoader; a function with a third argument gets it exactly
            too, as a Fraction. `evener.each_epoch(scheduler)` is stepped once an epoch, by a figure of each validation
            `evener.each_validation(scheduler)` and a `ReduceLROnPlateau`.
        ema_decay: keeps an average of the parameters, shadow += (1 - d) * (value - shadow) a step with
            d = min(ema_decay, (1 + step) / (10 + step)), as TensorFlow does.
        metrics: name -> (output, target) -> mean over the batch; for the validation sets.
        evaluate: instead of loss and metrics of a validation set, for figures that are no means over batches:
            (model, batches) -> figures by name. The model is in `eval()`, without gradients; `batches` gives all
            samples once as (inputs, target), and `len(batches)` is their number.
        keep_best: a figure of the validations, such as "validation_accuracy": the model that is best by it is kept in
            LOGDIR/best. Losses and errors are better the smaller; "min:..." and "max:..." say it.
        early_stopping: `evener.EarlyStopping("validation_loss", patience=3)` ends a run that no longer improves.
        split_points: names of modules at which a pipeline's next stage may begin (`--pipeline-stages`), in their order.
        hooks: makes hooks of your own for each worker (`evener.Hook`), called after evener's.
        name: for people: logs, summaries, checkpoints.

    Raises:
        ConfigError: a part is not what it must be.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Data | tuple[Any, Any]]
    optimizer: Callable[[nn.Module], Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer]]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    step: Callable[[nn.Module, Any], Tensor | Mapping[str, Any]] | None = None
    batches_per_step: int = 1
    penalty: Callable[[nn.Module], Tensor] | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    rules: Sequence[Rule] = ()
    changing: Sequence[str] = ()
    lr_scheduler: Callable[..., Any] | None = None
    ema_decay: float | None = None
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=lambda: {"accuracy": accuracy})
    evaluate: Callable[[nn.Module, Any], Mapping[str, Any]] | None = None
    keep_best: str | None = None
    early_stopping: EarlyStopping | None = None
    hooks: Callable[[], Sequence[Any]] | None = None
    split_points: Sequence[str] = ()
    name: str = "recipe"

    def __post_init__(self) -> None:
        check_functions(self)
        check_values(self)
        check_step(self, {"accuracy": accuracy})
        check_clipping(self.clip_norm, self.clip_value)
        check_rules(self.rules)

    def validates_every(self, settings: Settings, samples: int) -> int | None:
        """Global steps between two validations; None: there is one at the end.

        Where nobody says it and the recipe compares validations (`keep_best`, `early_stopping`): an epoch.
        """
        if settings.eval_every is None and (self.keep_best is not None or self.early_stopping is not None):
            return ceil(settings.steps_per_epoch(samples))
        return settings.eval_every


def recipe(function: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Mark a function that returns a recipe, where its return type does not say so: others may name it then.

    >>> @recipe
    ... def mine(hidden: int = 8): ...
    """
    function.__evener_recipe__ = True  # type: ignore[attr-defined]
    return function


def _check_typed(found: Any, reference: str) -> None:
    """Refuse to call what does not say that it is a recipe. Raises SecurityError."""
    returns = getattr(found, "__annotations__", {}).get("return")
    said = returns is Recipe or returns in ("Recipe", "evener.Recipe")
    if not isinstance(found, Recipe) and not (said or getattr(found, "__evener_recipe__", False)):
        raise SecurityError(
            f"{reference} does not say that it is a recipe, so it is not called.",
            why="somebody else has named it: a standing server calls only what is meant to be.",
            fix="write `-> evener.Recipe` as its return type, or @evener.recipe above it.",
        )


def resolve(reference: str, options: Mapping[str, object] | None = None, *, typed: bool = False) -> Recipe:
    """Find a recipe by name and make it with options.

    Args:
        reference: a shipped recipe ("mnist"), "package.module:attr" or "path/to/file.py:attr"; attr is a `Recipe`
            or a function that returns one.
        options: arguments for the function; texts are converted to the types that it declares.
        typed: call only what is marked or typed as a recipe.

    Raises:
        SecurityError: it is not.
        ConfigError: no such recipe, or options that do not fit. What the user's own code raises passes through.
    """
    found = _find(reference)
    if typed:
        _check_typed(found, reference)
    return from_object(found, options, name=reference)


def from_object(found: Any, options: Mapping[str, object] | None = None, *, name: str = "") -> Recipe:
    """A `Recipe` as it is, or made by a function with options. Raises ConfigError when it is neither."""
    name = name or getattr(found, "__name__", type(found).__name__)
    if isinstance(found, Recipe):
        if options:
            raise ConfigError(
                f"{name} takes no options, but was given {', '.join(options)}.",
                why="it is a finished Recipe; options are arguments of a function that returns one.",
                fix="leave the options out, or name a function.",
            )
        return found
    if not callable(found):
        raise ConfigError(
            f"{kind_of(found)} is no recipe.", fix="pass an evener.Recipe or a function that returns one."
        )
    made = found(**_options.convert(found, options or {}, f"recipe {name}"))
    if not isinstance(made, Recipe):
        raise ConfigError(
            f"{name} returned {kind_of(made)}.",
            why="a recipe function returns an evener.Recipe.",
            fix="end it with: return Recipe(model=..., data=..., optimizer=...).",
        )
    return made


def options_of(reference: str) -> dict[str, Any]:
    """The options of a recipe and their defaults, for help texts; empty for a finished `Recipe`."""
    found = _find(reference)
    return {} if isinstance(found, Recipe) else _options.defaults(found)


def reference_of(recipe: object) -> str | None:
    """The name by which `resolve` finds this Recipe or function in another process; None if there is none."""
    reference = _reference_of(recipe)
    shipped = {target: name for name, target in RECIPES.items()}
    return shipped.get(reference, reference) if reference is not None else None


def _find(reference: str) -> Any:
    if ":" not in reference and reference not in RECIPES:
        raise ConfigError(
            f"there is no recipe {reference!r}.",
            why=f"the shipped recipes are: {', '.join(RECIPES)}{did_you_mean(reference, RECIPES)}.",
            fix="name one of them, or your own: path/to/file.py:name or package.module:name.",
        )
    found = find(RECIPES.get(reference, reference))
    if not isinstance(found, Recipe) and not callable(found):
        raise ConfigError(
            f"{reference} is {kind_of(found)}.",
            why="a recipe is an evener.Recipe, or a function that returns one.",
            fix=f"name one of these; the shipped recipes are: {', '.join(RECIPES)}.",
        )
    return found
