"""A batch size for each worker: what may be chosen, and what may not be chosen beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evener.errors import ConfigError
from evener.policy.asynchronous import Async
from evener.policy.bounded import Bounded
from evener.policy.shares import SharePlan
from evener.policy.synchronous import Sync

if TYPE_CHECKING:
    from evener.settings import Settings

#: Modes that know gradients of unequal batches.
KNOWN = (Sync, Async, Bounded)
#: Samples of a batch, at most.
MOST = 1 << 24


def mean_of(sizes: Sequence[int]) -> int:
    """What counts as the batch size where one number is asked for: samples validated at once, and the like.

    >>> mean_of([64, 64, 16])
    48
    """
    return max(1, round(sum(sizes) / len(sizes)))


def check_batch_sizes(settings: Settings, usual: int) -> None:
    """Refuse what does not go together. `usual`: the batch size where nobody says one.

    Raises:
        ConfigError: naming the options.
    """
    _check_numbers("batch_sizes", settings.batch_sizes)
    _check_numbers("batch_caps", settings.batch_caps)
    if not settings.by_samples:
        for name, idle in (("batch_caps", not settings.batch_caps), ("batch_quantum", settings.batch_quantum == 1)):
            if not idle:
                raise ConfigError(
                    f"{name}={getattr(settings, name)} means nothing where all batches are of one size.",
                    fix=f"add --batch-by-speed, or leave --{name.replace('_', '-')} out.",
                )
        return
    option = "--batch-sizes" if settings.batch_sizes else "--batch-by-speed"
    if settings.batch_sizes and settings.batch_by_speed:
        raise ConfigError(
            "both --batch-sizes and --batch-by-speed say how large batches are.",
            fix="give one of them; --batch-by-speed shares out workers x --batch-size samples.",
        )
    if settings.batch_sizes and settings.batch_size not in (usual, mean_of(settings.batch_sizes)):
        raise ConfigError(
            f"both --batch-sizes and --batch-size {settings.batch_size} say how large batches are.",
            fix="leave --batch-size out.",
        )
    if settings.batch_sizes and settings.batch_quantum != 1:
        raise ConfigError(
            f"batch_quantum={settings.batch_quantum} means nothing beside --batch-sizes.",
            fix="leave it out, or let speeds decide: --batch-by-speed.",
        )
    if too_low := [cap for cap in settings.batch_caps if cap < settings.batch_quantum]:
        raise ConfigError(
            f"--batch-caps with {too_low[0]} is below --batch-quantum {settings.batch_quantum}.",
            why="everybody gets at least one quantum.", fix="raise it, or lower --batch-quantum.",
        )  # fmt: skip
    _check_ways(settings, option)
    _check_counts(settings)
    _check_sync(settings, option)
    plan_of(settings)


def plan_of(settings: Settings) -> SharePlan:
    """How the samples of a round are shared out. Raises ConfigError where they cannot be."""
    sizes = settings.batch_sizes or (settings.batch_size,) * members(settings)
    return SharePlan(
        sizes=sizes, by_speed=settings.batch_by_speed, quantum=settings.batch_quantum, caps=settings.batch_caps
    )


def members(settings: Settings) -> int:
    """Who has a batch size: the workers of ps tasks, or the towers."""
    return settings.workers if settings.ps else settings.towers


def _check_numbers(name: str, sizes: object) -> None:
    fix = "write one whole number from 1 for each worker: 64,64,16."
    if not isinstance(sizes, tuple):
        raise ConfigError(f"{name}={sizes!r} cannot work.", fix=fix)
    for size in sizes:
        if type(size) is not int or not 1 <= size <= MOST:
            raise ConfigError(f"{name} with {str(size)[:40]} cannot work.", why="a batch has samples.", fix=fix)


def _check_ways(settings: Settings, option: str) -> None:
    if settings.pipeline_stages > 1:
        raise ConfigError(
            f"{option} does not go with a pipeline.", why="its stages compute parts of the same batch.",
            fix="leave it out, and say --batch-size and --microbatches.",
        )  # fmt: skip
    if settings.script and not settings.ps:
        raise ConfigError(
            f"{option} needs ps tasks, where a program has a loop of its own.",
            why="they share out the samples of its loader.", fix="add --ps 1 --workers W.",
        )  # fmt: skip
    if settings.script and settings.batch_by_speed and settings.batch_size == 1:
        raise ConfigError(
            "--batch-by-speed shares out workers x --batch-size samples, and --batch-size is not given.",
            why="evener sets the size of the batches of the program's loader.", fix="say --batch-size B.",
        )  # fmt: skip
    if settings.ps == 0 and settings.towers < 2:
        raise ConfigError(
            f"{option} means nothing in one process.", why="it says how much each of several workers computes.",
            fix="add --ps 1 --workers W, or --towers T; or use --batch-size.",
        )  # fmt: skip
    if settings.ps == 0 and (settings.batch_by_speed or settings.batch_caps):
        raise ConfigError(
            f"{'--batch-by-speed' if settings.batch_by_speed else '--batch-caps'} needs ps tasks so far.",
            why="they measure workers and share out samples anew; towers have fixed sizes.",
            fix="add --ps 1 --workers W, or say --batch-sizes alone.",
        )
    if settings.ps and not isinstance(settings.mode, KNOWN):
        raise ConfigError(
            f"{option} does not go with mode {settings.mode.name} so far.",
            why="it counts gradients, whatever their size.",
            fix=f"use one of: {', '.join(mode.name for mode in KNOWN)}.",
        )
    if settings.batches > 1:
        raise ConfigError(
            f"{option} does not go with batches_per_step={settings.batches}.",
            why="each says how many samples are in a gradient.",
            fix="leave --batches-per-step out, and make the batches larger.",
        )
    if settings.on_nan == "rollback":
        raise ConfigError(
            f"{option} does not go with on_nan=rollback so far.",
            why="what is given out after it is cut in other places, so that no batch can be left out by its number.",
            fix="use --on-nan skip.",
        )


def _check_counts(settings: Settings) -> None:
    for name in ("batch_sizes", "batch_caps"):
        sizes = getattr(settings, name)
        if sizes and len(sizes) != (count := members(settings)):
            option, who = "--" + name.replace("_", "-"), "workers" if settings.ps else "towers"
            raise ConfigError(
                f"{option} names {len(sizes)} sizes for {count} {who}.",
                why=f"{who.removesuffix('s')} i has the i-th.",
                fix=f"name {count}, or start {len(sizes)} {who}.",
            )


def _check_sync(settings: Settings, option: str) -> None:
    mode = settings.mode
    if not isinstance(mode, Sync):
        return
    backups = mode.replicas_to_aggregate not in (None, settings.workers)
    wrong = {"replicas_to_aggregate": backups, "accumulate": mode.accumulate, "elastic": mode.elastic}
    for name in (name for name, given in wrong.items() if given):
        raise ConfigError(
            f"{option} does not go with {name}={getattr(mode, name)}.",
            why="a round is so many samples, whoever computes them: of a slow worker nothing is dropped, and the part "
            "of one who has died is computed by the others.",
            fix=f"leave --{name.replace('_', '-')} out.",
        )
