"""What a program gives to `prepare`, sorted by kind; its models as one, its optimizers as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.recipes.references import kind_of
from evener.rules import Rule, described
from evener.settings import Settings
from evener.state.optimizers import Several
from evener.state.tensors import digest_of, frozen, specs_of
from evener.task.build import Built
from evener.task.ruling import ruled
from evener.task.script import source_of
from evener.task.warm_start import warm_start
from evener.wire.agreed import fingerprint_of
from evener.wire.layout import Layout

Scheduler = LRScheduler | ReduceLROnPlateau


@dataclass(frozen=True, slots=True)
class Parts:
    """The objects of a program, by kind, each kind in the order in which they were given."""

    models: tuple[nn.Module, ...]
    optimizers: tuple[Optimizer, ...]
    loaders: tuple[DataLoader[Any], ...]
    schedulers: tuple[Scheduler, ...]
    model: nn.Module  # all of them in one
    optimizer: Optimizer  # likewise
    names: tuple[frozenset[str], ...]  # of each optimizer's parameters
    tied: dict[str, str]  # further names of parameters, and the first of each

    def graded(self) -> bool:
        """Whether a parameter has a gradient now."""
        return any(parameter.grad is not None for parameter in self.model.parameters())


def sorted_out(given: Sequence[object]) -> Parts:
    """Raises ConfigError for what cannot be prepared."""
    given = [_of_accelerate(thing) for thing in given]
    models = tuple(thing for thing in given if isinstance(thing, nn.Module))
    optimizers = tuple(thing for thing in given if isinstance(thing, Optimizer))
    loaders = tuple(thing for thing in given if isinstance(thing, DataLoader))
    schedulers = tuple(thing for thing in given if isinstance(thing, LRScheduler | ReduceLROnPlateau))
    for thing in given:
        if not isinstance(thing, nn.Module | Optimizer | DataLoader | LRScheduler | ReduceLROnPlateau):
            raise ConfigError(
                f"prepare was given {kind_of(thing)}.",
                why="it takes models, optimizers, DataLoaders and learning rate schedulers, each as an argument.",
                fix="leave it out, or unpack it: prepare(*models, optimizer, loader).",
            )
        if isinstance(thing, Optimizer) and "_optimizer_step_pre_hooks" not in vars(thing):
            raise ConfigError(
                f"{type(thing).__name__} was made without Optimizer.__init__.",
                why="it has no hooks and no defaults of its own, as if it were a shell around another optimizer.",
                fix="give prepare the one that takes the steps; or call super().__init__(params, defaults).",
            )
    if not models or not optimizers:
        raise ConfigError(
            f"prepare was given {len(models)} models and {len(optimizers)} optimizers.",
            why="a run trains a model by an optimizer.",
            fix="write ev.prepare(model, optimizer, loader).",
        )
    model = _one_model(models, optimizers)
    by_tensor = {parameter: name for name, parameter in model.named_parameters()}
    names: list[frozenset[str]] = []
    for optimizer in optimizers:
        mine = frozenset(by_tensor[p] for group in optimizer.param_groups for p in group["params"])
        if twice := sorted(mine & frozenset().union(*names)):
            raise ConfigError(
                f"{twice[0]!r} is in two optimizers.",
                why="each update belongs to one of them, which alone may change its parameters.",
                fix="give each optimizer parameters of its own.",
            )
        names.append(mine)
    one = optimizers[0] if len(optimizers) == 1 else Several(optimizers)
    tied = {
        name: by_tensor[parameter]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if by_tensor[parameter] != name
    }
    return Parts(models, optimizers, loaders, schedulers, model, one, tuple(names), tied)


def _of_accelerate(thing: Any) -> Any:
    """What takes the steps: Accelerate puts shells around optimizers and schedulers."""
    if type(thing).__module__.startswith("accelerate."):
        inner = getattr(thing, "optimizer" if isinstance(thing, Optimizer) else "scheduler", thing)
        return inner if isinstance(inner, Optimizer | LRScheduler | ReduceLROnPlateau) else thing
    return thing


def check_dense(optimizers: Sequence[Optimizer]) -> None:
    """Raises ConfigError for an optimizer that takes sparse gradients alone."""
    if any(isinstance(optimizer, SparseAdam) for optimizer in optimizers):
        raise ConfigError(
            "SparseAdam does not go with several processes.",
            why="gradients travel as flat memory, so that of an embedding with sparse=True arrives dense.",
            fix="use Adam, which takes them so; or run the program alone (python train.py).",
        )


def unknown_scheduler(parts: Parts) -> str:
    """What to tell if an optimizer has a scheduler, which leaves its first rate there, that `prepare` was not given."""
    known = {id(scheduler.optimizer) for scheduler in parts.schedulers}
    for optimizer in parts.optimizers:
        if id(optimizer) not in known and any("initial_lr" in group for group in optimizer.param_groups):
            return (
                f"warning: {type(optimizer).__name__} has a scheduler that prepare was not given. It counts the steps "
                "of this worker alone, so it goes too slowly: give it to prepare too"
            )
    return ""


def bare(model: nn.Module) -> nn.Module:
    """The module that a compiled one computes. Raises ConfigError for one that averages gradients itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ConfigError(
            "the model is wrapped in DistributedDataParallel.",
            why="evener brings the gradients of all workers together itself.",
            fix="give prepare the model alone, and leave init_process_group and DistributedSampler out.",
        )
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def _one_model(models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> nn.Module:
    """One model as it is; several, or parameters that are in none, in a module that holds them all."""
    known = {parameter for model in models for parameter in model.parameters()}
    loose = [
        p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"] if p not in known
    ]
    if len(models) == 1 and not loose:
        return bare(models[0])
    one = nn.Module()
    for number, model in enumerate(models):
        one.add_module(f"model{number}" if len(models) > 1 else "model", bare(model))
    for number, tensor in enumerate(loose):
        if not isinstance(tensor, nn.Parameter):
            raise ConfigError(
                f"the optimizer has a tensor of shape {list(tensor.shape)} that is no nn.Parameter, nor in a model.",
                fix="make it an nn.Parameter.",
            )
        one.register_parameter(f"loose{number}", tensor)
    return one


class Afresh:
    """Models and optimizer as the program made them, again for each life of a ps task.

    The models are so still: a ps task reads their values and computes nothing with them. Only a task that trains them
    changes them, and it has one life.
    """

    def __init__(self, parts: Parts) -> None:
        self._model, self._optimizer = parts.model, parts.optimizer
        self._groups = [dict(group) for group in parts.optimizer.param_groups]
        self._state = {p: _copied(entries) for p, entries in parts.optimizer.state.items()}

    def model(self) -> nn.Module:
        return self._model

    def optimizer(self, _model: nn.Module) -> Optimizer:
        for group, first in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update(first)
        self._optimizer.state.clear()
        self._optimizer.state.update({p: _copied(entries) for p, entries in self._state.items()})
        return self._optimizer


def _copied(entries: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer changes its tensors in place."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in entries.items()}


def build(parts: Parts, settings: Settings, rules: Sequence[Rule] = ()) -> Built:
    """The parts that every way of running needs, made of a program's objects instead of a recipe's functions."""
    # Before the values are remembered: each life of a ps task begins with them.
    warm = warm_start(parts.model, Path(settings.init_from)) if settings.init_from else ()
    afresh = Afresh(parts)
    recipe = Recipe(
        model=afresh.model, data=_no_data, optimizer=afresh.optimizer, metrics={}, name=settings.recipe,
        clip_norm=settings.clip_norm, clip_value=settings.clip_value, rules=rules,
    )  # fmt: skip
    recipe, note = ruled(recipe, settings)
    trained = frozenset().union(*parts.names)
    specs = [spec for spec in specs_of(parts.model) if not spec.trained or spec.name in trained]
    if not any(spec.trained for spec in specs):
        raise ConfigError(
            "no parameter that an optimizer has is trained.",
            why="all of them have requires_grad=False.",
            fix="leave those that are to be trained unfrozen before prepare.",
        )
    if settings.ps or settings.towers or settings.logdir:  # else parameters stay where the program has put them
        _refuse_shared(parts.model, {spec.name for spec in specs if spec.trained})
    layout = Layout(specs, shards=max(1, settings.ps), placement=settings.placement)
    stay = digest_of(_stay(parts.model, layout))
    agreed: dict[str, object] = {
        "arguments": list(settings.script_args), "seed": settings.seed, "frozen parameters": stay,
        "optimizers over": [sorted(names) for names in parts.names], "clip norm": recipe.clip_norm,
        "clip value": recipe.clip_value, "in flight": settings.terms.in_flight,
    }  # fmt: skip
    if recipe.rules:
        agreed["rules"] = described(recipe.rules)
    fingerprint = fingerprint_of(settings.recipe, agreed)
    return Built(recipe, parts.model, layout, fingerprint, source_of(settings.script), note, warm)


def _refuse_shared(model: nn.Module, trained: Collection[str]) -> None:
    """Raises ConfigError for two parameters over the same memory: each gets memory of its own, and goes its own way."""
    before: list[tuple[str, nn.Parameter]] = []
    here = [(name, p) for name, p in model.named_parameters() if p.layout == torch.strided and not p.is_meta]
    for name, parameter in sorted(here, key=lambda pair: (str(pair[1].device), pair[1].data_ptr())):
        before = [(other, p) for other, p in before if p.device == parameter.device and _end(p) > parameter.data_ptr()]
        for other, earlier in before if parameter.numel() else ():
            if (name in trained or other in trained) and _overlap(earlier, parameter):
                raise ConfigError(
                    f"{name!r} and {other!r} are two parameters over the same memory.",
                    why="each would get memory of its own, and they would train apart.",
                    fix="tie them by assigning the parameter itself, before the optimizer is made "
                    "(decoder.weight = embedding.weight), not its data.",
                )
        before.append((name, parameter))


def _end(tensor: Tensor) -> int:
    """The address after its last number."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size() * bool(tensor.numel())


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, the span of one of which begins in that of the other, have a number in common."""
    if (one.is_contiguous() and other.is_contiguous()) or one.dtype != other.dtype:
        return True
    first, size = min(one.data_ptr(), other.data_ptr()), one.element_size()
    marks = torch.zeros((max(_end(one), _end(other)) - first) // size, dtype=torch.bool)
    mine, theirs = (
        marks.as_strided(tensor.shape, tensor.stride(), (tensor.data_ptr() - first) // size) for tensor in (one, other)
    )
    mine.fill_(True)
    return bool(theirs.any())


class Frozen:
    """Parameters of an optimizer that are not trained, since they had requires_grad=False at `prepare`."""

    def __init__(self, parts: Parts, layout: Layout) -> None:
        mine = frozenset().union(*parts.names) - set(layout.trained)
        self._parameters = [(name, p) for name, p in parts.model.named_parameters() if name in mine]

    def check(self) -> None:
        """Raises ConfigError when one of them has a gradient now."""
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                raise ConfigError(
                    f"{name!r} was frozen when prepare was called and has a gradient now.",
                    why="what is trained was agreed upon by all tasks then.",
                    fix="prepare it with requires_grad=True and freeze it afterwards, until it is its turn.",
                )


def _no_data() -> tuple[Any, Any]:
    raise AssertionError("a program of its own reads its data itself")


def _stay(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    return frozen(model, layout)
