"""Update rules at work on one shard: what its workers were sent, and what rules keep of each parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from evener.errors import ConfigError
from evener.rules import Around, Compensates, Late, Rule, Scales, described, scale_of
from evener.state.optimizers import cut_like, l2_of
from evener.state.rules import NARROW
from evener.state.tensors import Slot, beside, copied

_NOTHING = nullcontext()


@dataclass(frozen=True, slots=True)
class Sent:
    """The parameters of one version, as they were sent. All who were sent them share it."""

    version: int
    slot: Slot


class Ruled:
    """The rules of a shard. Without any, nothing is kept and nothing is done.

    Args:
        parameters: the shard's.
        trained: the index of a piece -> what the optimizer knows it as, or the first part of it.
    """

    def __init__(
        self, rules: Sequence[Rule], parameters: Slot, trained: Mapping[int, nn.Parameter], optimizer: Optimizer
    ) -> None:
        self._rules, self._parameters, self._trained, self._optimizer = rules, parameters, trained, optimizer
        self._compensating = [rule for rule in rules if isinstance(rule, Compensates)]
        self._told = [stepped for rule in self._compensating if (stepped := getattr(rule, "stepped", None))]
        #: Names of what they keep of each parameter.
        self.keeps = [name for rule in self._compensating for name in rule.keeps]
        self._kept: dict[int, dict[str, Any]] = {index: {} for index in trained}
        if self._compensating and any(group.get("maximize", False) for group in optimizer.param_groups):
            raise ConfigError(
                f"{described(self._compensating)} beside an optimizer with maximize=True.",
                why="the formulas are those of descent: uphill their corrections have the other sign.",
                fix="minimize the negative of it.",
            )
        self._newest: Sent | None = None
        self._sent: dict[int, Sent] = {}

    @property
    def scales(self) -> bool:
        """Whether steps of some gradients are shorter than of others."""
        return any(isinstance(rule, Scales) for rule in self._rules)

    @property
    def compensates(self) -> bool:
        """Whether gradients become others."""
        return bool(self._compensating)

    def scale(self, late: Late) -> float:
        """How long the step of this gradient is."""
        return scale_of(self._rules, late)

    # --- what workers have

    def sent(self, worker: int, version: int) -> None:
        """This worker is sent the parameters of now, which are those of this version."""
        if not self._compensating:
            return
        if self._newest is None or self._newest.version != version:
            # A new one each time: gradients that wait for their update refer to what their workers were sent then.
            copy = Slot(self._parameters.layout, self._parameters.shard, device=self._parameters.device)
            for mine, theirs in zip(copy.trained, self._parameters.trained, strict=True):
                mine.copy_(theirs)
            self._newest = Sent(version, copy)
        self._sent[worker] = self._newest

    def has(self, worker: int) -> Sent | None:
        """What this worker was sent last."""
        return self._sent.get(worker)

    def forget(self, worker: int) -> None:
        """This worker is gone."""
        self._sent.pop(worker, None)

    # --- gradients

    def compensated(
        self, gradient: Slot, out: Slot, late: Late, *, sent: Sent | None, unused: Collection[str] = ()
    ) -> Slot:
        """What rules make of a gradient, in `out`; the gradient itself where they make nothing.

        Args:
            sent: the parameters that it was computed on; none is needed of one that is not late.
            unused: parameters that it has no gradient of: they are left alone.
        """
        if not self._compensating:
            return gradient
        assert sent is not None or late.staleness == 0, f"what worker {late.worker} was sent is not known"
        groups = self._groups()
        for index in self._trained:
            given, into = gradient.views[index], out.views[index]
            now = _wide(self._parameters.views[index])
            then = now if sent is None or late.staleness == 0 else _wide(sent.slot.views[index])
            if self._parameters.pieces[index].spec.name in unused:
                into.copy_(given)
                continue
            around = Around(now=now, sent=then, kept=self._kept[index], **groups[index])
            made = _wide(given)
            for rule in self._compensating:
                made = rule.compensate(made, late, around)
                if made.shape != given.shape:
                    raise ConfigError(
                        f"{described([rule])} made a gradient of shape {list(made.shape)} of one of "
                        f"{list(given.shape)}.", why="a rule works element by element.",
                        fix="return a tensor of the gradient's shape.",
                    )  # fmt: skip
            into.copy_(made)
        for into, buffer in zip(out.buffers, gradient.buffers, strict=True):
            into.copy_(buffer)
        return out

    def watching(self, unused: Collection[str] = ()) -> AbstractContextManager[None]:
        """Around the optimizer's step: rules that want to know are told what it has changed.

        Args:
            unused: parameters that the optimizer leaves alone.
        """
        return self._telling(unused) if self._told else _NOTHING

    @contextmanager
    def _telling(self, unused: Collection[str]) -> Iterator[None]:
        before = {index: self._parameters.views[index].clone() for index in self._trained}
        yield
        groups = self._groups()
        for index, old in before.items():
            if self._parameters.pieces[index].spec.name not in unused:
                now, then = _wide(self._parameters.views[index]), _wide(old)
                for stepped in self._told:
                    stepped(now - then, Around(now=now, sent=then, kept=self._kept[index], **groups[index]))

    def _groups(self) -> dict[int, dict[str, float]]:
        """Learning rate and L2 penalty of each piece."""
        found = {
            parameter: {"rate": float(group["lr"]), "decay": l2_of(self._optimizer, group)}
            for group in self._optimizer.param_groups
            for parameter in group["params"]
        }
        nowhere = {"rate": 0.0, "decay": 0.0}  # no optimizer has it: it does not move
        return {index: found.get(parameter, nowhere) for index, parameter in self._trained.items()}

    # --- checkpoints

    def beside(self, index: int, state: Mapping[str, Any]) -> dict[str, Any]:
        """What the optimizer keeps of a piece, and a copy of what rules keep.

        Raises:
            ConfigError: both say one name.
        """
        if twice := sorted(self._kept[index].keys() & state.keys()):
            raise ConfigError(
                f"an update rule keeps {twice[0]!r}, and so does the optimizer.",
                why="both are saved under that name.",
                fix="let `keeps` of the rule name words of its own.",
            )
        mine = self._kept[index].items()
        return {**state, **{key: copied(value) if isinstance(value, Tensor) else value for key, value in mine}}

    def take(self, index: int, state: Mapping[str, Any], of_rules: Collection[str]) -> dict[str, Any]:
        """Go on with what a checkpoint kept of the tensor that a piece is of, and give back what is the optimizer's.

        Args:
            of_rules: names of what the rules had then. What no rule of now keeps is let go.
        """
        piece, parameter = self._parameters.pieces[index], self._trained[index]
        self._kept[index] = {
            key: beside(parameter, key, cut_like(value, piece, piece.spec.numel))
            for key, value in state.items()
            if key in of_rules and key in self.keeps
        }
        return {key: value for key, value in state.items() if key not in of_rules}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in NARROW else tensor
