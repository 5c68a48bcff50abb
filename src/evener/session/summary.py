"""TensorBoard: curves, histograms, the model's graph and the hyperparameters. Written by the chief."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from evener.session.hooks import Hook
from evener.settings import Settings

if TYPE_CHECKING:
    from evener.session.session import Session


class Summaries(Hook):
    """Write summaries every `seconds` seconds, when this worker is the chief."""

    def __init__(self, logdir: Path, seconds: float, clock: Callable[[], float], settings: Settings) -> None:
        self._logdir, self._seconds, self._clock, self._settings = logdir, seconds, clock, settings

    def end(self, session: Session) -> None:
        """Placeholder."""
