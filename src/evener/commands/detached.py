"""Runs that go on without the process that has started them: `--detach`, `evener attach`, `evener stop`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from evener import settings as settings_module
from evener.commands.on_ray import on_ray, placed
from evener.commands.preparation import make_logdir, script_settings, settings_of
from evener.commands.training import watched
from evener.control import control
from evener.errors import ConfigError, RunFailed, Unavailable
from evener.launch.run import LocalRun
from evener.launch.starters.ray.asked import RayAsked
from evener.launch.starters.ray.run_host import Watcher
from evener.launch.starters.ray.told import Start
from evener.report import AnyReport
from evener.result import Result
from evener.settings import as_options

if TYPE_CHECKING:
    from evener.launch.starters.ray.runs import Detached

#: Seconds beyond its grace that a run has to end when it is told to.
BEYOND = 20.0


def detach(
    what: str | Path, args: Sequence[str], options: Mapping[str, Any], say: Callable[[str], None], *, program: bool
) -> str:
    """Start a run on a Ray cluster and leave it there; returns its name.

    Args:
        what: a recipe, or the path of a program.
        args: the program's.
        options: those of the run and of Ray.

    Raises:
        EvenerError: it cannot run there.
    """
    ray, rest = on_ray("ray", {**options, "detach": True})
    assert ray is not None
    start = Path.cwd()
    settings = script_settings(what, args, rest) if program else settings_of(str(what), rest)[0]
    settings = ray.settings(settings)
    make_logdir(Path(settings.logdir), settings.resume_step)
    cluster, began = ray.connected(settings, start, say)
    try:
        from evener.launch.starters.ray.runs import leave_there

        name = Path(settings.logdir).name
        leave_there(name, as_options(settings), partial(train_there, ray.asked, began))
    finally:
        cluster.leave()
    return name


def train_there(asked: RayAsked, start: Start, options: Mapping[str, Any], watcher: Watcher) -> bool:
    """Be the launcher of a detached run, on the cluster. True: it was cut short."""
    settings = settings_module.make(options)
    make_logdir(Path(settings.logdir))
    starter = placed(asked, settings, start, watcher.say, leave=lambda: None)
    run = LocalRun(settings, hear=watcher.hear, say=watcher.say, clock=time.monotonic, starter=starter)
    return bool(run.run(watcher.interrupts))


def attach(name: str, address: str, *, stream: TextIO | None, quiet: bool = False) -> Result:
    """Watch a detached run until it is over, and return its figures. Ctrl-C leaves it running.

    Raises:
        ConfigError: there is no such run.
        RunFailed: it has failed.
        Unavailable: it is over, and somebody else was told how.
        KeyboardInterrupt: it was stopped.
    """
    with _found(name, address) as run:
        settings = settings_module.make(run.options())

        def follow(hear: Callable[[AnyReport], None], say: Callable[[str], None]) -> str:
            stream_of, since = control.reports(), 0
            while True:
                if (news := run.hear(since)) is None:
                    raise Unavailable(
                        f"{name}: is over.", why="somebody else attached to it, or stopped it, and was told how.",
                        fix=f"evener audit {settings.logdir} says where it stands.",
                    )  # fmt: skip
                since = news.until
                for report in stream_of.feed(news.reports):
                    hear(report)
                if news.over is not None:
                    run.end()
                    if (failed := news.over.failed) is not None:
                        raise RunFailed(
                            failed.what, why=failed.why, fix=failed.fix, kind=failed.kind, block=news.over.block
                        )
                    return "SIGINT" if news.over.cut_short else ""  # a person has stopped it

        return watched(settings, follow, stream=stream, quiet=quiet, start=Path.cwd())


def stop(name: str, address: str, say: Callable[[str], None]) -> None:
    """Let a detached run save and end. Raises ConfigError: there is no such run."""
    with _found(name, address) as run:
        settings = settings_module.make(run.options())
        deadline, since = time.monotonic() + settings.grace + BEYOND, 0
        run.stop()
        say(f"{name}: saves and ends")
        while (news := run.hear(since)) and news.over is None and time.monotonic() < deadline:
            since = news.until
        run.end()
        in_time = news is None or news.over is not None
        say(f"{name}: has ended" if in_time else f"{name}: did not end within its grace, and was ended")


@contextmanager
def _found(name: str, address: str) -> Iterator[Detached]:
    """A detached run, while this process is connected to its cluster."""
    on_ray("ray", {})  # ray is installed
    from evener.launch.starters.ray.joining import joined
    from evener.launch.starters.ray.runs import find, names

    cluster = joined(address, {}, 0)
    try:
        if (run := find(name)) is None:
            there = ", ".join(names()) or "none"
            raise ConfigError(
                f"no run {name!r} is detached on this cluster.", why=f"those that are: {there}.",
                fix="give the name that --detach told; of a run that ended long ago its logdir tells.",
            )  # fmt: skip
        yield run
    finally:
        cluster.leave()
