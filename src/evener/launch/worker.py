"""One worker: its parts put together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from evener.data.batches import Batches
from evener.data.dataset import Data, as_data
from evener.launch.build import VERSION, Built
from evener.recipe import Recipe
from evener.report import Reporter, Status
from evener.session.evaluate import Evaluate
from evener.session.hooks import Hook, LogEvery, StopOnNaN
from evener.session.session import Session
from evener.settings import Settings
from evener.transport.channel import Memory
from evener.wire import codec
from evener.wire.messages import Hello, Identity
from evener.worker.servers import Servers
from evener.worker.towers import Towers


def hooks_for(recipe: Recipe, data: Data, settings: Settings) -> list[Hook]:
    """The hooks of every run, then the recipe's own, which see the others' work (SEMANTICS H5)."""
    from evener.session.summary import Summaries

    clock = time.monotonic
    examples = settings.batch_size * settings.aggregate
    return [
        StopOnNaN(),
        LogEvery(settings.log_every, clock, examples),
        Evaluate(data.validation, settings.eval_every),
        Summaries(Path(settings.logdir), settings.save_summary_secs, clock, settings),
        *(recipe.hooks() if recipe.hooks is not None else ()),
    ]


def run_worker(  # noqa: PLR0913 - what a task is told, each once
    index: int,
    built: Built,
    settings: Settings,
    *,
    run: str,
    addresses: Callable[[], Sequence[str]],
    report: Reporter,
) -> None:
    """Train as worker `index` until the servers end the run. `addresses` waits for theirs, after all else is ready."""
    task = f"worker:{index}"
    report(Status(task, "starting", waiting_for="its data"))
    data = as_data(built.recipe.data())
    batches = Batches(data.train, batch_size=settings.batch_size, seed=settings.seed)
    gradients, parameters = Memory(built.layout.nbytes), Memory(built.layout.nbytes)
    towers = Towers(
        built.model, built.recipe, built.layout,
        parameters=parameters.view, gradients=gradients.view, seed=settings.seed,
    )  # fmt: skip
    hello = Hello(
        Identity(index), run, VERSION, str(torch.__version__), built.fingerprint, built.layout.fingerprint,
        codec.pack_specs(built.layout.specs), len(data.train), socket.gethostname(), os.getpid(),
    )  # fmt: skip
    report(Status(task, "starting", waiting_for="the addresses of the ps tasks"))
    exchange = Servers(
        addresses(), hello, built.layout, gradients=gradients, parameters=parameters, report=report,
        clock=time.monotonic, patience=settings.stall_timeout + 30.0,
    )  # fmt: skip
    hooks = hooks_for(built.recipe, data, settings)
    Session(
        task, exchange, towers, batches, hooks,
        recipe=built.recipe, settings=settings, report=report, clock=time.monotonic,
    ).run()  # fmt: skip
    report(Status(task, "done"))
