"""Detached runs of the cluster that this process is connected to, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.util import list_named_actors

from evener.errors import ConfigError, Unavailable
from evener.launch.starters.ray.joining import NAMESPACE
from evener.launch.starters.ray.run_host import News, RunHost

PREFIX = "evener run "
#: Seconds that the launcher of a run may take to stand on the cluster, and to answer.
STAND, ANSWER = 60.0, 40.0


class Detached:
    """One of them."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def options(self) -> dict[str, Any]:
        """Those of its `Settings`."""
        options: dict[str, Any] = self._get(self._actor.about.remote())
        return options

    def hear(self, since: int) -> News | None:
        """As `RunHost.hear`. None: it is over, and somebody else who asked was told how."""
        try:
            news: News = self._get(self._actor.hear.remote(since))
        except ActorDiedError:
            return None
        return news

    def stop(self) -> None:
        with contextlib.suppress(ActorDiedError):  # it is over
            self._get(self._actor.stop.remote())

    def end(self) -> None:
        """It is over, and was asked all."""
        with contextlib.suppress(Exception):  # it has just gone by itself
            ray.kill(self._actor, no_restart=True)

    def _get(self, asked: Any) -> Any:
        try:
            return ray.get(asked, timeout=ANSWER)
        except GetTimeoutError as error:
            raise Unavailable(
                f"the launcher of the run has not answered for {ANSWER:g} s.", why="its node may be lost; Ray brings "
                "it back where it finds room.", fix="try again; `ray list actors` shows it.",
            ) from error  # fmt: skip


def leave_there(name: str, options: Mapping[str, Any], train: Callable[..., bool]) -> None:
    """Start the launcher of a run. Raises ConfigError: one of this name is there."""
    if find(name) is not None:
        raise ConfigError(
            f"a run {name!r} is detached on this cluster already.",
            why="it is called after its logdir.",
            fix=f"give another --logdir, or end it: evener stop {name}",
        )
    actor: Any = (
        ray.remote(RunHost)
        .options(name=PREFIX + name, namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_restarts=-1)
        .remote(dict(options), train, end_this)
    )
    ray.get(actor.about.remote(), timeout=STAND)


def end_this() -> None:
    """For good: this very actor."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def names() -> list[str]:
    """Of all."""
    found = (entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE)
    return sorted(name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX))


def find(name: str) -> Detached | None:
    """The run of this name, if there is one."""
    try:
        return Detached(ray.get_actor(PREFIX + name, namespace=NAMESPACE))
    except ValueError:
        return None
