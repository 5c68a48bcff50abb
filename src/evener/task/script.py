"""A program with a training loop of its own, run in a task as Python would run it.

What the task is, the program learns when it calls `evener.join`: until then it lies here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from evener.data.chance import seed_all
from evener.errors import ConfigError, TaskFailed
from evener.report import Reporter
from evener.rules import Rule
from evener.settings import Settings
from evener.task.owner import Tower
from evener.task.rendezvous import Fixed, Rendezvous


class Over(SystemExit):
    """The run is over, or this ps task has served: the program has nothing left to do. Its `finally` blocks run."""


def _nothing() -> str:
    return ""


def _unfinished(_error: BaseException | None) -> None:
    """Until a program has joined there is nothing to finish."""


@dataclass(slots=True, kw_only=True)
class Joining:
    """Who a process is in a run, and how it reaches the others.

    `finish` is called when the program has ended, with the error that ended it; `stop` when a person wants the run to
    end early, once it is prepared. `lost`: why it was to end before that, although the program goes on.
    """

    job: str
    index: int
    settings: Settings
    report: Reporter
    run: str = ""
    rendezvous: Rendezvous = field(default_factory=lambda: Fixed(()))
    stop_asked: Callable[[], str] = _nothing
    leave_asked: Callable[[], str] = _nothing
    rank: int | None = None  # among the workers of this machine, if that is another number
    tower: Tower | None = None
    latecomers: float = 0.0  # seconds that a ps task stays for workers which a short run did not wait for
    launched: bool = True  # not by hand: then chance and order follow from the run's seed
    rules: Sequence[Rule] = ()  # of late gradients, as the program has given them
    joined: bool = False
    prepared: bool = False
    finish: Callable[[BaseException | None], None] = _unfinished
    stop: Callable[[str], None] | None = None
    lost: Callable[[], str] = _nothing

    @property
    def name(self) -> str:
        return f"{self.job}:{self.index}"


_waiting: list[Joining] = []


def waiting() -> Joining | None:
    """What this process is in a run, for the program that asks first."""
    return _waiting[-1] if _waiting else None


def source_of(script: str) -> str:
    """The program's file with its digest, as other tasks must have it."""
    path = Path(script)
    try:
        return f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    except OSError:
        return path.name


def run_script(joining: Joining) -> None:
    """Run the program of a run to its end.

    Raises:
        TaskFailed: it has ended with a status.
        ConfigError: it never called `evener.join`, or cannot be read.
        Exception: what it raised.
    """
    settings = joining.settings
    error: BaseException | None = None
    seed_all(settings.seed)
    _waiting.append(joining)
    try:
        with _as_python_would(settings.script, settings.script_args), _forks_end_here():
            runpy.run_path(settings.script, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            how = f"with status {end.code}" if isinstance(end.code, int) else f"by itself: {end.code}"
            error = TaskFailed(f"{settings.script} ended {how}.", fix="look at what it printed.")
    except BaseException as failure:
        error = failure
    finally:
        _waiting.remove(joining)
    if error is None and not joining.prepared:
        error = ConfigError(
            f"{settings.script} has ended without evener.join() and prepare().",
            why="every task runs the program, and becomes a part of the run there.",
            fix="write ev = evener.join(), and model, optimizer, loader = ev.prepare(model, optimizer, loader).",
        )
    joining.finish(error)
    if error is not None:
        raise error


@contextlib.contextmanager
def _forks_end_here() -> Iterator[None]:
    """A child that the program has forked ends as one of plain Python; the run is its parent's, and hears nothing."""
    process, end = os.getpid(), None
    try:
        yield
    except BaseException as error:
        if os.getpid() == process:
            raise
        end = error
    if os.getpid() != process:
        _end_fork(end)


def _end_fork(end: BaseException | None) -> NoReturn:
    status = 0 if end is None else 1
    if isinstance(end, SystemExit) and (end.code is None or isinstance(end.code, int)):
        status = end.code or 0
    elif isinstance(end, SystemExit):
        sys.stderr.write(f"{end.code}\n")
    elif end is not None:
        traceback.print_exception(end)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


@contextlib.contextmanager
def _as_python_would(script: str, args: Sequence[str]) -> Iterator[None]:
    """sys.argv and sys.path of a program that is run by itself."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *args]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
