"""Commands of one machine of a cluster: be one task, stand by, say who this process would be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from evener import settings as settings_module
from evener.cluster.environment import Flags, explain, find
from evener.cluster.private import keyed
from evener.commands.preparation import make_logdir, script_settings, settings_of
from evener.report import AnyReport
from evener.result import Outcome, Result
from evener.view.shown import shown
from evener.view.texts import seen_from


def be_task(  # noqa: PLR0913 - what a command line can say
    recipe: str | None,
    flags: Flags,
    *,
    program: Sequence[str] = (),
    download_only: bool = False,
    rendezvous: str = "",
    stream: TextIO | None = None,
    **options: Any,
) -> Result | None:
    """Be one task of a cluster until the run is over: `evener task`. The figures of the run, at ps:0 alone.

    Args:
        recipe: as for `run`; None where there is a program.
        flags: what the command line says of the cluster; else TF_CONFIG, torchrun's or Slurm's variables do.
        program: a script with a loop of its own, and its arguments, instead of a recipe.
        rendezvous: a directory that all tasks share, where ps tasks with port 0 say which they got.
        download_only: only load the recipe's data, so that it is there when the tasks start.
    """
    from evener.recipes.recipe import resolve
    from evener.task.member import options_in, run_member

    if download_only and recipe is not None:
        resolve(recipe, options.get("recipe_options") or {}).data()
        return None
    found, start = find(flags), Path.cwd()
    asked = options_in(found.cluster, options)
    made = script_settings(program[0], program[1:], asked) if program else settings_of(recipe, asked)[0]
    settings = keyed(made, found.cluster.ps)
    make_logdir(Path(settings.logdir), settings.resume_step if str(found.task) == "ps:0" else None)
    title = f"{settings.recipe}: {found.task}, {settings.mode.name}, logs in {seen_from(start, settings.logdir)}"
    outcome = Outcome()
    with shown(stream, tasks=[str(found.task)], title=title) as view:

        def hear(report: AnyReport) -> None:
            outcome.hear(report)
            view.hear(report)

        run_member(found, settings, hear, rendezvous=str(start / rendezvous) if rendezvous else "")
    return outcome.result(settings, first_step_seconds=None) if outcome.finished else None


def stand_by(
    flags: Flags,
    say: Callable[[str], None],
    *,
    recipes: Sequence[str] = (),
    scripts: Sequence[str] = (),
    logdirs: Sequence[str] = (),
    **given: Any,
) -> None:
    """Be a standing server until SIGTERM or Ctrl-C: `evener server`.

    Args:
        flags: as for `be_task`.
        recipes: what clients may name, as "mnist" or "mypackage.*"; empty: the recipes that ship.
        scripts: directories whose programs they may run; empty: none.
        logdirs: where runs may write; empty: below the current directory.
        **given: the server's own settings: keys, insecure, heartbeat_timeout.
    """
    from evener.launch.standing.allowed import Allowed
    from evener.launch.standing.process import stand

    stand(find(flags), settings_module.make(given), Allowed.of(recipes, logdirs, scripts), say)


def explain_task(flags: Flags) -> str:
    """Which cluster this process would be in, as which task, and which source said so."""
    return explain(find(flags))
