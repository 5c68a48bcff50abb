"""Which update rules a run has, what they need, and what people are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evener.choices import compensated_in_flight
from evener.errors import ConfigError
from evener.files import memory
from evener.recipes.recipe import Recipe
from evener.rules import Compensates, Rule, chain, described
from evener.settings import Settings
from evener.wire.layout import ITEMSIZE, Layout


def ruled(recipe: Recipe, settings: Settings) -> tuple[Recipe, str]:
    """The recipe with the rules of the run: what the command line says of them counts.

    Where no gradient is ever late there are none, so that one process, towers and sync stay the same; then a sentence
    says so.

    Raises:
        ConfigError: they do not go with the settings.
    """
    rules = chain(recipe.rules, settings.staleness_lr, settings.compensate)
    if note := idle(recipe.rules, settings):
        return replace(recipe, rules=()), note
    compensating = [rule for rule in rules if isinstance(rule, Compensates)]
    if compensating and settings.terms.in_flight > 1:
        raise compensated_in_flight(described(compensating))
    if compensating and recipe.clip_norm is not None and settings.ps > 1:
        raise ConfigError(
            f"clip_norm={recipe.clip_norm} does not go with {described(compensating)} on {settings.ps} ps tasks.",
            why="the norm of a gradient that each ps task has changed in its own part is known to none of them.",
            fix="use --ps 1, or --clip-value.",
        )
    return replace(recipe, rules=rules), ""


def idle(rules: Sequence[Rule], settings: Settings) -> str:
    """A sentence where rules have nothing to do, whatever is said of them; else empty."""
    rules = chain(rules, settings.staleness_lr, settings.compensate)
    if not rules or settings.late:
        return ""
    where = f"in mode {settings.mode.name}" if settings.ps else "without ps tasks"
    return f"{described(rules)} changes nothing {where}: no gradient is late"


def copies_told(recipe: Recipe, layout: Layout, settings: Settings) -> str:
    """What it costs each ps task that rules ask what workers were sent; empty where none does.

    Raises:
        ConfigError: it is more than this machine has.
    """
    compensating = [rule for rule in recipe.rules if isinstance(rule, Compensates)]
    if not compensating:
        return ""
    trained = [sum(_nbytes(layout, shard)) for shard in range(layout.shards)]
    largest = max(trained) * settings.workers
    names = described(compensating)
    if largest > memory():
        raise ConfigError(
            f"{names} keeps {settings.workers} copies of the parameters on each ps task: {largest / 1e6:.0f} MB, and "
            f"this machine has {memory() / 1e6:.0f} MB.",
            why="it compares the parameters with what each worker was sent.",
            fix="use more ps tasks on more machines, fewer workers, or --staleness-lr delay_adaptive alone.",
        )
    return f"{names} keeps {settings.workers} copies of the parameters: {largest / 1e6:.3g} MB on each ps"


def _nbytes(layout: Layout, shard: int) -> list[int]:
    """Of the trained pieces of a shard."""
    pieces = [piece for piece in layout.on(shard) if piece.spec.trained]
    return [(piece.stop - piece.start) * ITEMSIZE[piece.spec.dtype] for piece in pieces]
