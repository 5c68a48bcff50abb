"""TensorBoard: curves, histograms, the model's graph and the hyperparameters. Written by the chief."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evener.data.batches import first_of
from evener.devices.modules import joined
from evener.errors import EvenerError
from evener.recipes.recipe import Recipe, options_of
from evener.report import Line
from evener.session.histogram import EDGES, spread_of
from evener.session.hooks import Hook, StepResult
from evener.settings import Settings

if TYPE_CHECKING:
    from evener.session.session import Session

#: Bytes that a disk must take to be tried again: more than the graph and the histograms of a small model.
PROBE = 1 << 18


class Summaries(Hook):
    """Write summaries every `seconds` seconds, when this worker is the chief.

    The first of them imports TensorBoard and traces the graph (0.2 s), so that neither delays the first step. Each
    later one takes 14 ms with the 400,000 parameters of the MNIST network, nearly all of it for the histograms; a
    thread writes the file. A disk that fails costs summaries, not the training: each later one asks whether it works
    again.

    Args:
        logdir: of the run. One that resumes, and a worker that becomes chief, add an event file of their own.
        settings: of the run, told as hyperparameters beside the recipe's options.
    """

    def __init__(self, logdir: Path, seconds: float, clock: Callable[[], float], settings: Settings) -> None:
        self._logdir, self._seconds, self._clock, self._settings = logdir, seconds, clock, settings
        self._writer: Any = None  # a SummaryWriter, from the first summary on
        self._chief_since: int | None = None  # the global step
        self._period = _Period(clock(), 0)
        self._told = 0  # evaluations
        self._failed = False

    def after_create(self, session: Session) -> None:
        self._chief_since = session.turn.version if session.turn.chief else None

    def before_step(self, session: Session) -> None:
        if session.local_step == 0:  # what was before the first step is no part of a rate
            self._period = _Period(self._clock(), session.turn.version)

    def after_step(self, session: Session, result: StepResult) -> None:
        self._period.add(result)
        if not result.chief:  # another worker writes now
            self._chief_since = None
            self.close(session)
        elif self._chief_since is None:
            self._chief_since = result.global_step
        now = self._clock()
        due = now - self._period.since >= self._seconds
        if result.chief:
            self._tell(session, steps=due)
        if due:  # also where another is chief: who follows it goes on from here
            self._period = _Period(now, result.global_step)

    def end(self, session: Session) -> None:
        if session.turn.chief:
            self._tell(session, steps=True)
            self._write(session, 0, {}, _hyperparameters(self._settings, session.recipe)[-1:])

    def close(self, session: Session) -> None:
        writer, self._writer = self._writer, None
        with self._unless_the_disk_fails(session):
            if writer is not None:
                writer.close()

    def _tell(self, session: Session, *, steps: bool) -> None:
        last = self._period.last
        if self._failed and (steps or session.evaluations[self._told :]):
            self._failed = not self._works_again(session)
        if steps and last is not None and not self._failed:
            values = self._period.values(self._clock(), float(self._settings.per_step))
            self._write(session, last.global_step, values, _histograms(session))
        for evaluated in session.evaluations[self._told :]:
            self._write(session, evaluated.global_step, evaluated.values)
        self._told = len(session.evaluations)

    def _write(self, session: Session, step: int, scalars: dict[str, float], others: Sequence[Any] = ()) -> None:
        if self._failed:
            return
        with self._unless_the_disk_fails(session):
            self._writer = self._writer or self._open(session)
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
            for summary in others:
                self._writer.file_writer.add_summary(summary, step)

    def _open(self, session: Session) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides what an earlier run wrote after the step from which this one goes on. The writer's thread
        # flushes each second, so training does not wait for the disk.
        since = session.turn.version if self._chief_since is None else self._chief_since
        writer: Any = SummaryWriter(str(self._logdir), purge_step=since + 1, max_queue=1000, flush_secs=1)
        for summary in _hyperparameters(self._settings, session.recipe)[:-1]:
            writer.file_writer.add_summary(summary)
        try:
            _add_graph(writer, session)
        except Exception as error:  # whatever the user's model raises when a tracer runs it
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            session.report(Line(session.task, f"TensorBoard gets no graph: the model cannot be traced ({why})"))
        return writer

    @contextmanager
    def _unless_the_disk_fails(self, session: Session) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            writer, self._writer = self._writer, None
            with suppress(OSError):  # its thread has ended
                if writer is not None:
                    writer.close()
            self._failed = True
            why = f"{self._logdir} cannot be written ({error})"
            session.report(Line(session.task, f"TensorBoard gets nothing for now, training goes on: {why}"))

    def _works_again(self, session: Session) -> bool:
        """Whether the disk takes something. Else each try would leave an empty event file."""
        probe = self._logdir / f".summary-probe-{os.getpid()}"
        try:
            try:
                probe.write_bytes(bytes(PROBE))
            finally:
                probe.unlink(missing_ok=True)
        except OSError:
            return False
        self._chief_since = session.turn.version  # what was lost between is no reason to hide what came before
        session.report(Line(session.task, f"TensorBoard gets figures again: {self._logdir} can be written"))
        return True


class _Period:
    """The steps of this worker since its last summary."""

    def __init__(self, since: float, step: int) -> None:
        self.since, self._step, self._applied, self._staleness = since, step, 0, 0
        self._waiting = self._computing = 0.0
        self.last: StepResult | None = None

    def add(self, result: StepResult) -> None:
        self.last = result
        self._applied += not result.rejected
        self._staleness += 0 if result.rejected else result.staleness
        self._waiting += result.data_seconds
        self._computing += result.seconds

    def values(self, now: float, examples_per_step: float) -> dict[str, float]:
        """The curves: of the last step, means over this worker's steps, and rates of the whole cluster."""
        assert self.last is not None
        elapsed = now - self.since
        rate = (self.last.global_step - self._step) / elapsed if elapsed > 0 else 0.0
        return {
            "loss": self.last.loss, "learning_rate": self.last.learning_rate,
            "examples_per_second": rate * examples_per_step, "global_steps_per_second": rate,
            "staleness": self._staleness / max(1, self._applied), "dropped_gradients": float(self.last.dropped),
            "waiting_for_data": self._waiting / self._computing if self._computing else 0.0,
        }  # fmt: skip


def _histograms(session: Session) -> list[Any]:
    """Of the parameters that the model holds, then of the last update's gradients, to which it lends its memory."""
    try:
        session.exchange.show("gradients")
        gradients = list(_histograms_of(session, "gradients_on_average"))
    finally:
        session.exchange.show("parameters")
    return list(_histograms_of(session, "parameters")) + gradients  # now they are whole, in a pipeline too


def _histograms_of(session: Session, group: str) -> Iterator[Any]:
    for name, parameter in session.towers.model.named_parameters():
        if parameter.requires_grad and (found := _histogram(f"{group}/{name}", parameter.detach())) is not None:
            yield found


def _histogram(tag: str, values: Tensor) -> Any:
    """None: it has no finite value."""
    from torch.utils.tensorboard.summary import histogram_raw

    if (spread := spread_of(values)) is None:
        return None
    filled = np.flatnonzero(spread.counts)
    first, last = int(filled[0]), int(filled[-1])
    # A bucket is known by its right edge alone, so an empty one before the first says where that begins.
    buckets = [0, *spread.counts[first : last + 1].tolist()]
    return histogram_raw(  # type: ignore[no-untyped-call]
        tag, spread.low, spread.high, int(spread.counts.sum()), spread.total, spread.squares,
        EDGES[first : last + 2], buckets,
    )  # fmt: skip


def _add_graph(writer: Any, session: Session) -> None:
    if session.recipe.step is not None:
        return  # it calls the model as it likes
    inputs, _ = first_of(session.batches.dataset)
    # Buffers are its own; parameters are only read, as in a validation, and a second copy of them may be large.
    shared = {id(parameter): parameter for parameter in session.towers.model.parameters()}
    model = copy.deepcopy(session.towers.model, shared).eval()
    with warnings.catch_warnings(), joined(model):
        warnings.simplefilter("ignore")  # that the tracer will go one day, and what it thinks of the model
        # `add_graph` alone would trace twice and compare, which imports half of PyTorch (0.6 s).
        traced = torch.jit.trace(model, (inputs,), check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        writer.add_graph(traced, (inputs,))


def _hyperparameters(settings: Settings, recipe: Recipe) -> list[Any]:
    """Three summaries: which there are, their values in this run, and that it ended well."""
    from torch.utils.tensorboard.summary import hparams

    values: dict[str, Any] = {}
    with suppress(EvenerError):  # a Recipe that is no function has no options
        values |= options_of(settings.recipe)
    values |= settings.recipe_options
    compared = ("batch_size", "seed", "train_steps", "epochs", "ps", "workers")
    values |= {name: getattr(settings, name) for name in compared} | {"replicas_to_aggregate": settings.aggregate}
    values |= {"recipe": recipe.name, "mode": settings.mode.name if settings.ps else "one process"}
    values |= asdict(settings.mode) if settings.ps else {}  # type: ignore[call-overload]  # see policy/mode.py
    values = {name: flat for name, value in values.items() if (flat := _flat(value)) not in ("None", "")}
    metrics = [f"validation_{name}" for name in ("loss", *(recipe.metrics if recipe.step is None else ()))]
    metrics += [f"{name}_ema" for name in metrics if recipe.ema_decay is not None]
    return list(hparams(values, dict.fromkeys(metrics, 0.0)))  # type: ignore[no-untyped-call]


def _flat(value: Any) -> float | str:
    try:  # options of the command line are texts
        return str(value) if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return str(value)
