"""`evener.run`: what the command line calls, and what a notebook or a script can call just as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from evener.cluster.environment import Rank, rank_here, seeing_devices
from evener.cluster.private import keyed_here
from evener.commands.on_ray import OnRay, on_ray
from evener.commands.preparation import as_rank, download, make_logdir, options_there, script_settings, settings_of
from evener.commands.training import train_apart, train_here, watched
from evener.errors import ConfigError, EvenerError
from evener.recipes.references import importing
from evener.report import AnyReport
from evener.result import Result
from evener.settings import Settings, check_gpus

if TYPE_CHECKING:
    from torch import nn

    from evener.audit import Account
    from evener.cluster.cluster import ClusterSpec
    from evener.commands.export import Exported
    from evener.data.tfrecord.writer import Written
    from evener.launch.starters.process import Starter
    from evener.recipes.recipe import Recipe


def run(
    recipe: str | Recipe | Callable[..., Recipe],
    *,
    stream: TextIO | None = None,
    quiet: bool = False,
    existing_servers: ClusterSpec | None = None,
    launcher: str = "local",
    **options: Any,
) -> Result:
    """Train a recipe and return its figures.

    Args:
        recipe: a shipped recipe's name ("mnist"), "module:attribute", "file.py:attribute", or a `Recipe` or a
            function that returns one. With `ps` or `towers` other processes must be able to find it, so it stands at
            the top level of a module, and the script that calls this guards the call by
            `if __name__ == "__main__":`. Under torchrun, without `ps`, this process is one of its towers.
        stream: where progress is shown; standard output if None.
        quiet: show nothing.
        existing_servers: run on these standing servers (`evener server`), and leave them waiting for the next run.
        launcher: "local": tasks are processes of this machine; "ray": actors of a Ray cluster.
        **options: see `evener.Settings`: mode, ps, workers, towers, train_steps, logdir, recipe_options, ...; with
            "ray" also those of `RayAsked`: ray_address, resources_per_worker, ...

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
    if existing_servers is not None:
        options = options_there(recipe, existing_servers, options)
    ray, options = on_ray(launcher, options)
    rank = None if options.get("ps") or options.get("pipeline_stages", 1) != 1 else rank_here()
    leads = rank is None or rank.rank == 0
    start, here = Path.cwd(), existing_servers is None
    settings, made = settings_of(recipe, as_rank(options, rank), elsewhere=rank is None, fresh_logdir=leads, here=here)
    settings = ray.settings(settings) if ray else _checked(settings, rank, here)
    if settings.logdir and leads and here:
        make_logdir(Path(settings.logdir), settings.resume_step)
    apart = rank is None and settings.way != "single"  # in processes that this one starts
    if apart and here and settings.recipe_options.get("download"):
        download(settings)
    starter = _starter(existing_servers, ray, settings, start)

    def train(hear: Callable[[AnyReport], None], say: Callable[[str], None]) -> str:
        if not apart:
            return "SIGINT" if train_here(settings, made, rank, hear) == "interrupted" else ""
        return train_apart(settings, hear, say, starter)

    result = watched(settings, train, stream=stream, quiet=quiet or not leads, start=start, rank=rank)
    return replace(result, leads=leads, made=made)


def launch(
    script: str | Path,
    *args: str,
    stream: TextIO | None = None,
    quiet: bool = False,
    existing_servers: ClusterSpec | None = None,
    launcher: str = "local",
    **options: Any,
) -> Result:
    """Run a program with a training loop of its own, which calls `evener.join`, and return the run's figures.

    Args:
        script: the program.
        *args: its arguments, as on a command line.
        stream, quiet: as for `run`.
        existing_servers: run a program that lies on these standing servers, where their owner has allowed it.
        launcher: as for `run`.
        **options: see `evener.Settings`: mode, ps, workers, towers, train_steps, logdir, ...

    Raises:
        ConfigError: an option or a program that cannot work.
        TaskFailed: the program, or a task, has failed.
        KeyboardInterrupt: after Ctrl-C, when everything was saved and has ended.
        Exception: in one process, whatever the program raised.
    """
    from evener.task.alone import in_this_process
    from evener.task.script import Joining, run_script

    start, here = Path.cwd(), existing_servers is None
    if existing_servers is not None:
        options = options_there(script, existing_servers, options)
    ray, options = on_ray(launcher, options)
    settings = script_settings(script, args, options, here=here)
    settings = ray.settings(settings) if ray else _checked(settings, None, here)
    if here:
        make_logdir(Path(settings.logdir), settings.resume_step)
    starter = _starter(existing_servers, ray, settings, start)

    def train(hear: Callable[[AnyReport], None], say: Callable[[str], None]) -> str:
        if settings.way != "single":
            return train_apart(settings, hear, say, starter)
        joining = Joining(job="worker", index=0, settings=settings, report=hear)
        with seeing_devices(settings, "worker"), in_this_process(settings, joining) as interrupted:
            run_script(joining)
        return "SIGINT" if interrupted else ""

    return watched(settings, train, stream=stream, quiet=quiet, start=start)


def evaluate(
    recipe: str | Recipe,
    checkpoint: str | Path,
    *,
    recipe_options: Mapping[str, Any] | None = None,
    place: Mapping[str, str] | str | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Metrics of a checkpoint on the recipe's whole validation set, with and without moving averages.

    Args:
        checkpoint: a checkpoint's directory, or a logdir, whose newest good checkpoint is taken.
        place: modules of the model on devices, as for `run`; one that is missing or too small is an error here.
        batch_size: samples at once; that of the training if None.
    """
    from evener.commands.assess import assess

    return assess(recipe, Path(checkpoint).absolute(), recipe_options or {}, place, batch_size)


def load(
    recipe: str | Recipe | Callable[..., Recipe],
    path: str | Path,
    *,
    ema: bool = False,
    recipe_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The trained module, in eval mode: plain PyTorch on the CPU, that belongs to the caller.

    Args:
        recipe: as for `run`; the options that it was trained with count, unless others are given.
        path: a logdir, whose newest good checkpoint is taken, or one checkpoint's directory.
        ema: with the moving averages of the parameters.

    Raises:
        CheckpointError: there is no whole checkpoint, or it is of another model.
        ConfigError: averages are wanted and there are none, or a recipe that cannot be made.
    """
    from evener.trained import load_model

    return load_model(recipe, path, ema=ema, options=recipe_options)


def export(  # noqa: PLR0913 - what is read, what is written, and how
    path: str | Path,
    file: str | Path,
    recipe: str | Recipe | Callable[..., Recipe] | None = None,
    *,
    ema: bool = False,
    recipe_options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Exported:
    """Write the trained model's complete `state_dict` to one file: `evener export`.

    Args:
        file: ends in .pt or .safetensors.
        recipe: as for `load`; None: the one that the checkpoint names.
        force: the file may be replaced.
    """
    from evener.commands import export as exporting

    return exporting.export(Path(path), Path(file), recipe, ema=ema, options=recipe_options or {}, force=force)


def audit(logdir: str | Path) -> Account:
    """Was every sample of every epoch applied exactly once, or named as not applied? What the logdir's ledger shows.

    Raises:
        CheckpointError: there is no ledger in it.
    """
    from evener.commands.account import account

    return account(Path(logdir))


def convert(
    recipe: str | Recipe, directory: str | Path, *, shards: int = 1, recipe_options: Mapping[str, Any] | None = None
) -> list[Written]:
    """Write a recipe's images as TFRecord files: `evener data convert`. Files that exist are never replaced.

    Args:
        directory: gets train-00000-of-0000N.tfrecord, ..., and the same for validation.
        shards: N.
    """
    from evener.data.dataset import as_data
    from evener.data.tfrecord import images
    from evener.recipes.recipe import from_object, resolve

    into = Path(directory).absolute()  # before the recipe's code may change the current one
    made = (resolve if isinstance(recipe, str) else from_object)(recipe, recipe_options or {})  # type: ignore[arg-type]
    return images.convert(as_data(made.data()), into, shards=shards, name=made.name)


def _checked(settings: Settings, rank: Rank | None, here: bool) -> Settings:
    """The settings of a run of this machine, or of standing servers; with keys where links need them."""
    check_gpus(settings, rank.local_size if rank else settings.processes)
    return keyed_here(settings) if settings.ps and here else settings


def _starter(
    servers: ClusterSpec | None, ray: OnRay | None, settings: Settings, start: Path
) -> Callable[[Callable[[str], None]], Starter] | None:
    """Who starts the tasks, once it can tell what it does; None: they are processes of this machine."""
    if ray is not None:
        if ray.asked.detach:
            raise ConfigError(
                "a run that is detached has no figures to return.",
                why="it goes on when this call is over.",
                fix="leave detach out, or start it from a shell: evener train ... --launcher ray --detach",
            )
        return partial(ray.starter, settings, start)
    return None if servers is None else partial(_reserved, servers, settings)


def _reserved(servers: ClusterSpec, settings: Settings, say: Callable[[str], None]) -> Starter:
    from evener.launch.starters.remote import StandingServers

    standing = StandingServers(servers, settings)
    standing.reserve(say)
    return standing


__all__ = ["EvenerError", "audit", "evaluate", "export", "launch", "load", "run"]
