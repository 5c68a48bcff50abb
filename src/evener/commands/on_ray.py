"""A run whose tasks stand on a Ray cluster: `--launcher ray`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evener.errors import ConfigError
from evener.launch.starters.ray.asked import NAMES, RayAsked, asked_of, others_of
from evener.launch.starters.ray.told import Start, mark_of
from evener.settings import Settings

if TYPE_CHECKING:
    from evener.launch.starters.process import Starter
    from evener.launch.starters.ray.joining import RayConnection

LAUNCHERS = ("local", "ray")


def on_ray(launcher: str, options: Mapping[str, Any]) -> tuple[OnRay | None, dict[str, Any]]:
    """What Ray is asked for, None without it; and the other options, as they are there.

    Raises:
        ConfigError: options of Ray without it, or those that do not go with it.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"there is no launcher {launcher!r}.", fix=f"use one of: {', '.join(LAUNCHERS)}.")
    if launcher != "ray":
        if given := [name for name in NAMES if options.get(name)]:
            raise ConfigError(
                f"--{given[0].replace('_', '-')} is an option of another launcher.", fix="add --launcher ray."
            )
        return None, others_of(options)
    asked, rest = asked_of(options), others_of(options)
    if find_spec("ray") is None:
        raise ConfigError(
            "--launcher ray needs the package ray.", why="it is not installed here.", fix="pip install 'evener[ray]'."
        )
    for name, fix in (
        ("keys", "leave it out: each task makes its own on its node."),
        ("ps_hosts", "leave it out: Ray finds the nodes, tasks find free ports."),
        ("num_gpus", """use --resources-per-worker '{"GPU": 1}': Ray says which."""),
        ("visible_devices", "leave it out: Ray says which GPUs a worker sees."),
    ):
        if rest.get(name):
            raise ConfigError(f"--{name.replace('_', '-')} does not go with --launcher ray.", fix=fix)
    return OnRay(asked), {**rest, "num_gpus": asked.gpus, "share_gpus": asked.gpus > 0}


@dataclass(frozen=True, slots=True)
class OnRay:
    """What is asked of a Ray cluster for one run."""

    asked: RayAsked

    def settings(self, settings: Settings) -> Settings:
        """The settings of a run there. Raises ConfigError: it has no ps tasks."""
        if not settings.ps:
            raise ConfigError(
                "--launcher ray needs ps tasks.",
                why="workers that come and go find each other through them.",
                fix="add --ps 1; towers and pipelines run on one machine.",
            )
        return replace(settings, ps_hosts=("0.0.0.0:0",) * settings.ps)  # each actor writes its own address there

    def starter(self, settings: Settings, start: Path, say: Callable[[str], None]) -> Starter:
        """Connected to the cluster, with room for the tasks. Raises EvenerError."""
        cluster, began = self.connected(settings, start, say)
        say(f"runs on {cluster.where}")
        return placed(self.asked, settings, began, say, leave=cluster.leave)

    def connected(self, settings: Settings, start: Path, say: Callable[[str], None]) -> tuple[RayConnection, Start]:
        """This process connected to the cluster, which gets from here what the run needs. Raises EvenerError."""
        from evener.launch.starters.ray.joining import joined
        from evener.launch.starters.ray.shipping import shipped

        environment, there = shipped(settings, start, self.asked.runtime_env)
        say(f"connects to {self.asked.ray_address or 'the Ray of this machine'}")
        cluster = joined(self.asked.ray_address, environment, 0 if self.asked.detach else self._cpus(settings))
        token = f".seen-{secrets.token_hex(8)}"
        return cluster, Start(str(start), mark_of(str(start)), settings.logdir, token, not settings.insecure, there)

    def _cpus(self, settings: Settings) -> int:
        jobs = (("ps", settings.ps), ("worker", settings.workers))
        return max(1, round(sum(self.asked.needs(job)["CPU"] * count for job, count in jobs) + 0.5))


def placed(
    asked: RayAsked, settings: Settings, start: Start, say: Callable[[str], None], *, leave: Callable[[], None]
) -> Starter:
    """A starter with room for the tasks that the run cannot begin without. Raises Unavailable."""
    from evener.launch.starters.ray.starter import RayTasks

    tasks = RayTasks(asked, settings, start, leave)
    try:
        tasks.reserve(say)
    except BaseException:
        tasks.close()
        raise
    return tasks
