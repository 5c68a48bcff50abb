"""Figures of validations: which of two is better, and when a run ends because none comes any more."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

from evener.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of validations by which models are compared."""

    name: str  # "validation_accuracy"
    largest: bool  # whether more is better

    @classmethod
    def of(cls, text: str) -> Figure:
        """``validation_loss`` is better the smaller it is, as all that end in loss, error, perplexity, mse or mae;
        others the larger.

        ``min:validation_x`` and ``max:validation_x`` say it.

        >>> Figure.of("validation_loss_ema"), Figure.of("min:validation_distance")
        (Figure(name='validation_loss_ema', largest=False), Figure(name='validation_distance', largest=False))
        """
        way, colon, name = text.partition(":")
        if colon and way in ("min", "max") and name:
            return cls(name, way == "max")
        return cls(text, not text.removesuffix("_ema").endswith(("loss", "error", "perplexity", "mse", "mae")))

    def better(self, new: float, old: float, by: float = 0.0) -> bool:
        """Whether `new` is better than `old`, by more than `by`. Anything is better than NaN."""
        if isnan(new) or isnan(old):
            return not isnan(new)
        return new - old > by if self.largest else old - new > by


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """When a run ends because it no longer improves.

    Args:
        figure: of the validations; see `Figure.of`.
        patience: validations without an improvement that end it.
        min_delta: what counts as one.
    """

    figure: str = "validation_loss"
    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ConfigError(f"patience={self.patience!r} cannot work.", fix="patience must be an integer >= 1.")
        if not self.min_delta >= 0:
            raise ConfigError(f"min_delta={self.min_delta!r} cannot work.", fix="min_delta must be a number >= 0.")
