"""A run in this very process: no cluster, no other task."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.devices import prepare_process
from evener.launch.build import VERSION, Built, beginning, build, open_store
from evener.launch.server import schedule_of
from evener.launch.worker import hooks_for
from evener.recipe import Recipe
from evener.report import AnyReport
from evener.saver import Saver
from evener.session.session import Session
from evener.settings import Settings
from evener.state import State
from evener.tensors import Slot
from evener.worker.local import Local
from evener.worker.towers import Towers


def run_alone(settings: Settings, recipe: Recipe | None, report: Callable[[AnyReport], None]) -> str:
    """Train in this process to the end; returns why it ended ("interrupted" after Ctrl-C or SIGTERM)."""
    threads = torch.get_num_threads()
    prepare_process(settings.threads)
    handler = _log_to(Path(settings.logdir) / "logs" / "worker-0.log")
    try:
        built = build(settings, recipe)
        session = _session(built, settings, report)
        with stopping(session):
            return session.run()
    finally:
        torch.set_num_threads(threads)
        logging.getLogger("evener").removeHandler(handler)
        handler.close()


def _session(built: Built, settings: Settings, report: Callable[[AnyReport], None]) -> Session:
    data = as_data(built.recipe.data())
    store = open_store(settings)
    saver = Saver(store, schedule_of(settings), shards=1, clock=time.monotonic)
    restored = beginning(store, saver, settings, "worker:0", report)
    # uint8 tensors rather than bytearrays: their memory is aligned to cache lines
    parameters, gradients = (torch.zeros(built.layout.nbytes, dtype=torch.uint8).numpy().data for _ in range(2))
    parts = [[block[at : at + nbytes] for at, nbytes in built.layout.ranges(0)] for block in (parameters, gradients)]
    state = State(built.model, built.recipe, built.layout, slot=Slot(built.layout, 0, parts[0]))
    towers = Towers(
        built.model, built.recipe, built.layout, parameters=parameters, gradients=gradients, seed=settings.seed
    )
    exchange = Local(
        state, Slot(built.layout, 0, parts[1]), settings=settings, samples=len(data.train), saver=saver,
        restored=restored, report=report, clock=time.monotonic, evener=VERSION,
    )  # fmt: skip
    batches = Batches(data.train, batch_size=settings.batch_size, seed=settings.seed)
    hooks = hooks_for(built.recipe, data, settings)
    return Session(
        "worker:0", exchange, towers, batches, hooks,
        recipe=built.recipe, settings=settings, report=report, clock=time.monotonic,
    )  # fmt: skip


def _log_to(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("evener")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


@contextmanager
def stopping(session: Session) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run after its step and saves; the second ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.default_int_handler)
        session.stop("interrupted", complete=False)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
