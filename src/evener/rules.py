"""Update rules: what becomes of a gradient that was computed on older parameters, before the optimizer sees it.

A rule is a small object that says how long the step of a gradient is (`Scales`), makes another gradient of it
(`Compensates`), or both. Several are a chain: gradients go through all that compensate, in the order given, and
step lengths are multiplied. What a rule is given and may keep: docs/rules.md. Sources of the formulas: each class.

A rule works element by element, so that any split of the parameters over ps tasks gives the same bits. It is called in
every ps task, with what all of them know from the header of a push.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from evener.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DCASGD",
    "Around",
    "Compensates",
    "DelayAdaptive",
    "GapAware",
    "Inverse",
    "Late",
    "Polynomial",
    "Rule",
    "Scales",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Late:
    """One gradient of an update, as every ps task knows it."""

    worker: int
    staleness: int  # updates since the parameters that it was computed on
    workers: int  # that the run was started with, however many live
    samples: int = 0  # that it is a mean of


@dataclass(frozen=True, slots=True)
class Around:
    """What a rule sees beside the gradient of one parameter: tensors of its shape, which it must not change.

    Where a tensor is split over ps tasks this is a flat part of it. Parameters of 16 bits come in float32.
    """

    now: Tensor  # the parameter, before the update
    sent: Tensor  # as the gradient's worker was sent it
    rate: float  # the learning rate of its group
    decay: float = 0.0  # the L2 penalty that the optimizer adds to the gradient (`weight_decay`)
    kept: dict[str, Any] = field(default_factory=dict)  # the rule's own, between updates: of names in its `keeps`


@runtime_checkable
class Scales(Protocol):
    """Says how long the step of a gradient is."""

    def scale(self, late: Late) -> float:
        """A factor >= 0 of the step; 1 leaves it as it is."""
        ...


@runtime_checkable
class Compensates(Protocol):
    """Makes another gradient of one. A ps task keeps a copy of what each worker was sent for it.

    `keeps` names what it puts into `Around.kept`: tensors like the parameter, or numbers. It is saved in checkpoints.
    A rule with a method `stepped(step, around)` is told of each parameter's change, when the optimizer has made it.
    """

    @property
    def keeps(self) -> Sequence[str]: ...

    def compensate(self, gradient: Tensor, late: Late, around: Around) -> Tensor:
        """The gradient that is used instead. `gradient` stays as it is."""
        ...


Rule = Scales | Compensates


def _check_positive(name: str, value: Any, *, whole: bool = False) -> None:
    kinds = int if whole else int | float
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf):
        raise ConfigError(f"{name}={value!r} cannot work.", fix=f"{name} must be a{' whole' * whole} number > 0.")


# --- steps by age


@dataclass(frozen=True, slots=True)
class Inverse:
    """1 / max(1, d) (Zhang et al. 2015, arXiv:1511.05950). With N equal workers every step is 1 / (N - 1) as long."""

    def scale(self, late: Late) -> float:
        """A factor of the step.

        >>> [Inverse().scale(Late(0, d, workers=3)) for d in (0, 1, 2, 4)]
        [1.0, 1.0, 0.5, 0.25]
        """
        return 1.0 / max(1, late.staleness)


@dataclass(frozen=True, slots=True)
class DelayAdaptive:
    """C / max(C, d), C being the workers (Mishchenko et al. 2022, arXiv:2206.07638): only stragglers are damped.

    Args:
        usual: C; None: the workers that the run was started with.
    """

    usual: int | None = None

    def __post_init__(self) -> None:
        _check_positive("usual", self.usual, whole=True)

    def scale(self, late: Late) -> float:
        """A factor of the step.

        >>> [DelayAdaptive().scale(Late(0, d, workers=3)) for d in (0, 3, 6)]
        [1.0, 1.0, 0.5]
        """
        usual = self.usual or late.workers
        return usual / max(usual, late.staleness)


@dataclass(frozen=True, slots=True)
class Polynomial:
    """(1 + d) ** -power (power 1/2: the asynchronous DiLoCo notebook of Liu et al. 2024, arXiv:2401.09135)."""

    power: float = 0.5

    def __post_init__(self) -> None:
        _check_positive("power", self.power)

    def scale(self, late: Late) -> float:
        """A factor of the step.

        >>> [Polynomial().scale(Late(0, d, workers=3)) for d in (0, 3)]
        [1.0, 0.5]
        """
        return float((1.0 + late.staleness) ** -self.power)


# --- gradients by what has moved since


@dataclass(frozen=True, slots=True)
class DCASGD:
    """g + s g g (w_now - w_sent), element by element (Zheng et al. 2016, arXiv:1609.08326).

    Args:
        strength: s, 0.04 by default; adaptive: s = strength / sqrt(ms + 1e-7), 2 by default, where
            ms = 0.95 ms + 0.05 g g takes each gradient before it is used.
    """

    strength: float | None = None
    adaptive: bool = False

    def __post_init__(self) -> None:
        _check_positive("strength", self.strength)
        if self.strength is None:
            object.__setattr__(self, "strength", 2.0 if self.adaptive else 0.04)

    @property
    def keeps(self) -> Sequence[str]:
        return ("dc_square",) if self.adaptive else ()

    def compensate(self, gradient: Tensor, late: Late, around: Around) -> Tensor:
        """One that is not late stays as it is."""
        square = gradient * gradient
        assert self.strength is not None
        strength: Tensor | float = self.strength
        if self.adaptive:
            mean = around.kept.get("dc_square")
            mean = square * 0.05 if mean is None else mean * 0.95 + square * 0.05
            around.kept["dc_square"] = mean
            strength = self.strength / (mean + 1e-7).sqrt()
        made: Tensor = gradient if late.staleness == 0 else gradient + square * strength * (around.now - around.sent)
        return made


@dataclass(frozen=True, slots=True)
class GapAware:
    """g / (1 + |w_now - w_sent| / (lr_max rms)), element by element (Barkai et al. 2019, arXiv:1909.10802).

    rms is that of steps / lr: the root of their bias-corrected mean square, of which each update forgets a thousandth.
    lr_max is the largest learning rate so far, so that one that decays makes no gap look wider. The optimizer's L2
    penalty is divided too. Before the first update nothing changes.
    """

    @property
    def keeps(self) -> Sequence[str]:
        return ("gap_square", "gap_steps", "gap_rate")

    def compensate(self, gradient: Tensor, late: Late, around: Around) -> Tensor:
        """One that is not late stays as it is."""
        kept = around.kept
        if late.staleness == 0 or not (steps := kept.get("gap_steps", 0)):
            return gradient
        rate = max(kept["gap_rate"], around.rate)
        rms = (kept["gap_square"] / (1.0 - 0.999**steps)).sqrt() + 1e-8
        penalty: Tensor = 1.0 + (around.now - around.sent).abs() / (rms * rate)
        made = gradient / penalty
        if around.decay:  # the optimizer will add decay * now, of which 1 / penalty is to stay
            made = made + (1.0 / penalty - 1.0) * (around.now * around.decay)
        return made

    def stepped(self, step: Tensor, around: Around) -> None:
        """A parameter has moved by `step`."""
        if around.rate <= 0.0:
            return  # a warm-up that begins at nothing says nothing of usual steps
        kept, unit = around.kept, step / around.rate
        mean: Tensor | None = kept.get("gap_square")
        kept["gap_square"] = unit * unit * 0.001 if mean is None else mean * 0.999 + unit * unit * 0.001
        kept["gap_steps"] = kept.get("gap_steps", 0) + 1
        kept["gap_rate"] = max(kept.get("gap_rate", 0.0), around.rate)


# --- names and chains

#: `--staleness-lr`, and the rules that these names stand for.
STALENESS_LR: dict[str, Scales | None] = {
    "none": None, "inverse": Inverse(), "delay_adaptive": DelayAdaptive(), "polynomial": Polynomial(),
}  # fmt: skip
#: `--compensate`.
COMPENSATE: dict[str, Compensates | None] = {
    "none": None, "dc": DCASGD(), "dc_adaptive": DCASGD(adaptive=True), "gap": GapAware(),
}  # fmt: skip


def check_rules(rules: object, where: str = "rules") -> tuple[Rule, ...]:
    """The chain, if it is one. Raises ConfigError."""
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise ConfigError(f"{where} is {rules!r}.", why="it is a list of update rules.",
                          fix="write rules=[evener.rules.DelayAdaptive()].")  # fmt: skip
    found, names = tuple(rules), list[str]()
    for rule in found:
        if isinstance(rule, type) or not isinstance(rule, Scales | Compensates):
            raise ConfigError(
                f"{where} holds {rule!r}, which is no update rule.",
                why="a rule is an object with scale(late), or with compensate(gradient, late, around) and keeps.",
                fix="write evener.rules.DelayAdaptive(), with brackets; docs/rules.md shows one of your own.",
            )
        names += rule.keeps if isinstance(rule, Compensates) else ()
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or names.count(name) > 1:
            raise ConfigError(
                f"{where} keep {name!r}" + (" twice." if names.count(name) > 1 else "."),
                why="what rules keep is saved under these names, beside the optimizer's state.",
                fix="let each `keeps` name words of its own, such as mine_square.",
            )
    return found


def chain(rules: Sequence[Rule], staleness_lr: str | None, compensate: str | None) -> tuple[Rule, ...]:
    """The recipe's rules, and those of the command line in place of such ones.

    >>> chain([Inverse(), DCASGD()], "polynomial", None)
    (DCASGD(strength=0.04, adaptive=False), Polynomial(power=0.5))
    """
    found: list[Rule | None] = list(rules)
    if compensate is not None:
        found = [*(rule for rule in found if not isinstance(rule, Compensates)), COMPENSATE[compensate]]
    if staleness_lr is not None:
        found = [*(rule for rule in found if not isinstance(rule, Scales)), STALENESS_LR[staleness_lr]]
    return check_rules(rule for rule in found if rule is not None)


def described(rules: Iterable[Rule]) -> str:
    """The same words in every task that has the same rules."""
    return ", ".join(repr(rule) if is_dataclass(rule) else type(rule).__qualname__ for rule in rules)


def scale_of(rules: Iterable[Rule], late: Late) -> float:
    """How long the step of this gradient is. Raises ConfigError for what is no length."""
    product = 1.0
    for rule in rules:
        if isinstance(rule, Scales):
            scale = float(rule.scale(late))
            if not 0.0 <= scale < math.inf:
                raise ConfigError(f"{described([rule])} gave a step scale of {scale} for {late}.",
                                  why="it is a factor of a step's length.", fix="return a number >= 0.")  # fmt: skip
            product *= scale
    return product
