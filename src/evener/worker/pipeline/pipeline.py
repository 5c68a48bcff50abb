"""One model over several processes: stage 0 runs the training loop and orders, the others do their part.

Each stage owns its parameters, their optimizer and averages, as a ps task owns its shard: the layout puts the tensors
of stage i on shard i. Activations and their gradients travel by `torch.distributed.pipelining`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe

from evener import errors
from evener.data.dataset import Batch
from evener.recipes.recipe import Recipe
from evener.state import rules
from evener.state.tensors import CPU, Slot
from evener.worker.compute.constants import Constants
from evener.worker.compute.losses import check_scalar
from evener.worker.exchange.exchange import ONLY, OneOf
from evener.worker.pipeline.splitting import Foreign, StagedModel
from evener.worker.pipeline.stage_group import Ask, StageGroup

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}

#: Relative difference that sums in another order may make between a penalty and the sum of its parts.
ROUNDING = 1e-4


class StagePart:
    """One stage: its part of the model, and the gradients of that.

    Args:
        model: the whole model; the tensors of this stage live in the memory that travels.
        gradients: this stage's shard, which `compute` fills.
        microbatches: into how many a batch is cut.
        seed: of the run; see `Towers`. A stage's random numbers follow from (seed, lease, stage).
    """

    def __init__(  # noqa: PLR0913 - a model and its place
        self,
        model: nn.Module,
        recipe: Recipe,
        made: StagedModel,
        group: StageGroup,
        gradients: Slot,
        *,
        schedule: str,
        microbatches: int,
        seed: int,
    ) -> None:
        self.model, self.recipe, self.slot = model, recipe, gradients
        self.group, self._seed = group, seed
        self._last = group.stage == group.stages - 1
        runner = made.pipe.build_stage(group.stage, CPU)
        self._schedule = SCHEDULES[schedule](runner, microbatches, loss_fn=self._loss)
        others = [name for name, stage in made.homes.items() if stage != group.stage]
        self.foreign = Foreign(model, others, {spec.name for spec in gradients.layout.specs})
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self._own = [
            (piece.spec.name, tensors[piece.spec.name], view, piece.spec.trained) for piece, view in gradients.named()
        ]
        #: The stages whose last gradient is not finite.
        self.bad: list[int] = []
        #: This stage's parameters that the last batch did not use.
        self.unused: list[str] = []
        #: What clipping by norm multiplies the last gradient by, on all stages; None: it is not clipped so.
        self.factor: float | None = None
        self._made: list[tuple[int, int]] = []
        self._constants = Constants(model, gradients.layout, others)
        self.notes = self._constants.notes

    def begin(self, batch: Batch, lease: int, which: OneOf = ONLY) -> float:
        """Stage 0: let all stages compute this lease; returns its loss. Each then has its own gradients."""
        assert which.of == 1, "a gradient of a pipeline is of one batch"
        self.group.give(Ask.COMPUTE, lease)
        loss = self.compute(batch, lease)
        self._made = self._grads()
        return loss

    def _grads(self) -> list[tuple[int, int]]:
        """Which gradients there are, and how often each was written."""
        return [(id(t.grad), t.grad._version) for _, t, _, trained in self._own if trained and t.grad is not None]

    def collect(self, arrival: int = 0) -> Collection[str]:
        """They lie where they are needed; hooks could change those of this stage only.

        Raises:
            ConfigError: a hook did.
        """
        del arrival
        if self._grads() != self._made:
            raise errors.ConfigError(
                "a hook has changed gradients in a pipeline.",
                why="hooks run in the first stage, which holds the gradients of its own part of the model only.",
                fix="clip with --clip-norm or --clip-value, which look at all stages; or train without "
                "--pipeline-stages.",
            )
        return self.unused

    def arrived(self, arrival: int) -> None:
        """Every stage owns its parameters."""

    def compute(self, batch: Batch | None, lease: int) -> float:
        """Forward and backward of the microbatches; the loss, penalties of all stages included.

        Args:
            batch: needed by the first stage, which takes the inputs, and by the last, which takes the target.
        """
        try:
            return self._compute(batch, lease)
        except BaseException:
            self.group.broken = True  # the others may be in the middle of it: nobody can be asked for anything now
            raise

    def _compute(self, batch: Batch | None, lease: int) -> float:
        self.foreign.hide()
        torch.manual_seed((self._seed * 1_000_003 + lease + self.group.stage * 2_147_483_647) % 2**63)
        for _, tensor, _, _ in self._own:
            tensor.grad = None
        losses: list[Tensor] = []
        with self.group.guarded(f"the activations and gradients of lease {lease}"):
            if self.group.stage == 0:
                assert batch is not None
                self._schedule.step(batch[0])
            elif self._last:
                assert batch is not None
                self._schedule.step(target=batch[1], losses=losses)
            else:
                self._schedule.step()
        loss = float(torch.stack([loss.detach() for loss in losses]).mean()) if losses else 0.0
        penalty = self._penalty()
        self._collect()
        flags = [0.0] * self.group.stages
        flags[self.group.stage] = float(bool(self.slot.first_non_finite()))
        limit = self.recipe.clip_norm
        square = 0.0 if limit is None else rules.norm(self.slot) ** 2
        total, square, *flags = self.group.total([loss + penalty, square, *flags])
        self.bad = [stage for stage, flag in enumerate(flags) if flag]
        self.factor = None if limit is None or self.bad else rules.clip_factor(math.sqrt(square), limit)
        return total

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = self.recipe.loss(output, target)
        check_scalar(loss)
        return loss

    def _penalty(self) -> float:
        """Adds the gradient of this stage's share of the penalty; the others' parameters are hidden."""
        if self.recipe.penalty is None:
            return 0.0
        penalty = self.recipe.penalty(self.model)
        if penalty.requires_grad:
            penalty.backward()  # type: ignore[no-untyped-call]
        return float(penalty.detach())

    def _collect(self) -> None:
        self.unused = []
        self._constants.look(0)
        for name, tensor, travelling, trained in self._own:
            if not trained:
                travelling.copy_(tensor)
            elif tensor.grad is None:
                travelling.zero_()
                self.unused.append(name)
            else:
                travelling.copy_(tensor.grad)

    def check_penalty(self) -> None:
        """Is the penalty the sum of what it is for each stage alone? On all stages, before the first batch.

        Raises:
            ConfigError: it is not, so no stage could know its gradient.
        """
        if self.recipe.penalty is None:
            return
        with torch.no_grad():
            whole = float(self.recipe.penalty(self.model))
            try:
                with self.foreign.hidden():
                    mine = float(self.recipe.penalty(self.model))
            except Exception:  # whatever a function of the user raises for parameters that are not there
                mine = math.nan
        (total,) = self.group.total([mine], starting=True)
        if not math.isclose(total, whole, rel_tol=ROUNDING, abs_tol=1e-12):
            raise errors.ConfigError(
                f"the recipe's penalty is {whole:.6g}, but {total:.6g} as the sum over the stages.",
                why="each stage knows its own parameters only, and finds the others empty.",
                fix="write it as a sum over parameters or modules, such as L2, or train without --pipeline-stages.",
            )
