"""What is trained: a shard's parameters, its optimizer, its schedule and its moving averages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from evener.errors import CheckpointError, ConfigError
from evener.recipe import Recipe
from evener.tensors import Slot, beside, copied, frozen
from evener.wire.layout import Layout, Piece, Spec

log = logging.getLogger(__name__)

#: Their update of an element depends on that element alone, so a tensor may be split over several shards.
#: A user's optimizer says so with a class attribute ``elementwise = True``.
ELEMENTWISE = frozenset({
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop,
    torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.ASGD, torch.optim.Rprop,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contents:
    """A state at one step, as named tensors and plain values: what a checkpoint keeps.

    Names are those of the model; a part of a split tensor carries its range, ``fc.weight[0:1024]``.
    """

    step: int
    parameters: dict[str, Tensor]
    averages: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "fc.weight/exp_avg"
    values: dict[str, Any] = field(default_factory=dict)  # plain: groups, schedule, optimizer numbers


class State:
    """One shard of the model in training. Shard 0 of 1 is the whole model.

    The optimizer is a real `torch.optim` optimizer over views of the shard's flat buffer, with the recipe's own
    parameter groups; the schedule's clock is the global step.

    Args:
        model: built from the run's seed; its values are where training starts. It is read, not kept.
        slot: the memory of the parameters; fresh if None.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, layout: Layout, *, shard: int = 0, slot: Slot | None = None):
        self.recipe = recipe
        self.step = 0
        self.parameters = slot or Slot(layout, shard)
        source = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}
        for piece, view in self.parameters.named():
            view.copy_(_cut(source[piece.spec.name], piece))
        stay = frozen(model)
        self._stay = frozenset(stay)
        self.frozen = {name: copied(tensor) for name, tensor in stay.items()} if shard == 0 else {}
        self._trained = [nn.Parameter(view) for piece, view in self.parameters.named() if piece.spec.trained]
        self._indices = [index for index, piece in enumerate(self.parameters.pieces) if piece.spec.trained]
        self.optimizer = self._optimizer(model)
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self._averages: Slot | None = None
        self._owed = False  # the averages lack the last update
        if recipe.ema_decay is not None:
            self._averages = Slot(layout, shard, device=self.parameters.device)
            for average, value in zip(self._averages.views, self.parameters.views, strict=True):
                average.copy_(value)
        #: Where gradients of several workers are averaged.
        self.averaged = Slot(layout, shard, device=self.parameters.device)

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The recipe's optimizer, with every model parameter replaced by its pieces on this shard."""
        optimizer = self.recipe.optimizer(model)
        _check_split(optimizer, self.parameters.pieces)
        names = {parameter: name for name, parameter in model.named_parameters()}
        mine: dict[str, list[tuple[Piece, nn.Parameter]]] = {}
        for index, parameter in zip(self._indices, self._trained, strict=True):
            piece = self.parameters.pieces[index]
            mine.setdefault(piece.spec.name, []).append((piece, parameter))
        created = dict(optimizer.state)  # some optimizers make their state at once (Adagrad)
        optimizer.state.clear()
        for group in optimizer.param_groups:
            pieces = [entry for old in group["params"] for entry in mine.get(names[old], [])]
            for old in group["params"]:
                for piece, parameter in mine.get(names[old], []) if old in created else []:
                    optimizer.state[parameter] = {
                        key: beside(parameter, key, _cut_like(value, piece, old.numel()))
                        for key, value in created[old].items()
                    }
            group["params"] = [parameter for _, parameter in pieces]
        return optimizer

    def schedule(self, steps_per_epoch: float) -> None:
        """Attach the recipe's learning-rate schedule. Before `restore`, once."""
        if self.recipe.lr_scheduler is not None and self.scheduler is None:
            self.scheduler = self.recipe.lr_scheduler(self.optimizer, steps_per_epoch)

    @property
    def learning_rate(self) -> float:
        """Of the first parameter group, for the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def mean(self, gradients: Sequence[Slot]) -> Slot:
        """The average of some gradients, summed in the order given; buffers are those of the last one."""
        if len(gradients) == 1:
            return gradients[0]
        for index, out in enumerate(self.averaged.trained):
            torch.add(gradients[0].trained[index], gradients[1].trained[index], out=out)
            for more in gradients[2:]:
                out.add_(more.trained[index])
            out.div_(len(gradients))
        for out, buffer in zip(self.averaged.buffers, gradients[-1].buffers, strict=True):
            out.copy_(buffer)
        return self.averaged

    def apply(self, gradient: Slot) -> None:
        """One update: optimizer step, schedule, buffers. The gradient's buffers replace the state's.

        The moving averages follow with `settle`, at the latest when somebody looks at them: a server sends the new
        parameters first.
        """
        self.settle()
        for index, parameter in zip(self._indices, self._trained, strict=True):
            parameter.grad = gradient.views[index]
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.step += 1
        for mine, new in zip(self.parameters.buffers, gradient.buffers, strict=True):
            mine.copy_(new)
        self._owed = self._averages is not None

    def settle(self) -> None:
        """Let the averages follow the last update.

        TensorFlow's rule (SEMANTICS E1, E2, S18): shadow -= (1-d)(shadow - value), d = min(decay, (1+n)/(10+n)).
        """
        if not self._owed or self._averages is None or self.recipe.ema_decay is None:
            return
        self._owed = False
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for average, value in zip(self._averages.trained, self.parameters.trained, strict=True):
            average.lerp_(value, 1 - decay)
        for average, value in zip(self._averages.buffers, self.parameters.buffers, strict=True):
            average.copy_(value)

    @property
    def averages(self) -> Slot | None:
        """The moving averages of the parameters; None if the recipe keeps none."""
        self.settle()
        return self._averages

    def contents(self) -> Contents:
        """A copy of everything, to be written while training goes on."""
        kept: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for index, parameter in zip(self._indices, self._trained, strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                name = f"{self.parameters.pieces[index].key}/{key}"
                if isinstance(value, Tensor):
                    kept[name] = copied(value)
                else:
                    numbers[name] = value
        groups = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        schedule = self.scheduler.state_dict() if self.scheduler is not None else {}
        values = {
            "optimizer": _kind(self.optimizer),
            "groups": [plain(group) for group in groups],
            "schedule": plain(schedule),
            "numbers": plain(numbers),
        }
        parameters = {piece.key: copied(view) for piece, view in self.parameters.named()}
        shadow = self.averages
        averages = {piece.key: copied(view) for piece, view in shadow.named()} if shadow is not None else {}
        return Contents(self.step, parameters | self.frozen, averages, kept, values)

    def restore(self, contents: Contents) -> list[str]:
        """Continue from whole tensors (parts already joined), into this shard's placement. After `schedule`.

        Returns a sentence for each hyperparameter that the recipe gives otherwise now: the checkpoint's counts.

        Raises:
            CheckpointError: they are of another model or optimizer; nothing was changed.
        """
        if difference := self._difference(contents):
            raise CheckpointError(
                f"the checkpoint of step {contents.step} cannot be continued here: {difference}.",
                why="a checkpoint fits the recipe and the options it was made with.",
                fix="give the same recipe and options, or choose another --logdir to start afresh.",
            )
        self.step = contents.step
        for slot, source in ((self.parameters, contents.parameters), (self.averages, contents.averages)):
            for piece, view in slot.named() if slot is not None else ():
                view.copy_(_cut(source.get(piece.spec.name, contents.parameters[piece.spec.name]), piece))
        differences: list[str] = []
        self.optimizer.state.clear()
        for index, parameter in zip(self._indices, self._trained, strict=True):
            piece = self.parameters.pieces[index]
            kept = {**contents.optimizer, **contents.values.get("numbers", {})}
            state = {
                (key := name.rpartition("/")[2]): beside(parameter, key, _cut_like(value, piece, piece.spec.numel))
                for name, value in kept.items()
                if name.rpartition("/")[0] == piece.spec.name
            }
            if state:
                self.optimizer.state[parameter] = state
        for group, values in zip(self.optimizer.param_groups, contents.values.get("groups", []), strict=False):
            for key in ("initial_lr" if "initial_lr" in group else "lr", "momentum", "weight_decay", "betas"):
                if key in group and key in values and values[key] != plain({key: group[key]}).get(key):
                    differences.append(f"{key} stays {values[key]} as in the checkpoint, not {group[key]} as asked now")
            group.update(values)
        if self.scheduler is not None and contents.values.get("schedule"):
            self.scheduler.load_state_dict(dict(contents.values["schedule"]))
        return list(dict.fromkeys(differences))

    def _difference(self, contents: Contents) -> str:
        """What makes a checkpoint foreign, as part of a sentence; empty if nothing does."""
        layout = self.parameters.layout
        trained = {spec.name: spec.trained for spec in layout.specs}
        theirs = [
            Spec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), trained.get(name, True))
            for name, tensor in contents.parameters.items()
            if name not in self._stay
        ]
        if difference := layout.difference(theirs, here="this run", there="the checkpoint"):
            return difference
        for name, tensor in self.frozen.items():
            kept = contents.parameters.get(name)
            if kept is not None and not torch.equal(kept, tensor):
                return f"frozen {name!r} has other values than the recipe gives now"
        mine, kind = _kind(self.optimizer), contents.values.get("optimizer")
        return f"it was trained with {kind}, this run trains with {mine}" if kind not in (None, mine) else ""


def _kind(optimizer: torch.optim.Optimizer) -> str:
    made = type(optimizer)  # evener.tensorflow.Adam is not Adam
    return f"evener.tensorflow.{made.__name__}" if made.__module__.startswith("evener.") else made.__name__


def _check_split(optimizer: torch.optim.Optimizer, pieces: Sequence[Piece]) -> None:
    kind = type(optimizer)
    split = next((piece for piece in pieces if piece.spec.trained and not piece.whole), None)
    if split is None or kind in ELEMENTWISE or getattr(kind, "elementwise", False):
        return
    raise ConfigError(
        f"{kind.__name__} cannot update {split.spec.name!r}, which is split over several ps tasks.",
        why="a part of a tensor can be updated only by an optimizer that works element by element.",
        fix="use --placement greedy, which keeps tensors whole; or, if it does work so, "
        "give its class the attribute elementwise = True.",
    )


def _cut(tensor: Tensor, piece: Piece) -> Tensor:
    return tensor if piece.whole else tensor.reshape(-1)[piece.start : piece.stop]


def _cut_like(value: Any, piece: Piece, numel: int) -> Any:
    """A piece's part of optimizer state that is elementwise; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if piece.whole or numel == 1 or value.numel() == 1:
        return value.clone()
    if value.numel() != numel:
        raise CheckpointError(
            f"optimizer state of {piece.spec.name!r} has {value.numel()} elements, the tensor has {numel}.",
            why="a tensor that is split over several ps tasks needs an optimizer that works element by element.",
            fix="use --placement greedy, which keeps tensors whole.",
        )
    return value.reshape(-1)[piece.start : piece.stop].clone()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a dictionary JSON gives back as it was, tuples as lists; the rest is rebuilt by the recipe.

    Left out are functions, but also infinity and keys that are not texts (the milestones of `MultiStepLR`).
    """
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            kept[key] = [plain(entry) for entry in value]  # of the schedules inside a `SequentialLR`
            continue
        try:
            back = msgspec.json.decode(msgspec.json.encode(value))
        except (TypeError, ValueError, msgspec.MsgspecError):
            back = None
        if back == _listed(value):
            kept[key] = back
        else:
            log.debug("%r of type %s is not kept in checkpoints", key, type(value).__name__)
    return kept


def _listed(value: Any) -> Any:
    return [_listed(entry) for entry in value] if isinstance(value, list | tuple) else value
