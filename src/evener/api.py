"""`evener.run`: what the command line calls, and what a notebook or a script can call just as well."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from evener import settings as settings_module
from evener.errors import ConfigError, EvenerError
from evener.launch.environment import Flags, explain, find
from evener.launch.local import LocalRun, process_seconds
from evener.launch.view import make_view
from evener.references import importing
from evener.report import AnyReport, Progress
from evener.result import Outcome, Result
from evener.settings import Settings

if TYPE_CHECKING:
    from evener.recipe import Recipe


def run(
    recipe: str | Recipe | Callable[..., Recipe],
    *,
    stream: TextIO | None = None,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Train a recipe and return its figures.

    Args:
        recipe: a shipped recipe's name ("mnist"), "module:attribute", "file.py:attribute", or a `Recipe` or a
            function that returns one. With `ps` > 0 other processes must be able to find it, so it stands at the top
            level of a module, and the script that calls this guards the call by `if __name__ == "__main__":`.
        stream: where progress is shown; standard output if None.
        quiet: show nothing.
        **options: see `evener.Settings`: mode, ps, workers, train_steps, batch_size, logdir, recipe_options, ...

    Raises:
        ConfigError: an option or recipe that cannot work.
        TaskFailed: a task of a cluster failed.
        KeyboardInterrupt: after Ctrl-C, when everything was saved and has ended.
        Exception: in one process, whatever the recipe's own code raised.

    >>> result = run("mnist", train_steps=20, quiet=True, logdir=getfixture("tmp_path"))  # doctest: +SKIP
    """
    if (reference := importing()) is not None:
        raise ConfigError(
            f"{reference.rpartition(':')[0]} starts a run while it is imported.",
            why="every task imports the file of its recipe, and would start another run there.",
            fix='put the call of evener.run under: if __name__ == "__main__":',
        )
    settings, made = _settings(recipe, options)
    _make_logdir(Path(settings.logdir))
    if settings.ps and settings.recipe_options.get("download"):
        _download(settings)
    outcome = Outcome()
    started, began = time.monotonic(), process_seconds()
    first_step: list[float] = []
    tasks = [f"ps:{i}" for i in range(settings.ps)] + [f"worker:{i}" for i in range(settings.workers)]
    title = f"{settings.recipe}: {settings.mode if settings.ps else 'one process'}, logs in {settings.logdir}"
    view = make_view(stream=io.StringIO() if quiet else stream or sys.stdout, tasks=tasks, title=title,
                     clock=time.monotonic)  # fmt: skip

    def hear(report: AnyReport) -> None:
        if not first_step and isinstance(report, Progress) and report.updates > 0:
            first_step.append(began + time.monotonic() - started)
        outcome.hear(report)
        view.hear(report)

    try:
        if settings.ps == 0:
            from evener.launch.alone import run_alone

            cut_short = run_alone(settings, made, hear) == "interrupted"
        else:
            cut_short = bool(LocalRun(settings, hear=hear, say=view.say, clock=time.monotonic).run())
    finally:
        view.close()
    if cut_short:
        at = f" at step {outcome.finished.global_step}" if outcome.finished else ""
        raise KeyboardInterrupt(f"interrupted{at}; the same command continues from {settings.logdir}")
    return outcome.result(settings, first_step_seconds=first_step[0] if first_step else None)


def evaluate(
    recipe: str | Recipe, checkpoint: str | Path, *, recipe_options: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Metrics of a checkpoint on the recipe's whole validation set, with and without moving averages.

    Args:
        checkpoint: a checkpoint's directory, or a logdir, whose newest good checkpoint is taken.
    """
    from evener.launch.assess import assess

    return assess(recipe, Path(checkpoint), recipe_options or {})


def be_task(
    recipe: str, flags: Flags, *, download_only: bool = False, stream: TextIO | None = None, **options: Any
) -> None:
    """Be one task of a cluster until the run is over: `evener task`.

    Args:
        flags: what the command line says of the cluster; else TF_CONFIG, torchrun's or Slurm's variables do.
        download_only: only load the recipe's data, so that it is there when the tasks start.
    """
    from evener.launch.member import run_member, settings_for
    from evener.recipe import resolve

    if download_only:
        resolve(recipe, options.get("recipe_options") or {}).data()
        return
    found = find(flags)
    settings = settings_for(found.cluster, _settings(recipe, options)[0])
    _make_logdir(Path(settings.logdir))
    title = f"{settings.recipe}: {found.task}, {settings.mode}, logs in {settings.logdir}"
    view = make_view(stream=stream or sys.stdout, tasks=[str(found.task)], title=title, clock=time.monotonic)
    try:
        run_member(found, settings, view.hear)
    finally:
        view.close()


def explain_task(flags: Flags) -> str:
    """Which cluster this process would be in, as which task, and which source said so."""
    return explain(find(flags))


def _settings(recipe: object, options: Mapping[str, Any]) -> tuple[Settings, Recipe | None]:
    given = {**options}
    made: Recipe | None = None
    if isinstance(recipe, str):
        given["recipe"] = recipe
    elif given.get("ps"):
        from evener.recipe import reference_of

        reference = reference_of(recipe)
        if reference is None:
            raise ConfigError(
                f"other processes cannot find the recipe {recipe!r}.",
                why="with ps > 0 every task imports it by name.",
                fix="assign it to a name at the top level of a module, and pass that.",
            )
        given["recipe"] = reference
    else:
        from evener.recipe import from_object, reference_of

        made = from_object(recipe, given.get("recipe_options") or {})
        given["recipe"] = reference_of(recipe) or made.name
    if "logdir" in given:
        given["logdir"] = str(given["logdir"])
    settings = settings_module.make(given)
    return (settings if settings.logdir else replace(settings, logdir=_fresh_logdir(settings.recipe))), made


def _download(settings: Settings) -> None:
    """Once, here, where its progress can be seen: tasks would wait for each other and write bars into logs."""
    from evener.recipe import resolve

    resolve(settings.recipe, settings.recipe_options).data()


def _fresh_logdir(recipe: str) -> str:
    name = recipe.rpartition(":")[2] or "run"
    base = Path("evener-runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    taken = (base.with_name(f"{base.name}-{n}") if n else base for n in range(1000))
    return str(next(path for path in taken if not path.exists()))


def _make_logdir(logdir: Path) -> None:
    try:
        (logdir / "logs").mkdir(parents=True, exist_ok=True)
        probe = logdir / "logs" / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"the logdir {logdir} cannot be written ({error.strerror}).", fix="choose another --logdir."
        ) from error


__all__ = ["EvenerError", "evaluate", "run"]
