"""From what a caller of `evener.run` says to settings, and to a logdir that can be written."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evener import settings as settings_module
from evener.cluster.environment import Rank
from evener.commands.resume import resume_from
from evener.errors import ConfigError
from evener.settings import Settings

if TYPE_CHECKING:
    from evener.cluster.cluster import ClusterSpec
    from evener.recipes.recipe import Recipe

log = logging.getLogger(__name__)


def how(settings: Settings) -> str:
    """How gradients become updates, for a title."""
    few = f", {settings.min_workers} to {settings.workers} workers" if settings.min_workers else ""
    ways = {
        "single": "one process",
        "towers": f"{settings.towers} towers",
        "pipeline": f"{settings.pipeline_stages} stages ({settings.pipeline_schedule}, {settings.chunks} microbatches)",
    }
    way = ways.get(settings.way, settings.way)
    if settings.batch_by_speed:
        return f"{way}, batches by speed{few}"
    sizes = f", batches of {', '.join(map(str, settings.batch_sizes))}" if settings.batch_sizes else ""
    return f"{way}{sizes}{few}"


def settings_of(
    recipe: object, options: Mapping[str, Any], *, elsewhere: bool = True, fresh_logdir: bool = True, here: bool = True
) -> tuple[Settings, Recipe | None]:
    """Directories of this machine are absolute from here on: the recipe's code may change the current one.

    Args:
        elsewhere: ps tasks and towers are other processes than this one.
        here: the logdir is on this machine.
    """
    start = Path.cwd()
    given = {**options, **_absolute(options, start, here)}
    apart = given.get("ps") or given.get("pipeline_stages", 1) != 1 or (given.get("towers") or 0) > 1
    if given.get("recipe_options"):
        given["recipe_options"] = {
            name: _as_data(name, value, bool(apart)) for name, value in given["recipe_options"].items()
        }
    made: Recipe | None = None
    if isinstance(recipe, str):
        given["recipe"] = recipe
    elif elsewhere and apart:
        from evener.recipes.recipe import reference_of

        reference = reference_of(recipe)
        if reference is None:
            raise ConfigError(
                f"other processes cannot find the recipe {recipe!r}.",
                why="every task imports it by name.",
                fix="assign it to a name at the top level of a module, and pass that.",
            )
        given["recipe"] = reference
    else:
        from evener.recipes.recipe import from_object, reference_of

        made = from_object(recipe, given.get("recipe_options") or {})
        given["recipe"] = reference_of(recipe) or made.name
    settings = settings_module.make(given)
    named = settings.logdir or not fresh_logdir
    return (settings if named else replace(settings, logdir=new_logdir(settings.recipe, start))), made


def _as_data(name: str, value: Any, apart: bool) -> Any:
    """An option's value as other processes, and checkpoints, have it; the declared type makes of it what it was.

    Raises:
        ConfigError: it cannot travel, and has to.
    """
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list | set | frozenset):
        return [_as_data(name, item, apart) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # in JSON there is no such number
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _as_data(name, item, apart) for key, item in value.items()}
    if apart and not isinstance(value, str | int | float | None):
        raise ConfigError(
            f"option {name}={value!r} cannot be given to other processes.",
            why=f"they make the recipe anew; numbers, texts, paths, enums and collections of these reach them, no "
            f"{type(value).__name__}.",
            fix="give a name or a number of which the recipe makes it.",
        )
    return value


def script_settings(
    script: str | Path, args: Sequence[str], options: Mapping[str, Any], *, here: bool = True
) -> Settings:
    """The settings of a run of a program. Raises ConfigError where there is none.

    Args:
        here: it lies on this machine, and so does the logdir.
    """
    start = Path.cwd()
    path = start / Path(script).expanduser() if here else Path(script)
    if here and not path.is_file():
        raise ConfigError(
            f"there is no program {str(script)!r}.",
            why="it is a Python file with a training loop that calls evener.join().",
            fix="name it: evener launch train.py ARGS; recipes are trained by `evener train`.",
        )
    named = _absolute(options, start, here)
    program = {"recipe": path.name, "script": str(path), "script_args": tuple(args)}
    if not options.get("batch_by_speed"):
        options = {name: value for name, value in options.items() if name != "batch_size"}  # its loader's counts
    sized = {} if options.get("batch_sizes") else {"batch_size": 1}
    given = {**sized, **options, **named, **program}
    settings = settings_module.make(given)
    return settings if settings.logdir else replace(settings, logdir=new_logdir(path.stem, start))


def _absolute(options: Mapping[str, Any], start: Path, here: bool) -> dict[str, str]:
    """Paths of this machine, of whoever runs a command in `start`.

    Raises:
        ConfigError: one is a URL, of which a path would be a directory named "s3:".
    """
    mine = [name for name in ("keys", "init_from", "preemption_notice", *["logdir"] * here) if options.get(name)]
    urls = [name for name in mine if "://" in str(options[name])]
    for name in urls:
        if name != "preemption_notice":  # which may be one, and says itself of which kind
            raise ConfigError(
                f"{name}={str(options[name])!r} cannot work.", why="it is a place on a file system, no URL.",
                fix="write a path; a bucket or a share can be mounted as one.",
            )  # fmt: skip
    return {name: str(start / options[name]) for name in mine if name not in urls}


def new_logdir(recipe: str, start: Path) -> str:
    """A directory of a name that no other run has. It is made here, so that two runs of one second get two."""
    base = start / "evener-runs" / f"{run_name(recipe)}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1000):
        path = base.with_name(f"{base.name}-{attempt}") if attempt else base
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # `make_logdir` meets it again, and says what is wrong
        return str(path)
    raise ConfigError(f"there are 1000 runs named {base} already.", fix="choose a --logdir.")


def run_name(recipe: str) -> str:
    """What a run is called after its recipe: by its file or module, and by its function unless that is `recipe`.

    >>> [run_name(recipe) for recipe in ("mnist", "my_train.py:recipe", "a/b.py:small", "package.module:recipe")]
    ['mnist', 'my_train', 'b-small', 'module']
    """
    place, _, attribute = recipe.rpartition(":")
    name = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    parts = [part for part in (name, attribute) if part]
    return "-".join(parts[:1] if parts[1:] == ["recipe"] else parts).replace("/", "-") or "run"


def make_logdir(logdir: Path, resume_step: int | None = None) -> None:
    """Make a run's directory, or make an old one go on from this step.

    Raises:
        ConfigError: it cannot be written.
        CheckpointError: it has no whole checkpoint of that step.
    """
    if str(logdir).encode(errors="replace") != os.fsencode(logdir):
        raise ConfigError(
            f"the logdir {str(logdir)!r} cannot be used.",
            why="its name is not UTF-8, and could not be told to other tasks.",
            fix="choose another --logdir.",
        )
    if resume_step is not None:
        resume_from(logdir / "checkpoints", resume_step, log.warning)
    try:
        (logdir / "logs").mkdir(parents=True, exist_ok=True)
        probe = logdir / "logs" / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"the logdir {logdir} cannot be written ({error.strerror}).", fix="choose another --logdir."
        ) from error


def download(settings: Settings) -> None:
    """Once, here, where its progress can be seen: tasks would wait for each other and write bars into logs."""
    from evener.recipes.recipe import resolve

    with contextlib.chdir("."):  # tasks begin where this process began, wherever the recipe's code goes
        resolve(settings.recipe, settings.recipe_options).data()


def as_rank(options: Mapping[str, Any], rank: Rank | None) -> dict[str, Any]:
    """Under torchrun its processes are the towers."""
    if rank is None:
        return dict(options)
    for name in ("towers", "workers"):
        if options.get(name) not in (None, rank.size):
            raise ConfigError(
                f"{name}={options[name]}, but torchrun has started {rank.size} processes.",
                why="each of them is one tower.",
                fix=f"leave it out, or start {options[name]} processes.",
            )
    return {**options, "towers": rank.size}


def options_there(recipe: object, servers: ClusterSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options on standing servers. The logdir is theirs: no directory is made here."""
    from evener.launch.starters.remote import check_recipe, options_for

    name = str(recipe) if isinstance(recipe, str | Path) else repr(recipe)
    if not name.endswith(".py"):
        check_recipe(name)
    if options.get("resume_step") is not None:
        raise ConfigError(
            "--resume-step does not go with --existing-servers.", why="the logdir is on their machine.",
            fix="set newer checkpoints aside there, by another name.",
        )  # fmt: skip
    if options.get("preemption_notice"):
        raise ConfigError(
            "--preemption-notice does not go with --existing-servers.", why="their machines are not this one.",
            fix="send SIGTERM to `evener server` there: all is saved, and the run ends.",
        )  # fmt: skip
    base, now = Path(name).stem if name.endswith(".py") else run_name(name), time.strftime("%Y%m%d-%H%M%S")
    fresh = Path("evener-runs") / f"{base}-{now}-{secrets.token_hex(2)}"
    return {"logdir": str(fresh), **options_for(servers, options)}
