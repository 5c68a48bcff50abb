"""What a person asks of a Ray cluster: where it is, what a task needs there, and what is shipped to its nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from evener.errors import ConfigError

#: How Ray may put workers: near each other, or apart.
PLACEMENTS = ("pack", "spread")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayAsked:
    """Options of `--launcher ray`, beside those of the run.

    Raises:
        ConfigError: a value that cannot work.
    """

    ray_address: str = ""  # "auto", "local", "HOST:PORT", "ray://HOST:10001"; empty: the one here, or a new one
    resources_per_worker: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    resources_per_ps: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    ray_placement: str = "pack"  # of the workers; ps tasks are spread
    runtime_env: Mapping[str, Any] = field(default_factory=dict)  # as Ray takes it; what is not said is found out
    detach: bool = False  # the run goes on when its launcher's process has ended

    def __post_init__(self) -> None:
        for name in ("resources_per_worker", "resources_per_ps", "runtime_env"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, _object(name, value))
        for name in ("resources_per_worker", "resources_per_ps"):
            object.__setattr__(self, name, _resources(name, getattr(self, name)))
        if self.ray_placement not in PLACEMENTS:
            raise ConfigError(
                f"--ray-placement {self.ray_placement!r} is unknown.", fix=f"choose {' or '.join(PLACEMENTS)}."
            )

    def needs(self, job: str) -> dict[str, float]:
        """Of one task of this job."""
        return dict(self.resources_per_ps if job == "ps" else self.resources_per_worker)

    @property
    def gpus(self) -> int:
        """Of one worker; a share of one is one that it sees."""
        return -int(-self.resources_per_worker.get("GPU", 0.0) // 1)


NAMES = tuple(entry.name for entry in fields(RayAsked))


def asked_of(options: Mapping[str, Any]) -> RayAsked:
    """Those among the options that are of Ray."""
    return RayAsked(**{name: value for name, value in options.items() if name in NAMES and value is not None})


def others_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The rest: those of the run."""
    return {name: value for name, value in options.items() if name not in NAMES}


def _object(name: str, text: str) -> Any:
    option = "--" + name.replace("_", "-")
    try:
        made = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{option} {text!r} is no JSON ({error}).", fix=f"""write it so: {option} '{{"GPU": 1}}'."""
        ) from error
    if not isinstance(made, dict):
        raise ConfigError(f"{option} {text!r} is no object.", fix=f"""write it so: {option} '{{"GPU": 1}}'.""")
    return made


def _resources(name: str, given: Mapping[str, Any]) -> dict[str, float]:
    """As Ray counts them, with one CPU where nothing is said of it."""
    option = "--" + name.replace("_", "-")
    for resource, amount in given.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise ConfigError(
                f"{option} asks for {amount!r} of {resource}.", fix="give a number, as Ray counts that resource."
            )
        if amount > 1 and amount != int(amount):
            raise ConfigError(f"{option} asks for {amount} of {resource}.", fix="above 1, Ray takes whole numbers.")
    return {"CPU": 1.0, **{resource: float(amount) for resource, amount in given.items()}}
