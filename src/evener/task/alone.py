"""A run in this very process: no cluster, no other task."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from evener.control.interrupts import STOPPING, raise_remembered
from evener.control.notice import noticed
from evener.control.told import LEAVE, TOLD
from evener.devices import prepare_process
from evener.errors import Preempted
from evener.recipes.recipe import Recipe
from evener.report import AnyReport, Line
from evener.session.session import Session
from evener.settings import Settings
from evener.task.build import build
from evener.task.logs import LogFile
from evener.task.owner import Tower, session_of
from evener.task.script import Joining

#: Why a run has ended that a person, or a signal, has cut short.
INTERRUPTED = "interrupted"


def run_alone(
    settings: Settings, recipe: Recipe | None, report: Callable[[AnyReport], None], tower: Tower | None = None
) -> str:
    """Train in this process to the end; returns why it ended ("interrupted" after Ctrl-C).

    Raises Preempted after SIGTERM, SIGHUP or a notice, when all is saved.

    `tower`: together with other processes that do the same.
    """
    threads = torch.get_num_threads()
    prepare_process(settings.threads)
    logs = Path(settings.logdir) / "logs"
    task = f"worker:{tower.rank if tower else 0}"
    handler: logging.Handler = logging.NullHandler()
    if logs.is_dir():
        handler = LogFile(logs / f"{task.replace(':', '-')}.log", lambda text: report(Line(task, text)))
    logger = logging.getLogger("evener")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        session = session_of(build(settings, recipe), settings, report, tower)
        with stopping(session, settings, report) as told:
            ended = session.run()
        check_preempted(ended, told)
        return ended
    finally:
        torch.set_num_threads(threads)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def in_this_process(settings: Settings, joining: Joining) -> Iterator[list[str]]:
    """A program that is run here: its log file, its threads, and Ctrl-C. Gives why it was cut short, if it was."""
    threads = torch.get_num_threads()
    prepare_process(settings.threads)
    log = Path(settings.logdir) / "logs" / "worker-0.log"
    handler = LogFile(log, lambda text: joining.report(Line("worker:0", text)))
    logger = logging.getLogger("evener")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    reasons: list[str] = []

    def stop(reason: str) -> None:
        reasons.append(reason)
        if joining.stop is None:
            raise KeyboardInterrupt(reason)
        joining.stop(reason)

    joining.lost = lambda: reasons[0] if reasons else ""
    try:
        with _signals(stop, settings.preemption_notice, lambda text: joining.report(Line("worker:0", text))) as told:
            yield reasons
        check_preempted(reasons[0] if reasons else "", told)
    finally:
        torch.set_num_threads(threads)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def stopping(session: Session, settings: Settings, report: Callable[[AnyReport], None]) -> Iterator[list[str]]:
    """The first Ctrl-C, SIGTERM or notice ends the run after its step and saves; the second ends it at once."""
    say = lambda text: report(Line(session.task, text))  # noqa: E731
    with _signals(lambda reason: session.stop(reason, complete=False), settings.preemption_notice, say) as told:
        yield told


def check_preempted(reason: str, told: Sequence[str]) -> None:
    """Raises Preempted if this is why a run has ended. `told`: by which signals, where it is said to be interrupted."""
    if reason == INTERRUPTED and told:
        reason = f"this process {TOLD} ({told[0]})"
    if TOLD in reason:
        raise Preempted(f"{reason}: all is saved, and the same command with --logdir continues")


@contextmanager
def _signals(stopped: Callable[[str], object], notice: str, say: Callable[[str], object]) -> Iterator[list[str]]:
    """Gives the names of the signals that told this process to leave, as they come."""
    why: list[str] = []
    told: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.default_int_handler)
        if number in LEAVE:
            told.append(signal.Signals(number).name)
        stopped(why[0] if why else INTERRUPTED)

    def leaves(seen: str) -> None:
        why.append(f"this process {TOLD} ({seen})")
        os.kill(os.getpid(), signal.SIGTERM)

    raise_remembered()
    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        with noticed(notice, leaves, say):
            yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
