"""One worker: its parts put together."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from evener.data.dataset import Data
from evener.data.loader import FromLoader, LoaderBatches
from evener.figures import Figure
from evener.recipes.recipe import Recipe
from evener.report import Reporter, Status
from evener.session.best import Best, StopEarly, check_figures
from evener.session.evaluate import Evaluate
from evener.session.hooks import Hook, LogEvery, StopOnNaN, hooks_of
from evener.session.session import Session
from evener.settings import Settings
from evener.task.build import VERSION, Built, counted, loaded, settled, tell_and_log
from evener.task.placing import place_model
from evener.task.rendezvous import Rendezvous
from evener.task.wiring import Dialer
from evener.transport.channel import Memory
from evener.wire import codec
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.compute.device_memory import DeviceMemory, Fetching
from evener.worker.compute.feeding import feed_for
from evener.worker.compute.towers import Towers
from evener.worker.exchange.exchange import Exchange
from evener.worker.exchange.in_hand import InHand
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers


def hooks_for(recipe: Recipe, data: Data, settings: Settings, tell: Callable[[str], None]) -> list[Hook]:
    """The hooks of every run, then the recipe's own, which see the others' work (SEMANTICS H5)."""
    from evener.session.summary import Summaries

    if not data.validations:
        check_figures(recipe, ())
    clock = time.monotonic
    size = data.train.size if isinstance(data.train, FromLoader) else settings.batch_size
    sized = replace(settings, batch_size=size)
    best = Best(Figure.of(recipe.keep_best), settings, VERSION, tell) if recipe.keep_best else None
    every = recipe.validates_every(settings, len(data.train))
    return [
        *([StopOnNaN()] if settings.on_nan == "stop" else []),
        LogEvery(settings.log_every, clock, float(sized.per_step)),
        Evaluate(data.validations, every, settings.eval_batch_size or settings.batch_size, best),
        *([StopEarly(recipe.early_stopping)] if recipe.early_stopping is not None else []),
        Summaries(Path(settings.logdir), settings.save_summary_secs, clock, sized),
        *hooks_of(recipe),
    ]


def run_worker(  # noqa: PLR0913 - what a task is told, each once
    index: int,
    built: Built,
    settings: Settings,
    *,
    run: str,
    rendezvous: Rendezvous,
    report: Reporter,
    rank: int | None = None,
) -> None:
    """Train as worker `index` until the servers end the run. They are where `rendezvous` says; that may change.

    `rank` is its number among the workers of this machine, if that is another one.
    """
    task = f"worker:{index}"
    report(Status(task, "starting", waiting_for="its data"))
    if built.note and index == 0:
        tell_and_log(task, report, built.note)
    settings = settled(settings, built.recipe)
    data, batches, first = loaded(built, settings, task, report)
    settings = counted(settings, batches)
    gradients, parameters = Memory(built.layout.nbytes), Memory(built.layout.nbytes)
    homes = place_model(built, settings, rank=index if rank is None else rank, report=report, task=task)
    memory = None
    if homes is not None:
        memory = DeviceMemory(built.layout, homes, parameters=parameters.view, gradients=gradients.view)
    towers = Towers(
        built.model, built.recipe, built.layout,
        parameters=parameters.view, gradients=gradients.view, seed=settings.seed, memory=memory,
    )  # fmt: skip
    hello = Hello(
        Identity(index), run, VERSION, built.fingerprint, built.layout.fingerprint,
        codec.pack_specs(built.layout.specs), len(data.train), socket.gethostname(), os.getpid(),
        process=secrets.token_hex(8), sources=built.sources, batch=codec.cut(first, 1000),
        batches=isinstance(batches, LoaderBatches),
    )  # fmt: skip
    report(Status(task, "starting", waiting_for="the addresses of the ps tasks"))
    links = ServerLinks(
        task, rendezvous.addresses, built.layout, gradients=gradients, parameters=parameters,
        connect=Dialer(settings, task, run), report=report, clock=time.monotonic,
        patience=settings.stall_timeout + 30.0,
    )  # fmt: skip
    servers = Servers(links, hello, sleep=time.sleep)
    several = hello.batches or settings.batches > 1
    exchange: Exchange = InHand(servers, settings.batches, batches.ahead) if several else servers
    if memory is not None:
        exchange = Fetching(exchange, memory)
    hooks = hooks_for(built.recipe, data, settings, partial(tell_and_log, task, report))
    Session(
        task, exchange, towers, batches, hooks,
        recipe=built.recipe, settings=settings, report=report, clock=time.monotonic,
        feed=feed_for(homes),
    ).run()  # fmt: skip
    report(Status(task, "done"))
