"""A run, wherever its tasks are: shown while it lasts, told when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from evener.cluster.environment import Rank, on_this_machine, seeing_devices
from evener.commands.preparation import how
from evener.control.proc import process_seconds
from evener.control.told import LEAVE, TOLD
from evener.errors import Preempted
from evener.launch.run import LocalRun
from evener.launch.towers import TowersRun
from evener.report import AnyReport, Progress
from evener.result import Outcome, Result
from evener.settings import Settings
from evener.view.shown import shown
from evener.view.texts import seen_from

if TYPE_CHECKING:
    from evener.launch.starters.process import Starter
    from evener.recipes.recipe import Recipe


def train_apart(
    settings: Settings,
    hear: Callable[[AnyReport], None],
    say: Callable[[str], None],
    starter: Callable[[Callable[[str], None]], Starter] | None,
) -> str:
    """Train in processes that are started for it; the signal that cut it short, if one did."""
    clock = time.monotonic
    if settings.way == "towers":
        return TowersRun(settings, hear=hear, say=say, clock=clock).run()
    made = starter(say) if starter is not None else None
    return LocalRun(settings, hear=hear, say=say, clock=clock, starter=made).run()


def watched(  # noqa: PLR0913 - a run, and how it is shown
    settings: Settings,
    train: Callable[[Callable[[AnyReport], None], Callable[[str], None]], str],
    *,
    stream: TextIO | None,
    quiet: bool,
    start: Path,
    rank: Rank | None = None,
) -> Result:
    """Show a run while it lasts, and tell its figures. Raises KeyboardInterrupt if it was cut short.

    Args:
        train: trains, and says what cut it short: a signal, or "" if nothing did.
    """
    outcome = Outcome()
    started, began = time.monotonic(), process_seconds()
    first_step: list[float] = []
    workers = settings.processes if rank is None else settings.workers
    tasks = [f"ps:{i}" for i in range(settings.ps)] + [f"worker:{i}" for i in range(workers)]
    title = f"{settings.recipe}: {how(settings)}, logs in {seen_from(start, settings.logdir)}"
    with shown(stream, tasks=tasks, title=title, quiet=quiet) as view:

        def hear(report: AnyReport) -> None:
            if not first_step and isinstance(report, Progress) and report.updates > 0:
                first_step.append(began + time.monotonic() - started)
            outcome.hear(report)
            view.hear(report)

        cut_short = train(hear, view.say)
    if cut_short:
        at = f" at step {outcome.finished.global_step}" if outcome.finished else ""
        again = f"the same command with --logdir {seen_from(start, settings.logdir)} continues"
        if cut_short in [number.name for number in LEAVE]:  # a job's end, as batch systems and systemd bring it
            saved = "all is saved, and " if outcome.finished else ""
            raise Preempted(f"the run {TOLD} ({cut_short}){at}: {saved}{again}")
        raise KeyboardInterrupt(f"interrupted{at}; {again}")
    return outcome.result(settings, first_step_seconds=first_step[0] if first_step else None)


def train_here(settings: Settings, made: Recipe | None, rank: Rank | None, hear: Callable[[AnyReport], None]) -> str:
    """Train in this process: alone, or as the tower that torchrun made it."""
    from evener.task.alone import run_alone
    from evener.task.tower import tower_of

    with seeing_devices(settings, "worker"), on_this_machine(rank is not None and rank.one_machine):
        return run_alone(settings, made, hear, tower_of(rank, settings, hear) if rank else None)
