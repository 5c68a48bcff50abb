"""`evener.join`: which run a program is in, if any."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evener import settings as settings_module
from evener.cluster.environment import Rank, rank_here
from evener.commands.preparation import as_rank, make_logdir
from evener.errors import SessionError
from evener.loop.loop import Loop
from evener.report import AnyReport, Failed, Line
from evener.rules import Rule, check_rules
from evener.task.ruling import idle
from evener.task.script import Joining, Over, waiting
from evener.task.tower import tower_of


def join(*, rules: Sequence[Rule] = (), **options: Any) -> Loop:
    """Become a part of the run that launched this program; without one, train alone.

    Args:
        rules: what becomes of late gradients, as in `Recipe`: on ps tasks. `--staleness-lr` and `--compensate` count
            instead.
        **options: see `evener.Settings`, for a program that is run without a launcher: `logdir` keeps checkpoints and
            summaries there, and goes on from them. What a launcher says counts instead.

    Returns:
        This program's place in the run.

    Raises:
        ConfigError: an option that cannot work.
        SessionError: it was called before.
    """
    chain = check_rules(rules)
    joining = waiting()
    if joining is None:
        joining = _unlaunched(options, rank_here())
    elif joining.joined:
        raise SessionError("evener.join was called twice.", fix="call it once, and pass on what it returns.")
    joining.rules = chain
    if joining.name == "worker:0" and (note := idle(chain, joining.settings)):
        joining.report(Line(joining.name, note))
    return Loop(joining)


def _unlaunched(options: dict[str, Any], rank: Rank | None) -> Joining:
    """A program that somebody has started by hand, or torchrun."""
    script = os.path.abspath(sys.argv[0]) if sys.argv and sys.argv[0] else "program"
    named = {name: str(Path(value).absolute()) for name, value in options.items() if name == "logdir" and value}
    given = {**options, **named, "recipe": Path(script).name, "script": script, "script_args": tuple(sys.argv[1:])}
    settings = settings_module.make({"batch_size": 1, **as_rank(given, rank)})
    index = rank.rank if rank is not None else 0
    if settings.logdir and index == 0:
        make_logdir(Path(settings.logdir))
    report = _spoken(index)
    tower = tower_of(rank, settings, report) if rank is not None else None
    joining = Joining(job="worker", index=index, settings=settings, report=report, tower=tower, launched=False)
    _finish_at_exit(joining)
    return joining


def _spoken(index: int) -> Callable[[AnyReport], None]:
    """Nobody watches but whoever reads what the program prints."""

    def report(what: AnyReport) -> None:
        if isinstance(what, Line) and index == 0:
            sys.stderr.write(f"evener: {what.text}\n")
        elif isinstance(what, Failed):
            sys.stderr.write(f"evener: {what.what}\n")

    return report


def _finish_at_exit(joining: Joining) -> None:
    """The program's end is the run's, whether it ends well or by an error."""
    failure: list[BaseException] = []
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not isinstance(error, Over):
            failure.append(error)
        before(kind, error, trace)

    process = os.getpid()

    def finish() -> None:
        if os.getpid() == process:  # a loader's process that was forked off comes here too
            joining.finish(failure[0] if failure else None)

    sys.excepthook = hook
    _at_exit(finish)


def _at_exit(finish: Callable[[], None]) -> None:
    """As `concurrent.futures` does it, and before it: `atexit` comes after its threads, which write checkpoints."""
    threading._register_atexit(finish)  # type: ignore[attr-defined]
