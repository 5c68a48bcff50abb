"""Where the figures go that a program logs: TensorBoard in the logdir, and whatever a user adds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from evener.report import Line, Reporter
from evener.settings import Settings

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes figures: a tracker of your own, W&B or MLflow behind three lines."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the logdir, made with the first figure."""

    def __init__(self, logdir: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(logdir, flush_secs=1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Sinks:
    """All of them. One that fails is told, and left out from then on; training goes on."""

    def __init__(self, settings: Settings, report: Reporter) -> None:
        self._settings, self._report = settings, report
        self._sinks: list[Sink] | None = None
        self._added: list[Sink] = []

    def add(self, sink: Sink) -> None:
        self._added.append(sink)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._sinks is None:
            self._sinks = [TensorBoard(self._settings.logdir)] if self._settings.logdir else []
        for sink in [*self._sinks, *self._added]:
            try:
                sink.log(values, step)
            except Exception as error:
                words = f"{type(sink).__name__} takes no figures any more ({type(error).__name__}: {error})"
                log.exception("%s", words)
                self._report(Line("worker:0", f"warning: {words}; training goes on"))
                self._sinks = [other for other in self._sinks if other is not sink]
                self._added = [other for other in self._added if other is not sink]

    def close(self) -> None:
        for sink in [*(self._sinks or ()), *self._added]:
            try:
                sink.close()
            except Exception:
                log.exception("%s could not be closed", type(sink).__name__)
