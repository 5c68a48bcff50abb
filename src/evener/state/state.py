"""What is trained: a shard's parameters, its optimizer, its schedule and its moving averages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from evener.errors import NonFinite
from evener.recipes.recipe import Recipe
from evener.state import foreign, rules
from evener.state.averages import Averages
from evener.state.contents import Contents
from evener.state.hyperparameters import Groups, beside_the_recipes, damage_told, kept, schedule_differences, told
from evener.state.optimizers import check_apart, known_as, names_of_groups, optimizer_of, over_pieces
from evener.state.ruled import Ruled
from evener.state.schedules import Schedule
from evener.state.step_scale import StepScale
from evener.state.stepping import step
from evener.state.tensors import Slot, copied, frozen, named_tensors
from evener.state.trained_parts import TrainedParts, divides
from evener.state.values import plain
from evener.wire.layout import Layout, Piece


class State:
    """One shard of the model in training. Shard 0 of 1 is the whole model.

    The optimizer is a real `torch.optim` optimizer over views of the shard's flat buffer, with the recipe's own
    parameter groups; the schedule's clock is the global step.

    Args:
        model: built from the run's seed; its values are where training starts. It is read, not kept.
        slot: the memory of the parameters; fresh if None.
        own: the model lives in that memory, and its own optimizer takes the steps, called by a program.
    """

    def __init__(  # noqa: PLR0913 - a shard of what, and where
        self,
        model: nn.Module,
        recipe: Recipe,
        layout: Layout,
        *,
        shard: int = 0,
        slot: Slot | None = None,
        own: bool = False,
    ) -> None:
        self.recipe = recipe
        self.step = 0
        self.parameters = slot or Slot(layout, shard)
        source = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
        for piece, view in self.parameters.named():  # one by one: they may be the very same memory
            view.copy_(_cut(source[piece.spec.name], piece))
        stay = frozen(model, layout)
        self._stay = frozenset(stay)
        self.frozen = {name: copied(tensor) for name, tensor in stay.items()} if shard == 0 else {}
        self.optimizer, self._trained, self._names = self._moved(model, own=own)
        self.steps = StepScale(self.optimizer)
        self.ruled = Ruled(recipe.rules, self.parameters, self._trained.first, self.optimizer)
        self.schedule: Schedule | None = None
        #: Buffers that are meant to hold infinities, since they do from the start: a mask.
        self.infinite = self.parameters.infinite_buffers()
        self._averages = Averages(self.parameters, recipe.ema_decay) if recipe.ema_decay is not None else None
        self._own = own

    def _moved(self, model: nn.Module, *, own: bool) -> tuple[Optimizer, TrainedParts, list[list[str]]]:
        """The recipe's optimizer over this shard's pieces, these, and the names of each group's parameters."""
        if own:
            made: Any = self.recipe.optimizer(model)
            trained = TrainedParts(self.parameters, dict(model.named_parameters()), divided=False)
            return made, trained, names_of_groups(made, model)
        optimizer = optimizer_of(self.recipe, model)
        if self.parameters.layout.shards > 1:
            check_apart(self.recipe, optimizer, model, self.parameters.pieces)
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        groups = names_of_groups(optimizer, model)
        trained = TrainedParts(self.parameters, None, divided=divides(optimizer, self.parameters))
        over_pieces(optimizer, names, trained.named)
        return optimizer, trained, groups

    def begin(
        self, pace: Fraction | float, contents: Contents | None = None, *, hyperparameters: str = "checkpoint"
    ) -> list[str]:
        """Attach the schedule and go on from a checkpoint, if there is one: its whole tensors, on any placement. Once.

        Args:
            pace: updates in one pass over the data.
            hyperparameters: whose count where they differ: the "checkpoint"'s, or those of the "recipe".

        Returns:
            A sentence for each hyperparameter that the recipe gives otherwise than the checkpoint.

        Raises:
            CheckpointError: the contents are of another model or optimizer; nothing was changed.
            ConfigError: the schedule cannot be made.
        """
        if contents is not None:
            foreign.check(contents, self.parameters.layout, self.frozen, self._stay, self.optimizer)
        groups = self._groups(contents if hyperparameters == "checkpoint" else None)
        sentences = groups.regroup()
        if self.recipe.lr_scheduler is not None:
            self.schedule = Schedule(self.recipe, self.optimizer, Fraction(pace))
        if contents is None:
            return []
        self.step = contents.step
        with damage_told(contents.step):
            self._fill(contents)
            self.infinite |= self.parameters.infinite_buffers()
            asked = hyperparameters == "recipe"
            return [*self._forward(contents), *sentences] if asked else [*sentences, *self._go_on(groups, contents)]

    def back(self, contents: Contents) -> None:
        """Be again as this checkpoint of the same run: parameters, optimizer, averages, schedule."""
        foreign.check(contents, self.parameters.layout, self.frozen, self._stay, self.optimizer)
        self.settle()  # before what it owes is overwritten
        groups = self._groups(contents)
        groups.regroup()
        self.step = contents.step
        self._fill(contents)
        self._go_on(groups, contents)

    def _groups(self, contents: Contents | None) -> Groups:
        """The optimizer's, and those of a checkpoint."""
        mine = {name: [parameter for _, parameter in pieces] for name, pieces in self._trained.named.items()}
        return Groups(self.optimizer, self._names, mine, contents.values.get("groups", []) if contents else [])

    def _go_on(self, groups: Groups, contents: Contents) -> list[str]:
        """The checkpoint's settings and schedule."""
        saved = groups.reordered(contents.values.get("schedule") or {})
        found = groups.differences(
            scheduled=self.schedule is not None,
            cycling=bool(getattr(self.schedule and self.schedule.scheduler, "cycle_momentum", False)),
        )
        groups.load()
        if self.schedule is not None and saved:
            found += schedule_differences(saved, self.schedule.state())
            self.schedule.load(saved, self.step)
        return told(found, "checkpoint")

    def _forward(self, contents: Contents) -> list[str]:
        """The recipe's settings, and its schedule as far as the run is."""
        regrouped, found = beside_the_recipes(
            self.optimizer, self._names, contents.values.get("groups", []), scheduled=self.schedule is not None
        )
        if self.schedule is not None:
            found += schedule_differences(contents.values.get("schedule") or {}, self.schedule.state())
            self.schedule.forward(self.step)
        return regrouped + told(found, "recipe")

    @property
    def learning_rate(self) -> float:
        """Of the first parameter group, for the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    @cached_property
    def averaged(self) -> Slot:
        """Where a gradient is made of those of workers: their mean, or one that is clipped or scaled.

        As large as the parameters, and made when it is needed first: a gradient that is applied as it is needs none.
        """
        if self._own:
            return self.parameters
        return Slot(self.parameters.layout, self.parameters.shard, device=self.parameters.device)

    def is_averaged(self, gradient: Slot) -> bool:
        """Whether this is what lies in `averaged`."""
        return gradient is vars(self).get("averaged")

    def mean(self, gradients: Sequence[Slot], weights: Sequence[float] | None = None) -> Slot:
        """The average of some gradients, summed in the order given; buffers are those of the last one."""
        return gradients[0] if len(gradients) == 1 else rules.mean(gradients, self.averaged, weights)

    def clipped(self, gradient: Slot, factor: float | None = None) -> Slot:
        """The gradient as the recipe wants it clipped.

        Args:
            factor: what clipping by norm multiplies it by, where its norm is that of several shards; None: this one
                holds all of it.
        """
        if (limit := self.recipe.clip_norm) is not None:
            factor = rules.clip_factor(rules.norm(gradient), limit) if factor is None else factor
            return rules.scaled(gradient, factor, self.averaged) if factor < 1 else gradient
        if (limit := self.recipe.clip_value) is not None:
            return rules.clamped(gradient, limit, self.averaged)
        return gradient

    def apply(
        self, gradient: Slot, unused: Collection[str] = (), factor: float | None = None, scale: float = 1.0
    ) -> Slot:
        """One update: clipping, optimizer step, schedule, buffers. The gradient's buffers replace the state's.

        Args:
            unused: parameters whose gradient is None, not zero: the optimizer leaves them alone, as in PyTorch.
            factor: see `clipped`.
            scale: of this step, see `StepScale`.

        Returns:
            The gradient that was applied.

        Raises:
            NonFinite: the update has made a parameter NaN or infinite.
        """
        self.settle()
        gradient = self.clipped(gradient, factor)
        if self.steps.scales_gradients(scale):
            gradient = rules.scaled(gradient, scale, self.averaged)
        self._trained.give(gradient, unused)
        with self.ruled.watching(unused), self.steps.learning_rate(scale):
            step(self.optimizer)
        self._trained.let_go()
        if bad := self.parameters.first_non_finite(self.infinite):
            raise NonFinite(
                f"the update to global step {self.step + 1} has made {bad!r} NaN or infinite, though its gradient was "
                f"finite (of norm {rules.norm(gradient):.6g} on this shard; learning rate {self.learning_rate:.6g}).",
                why="the step was too large for the numbers; the checkpoints before it are whole.",
                fix="lower the learning rate, or clip the gradient: --clip-norm 1.0.",
            )
        self.step += 1
        if self.schedule is not None:
            self.schedule.updated(self.step)
        for mine, new in zip(self.parameters.buffers, gradient.buffers, strict=True):
            mine.copy_(new)
        if self._averages is not None:
            self._averages.owed = True
        return gradient

    def judged(self, figures: Mapping[str, float]) -> None:
        """A validation was made: a schedule that is driven by it takes a step."""
        if self.schedule is not None:
            self.schedule.judged(figures, self.step)

    def settle(self) -> None:
        """Let the averages follow the last update."""
        if self._averages is not None:
            self._averages.settle(self.step)

    @property
    def averages(self) -> Slot | None:
        """The moving averages of the parameters; None if the recipe keeps none."""
        self.settle()
        return self._averages.slot if self._averages is not None else None

    def contents(self) -> Contents:
        """A copy of everything, to be written while training goes on."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        keys = self.parameters.layout.keys
        for index in self._trained.indices:
            for key, value in self.ruled.beside(index, self._trained.kept(index, self.optimizer)).items():
                name = f"{keys[self.parameters.pieces[index]]}/{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    numbers[name] = value
        schedule = self.schedule
        values = {
            "optimizer": known_as(self.optimizer),
            "groups": kept(self.optimizer, self._names),
            "schedule": schedule.state() if schedule is not None else {},
            "scheduler": type(schedule.scheduler).__name__ if schedule is not None else "",
            "numbers": plain(numbers),
            "rules": self.ruled.keeps,
        }
        parameters = {keys[piece]: copied(view).contiguous() for piece, view in self.parameters.named()}
        shadow = self.averages
        averages = {keys[piece]: copied(view) for piece, view in shadow.named()} if shadow is not None else {}
        trained = {keys[self.parameters.pieces[index]] for index in self._trained.indices}
        everything = parameters | self.frozen
        return Contents(self.step, everything, averages, tensors, values, frozenset(everything.keys() - trained))

    def _fill(self, contents: Contents) -> None:
        """Parameters, averages and what the optimizer keeps of each, as this shard needs them."""
        for slot, source in ((self.parameters, contents.parameters), (self.averages, contents.averages)):
            for piece, view in slot.named() if slot is not None else ():
                view.copy_(_cut(source.get(piece.spec.name, contents.parameters[piece.spec.name]), piece))
        states, of_rules = contents.by_owner(), contents.values.get("rules", ())
        self.optimizer.state.clear()
        for index in self._trained.indices:
            state = states.get(self.parameters.pieces[index].spec.name, {})
            self._trained.keep(index, self.ruled.take(index, state, of_rules), self.optimizer)


def _cut(tensor: Tensor, piece: Piece) -> Tensor:
    return tensor if piece.whole else tensor.reshape(-1)[piece.start : piece.stop]
