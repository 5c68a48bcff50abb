"""The modes in which gradients become updates, and which options belong to which of them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from evener.errors import ConfigError

if TYPE_CHECKING:
    from evener.settings import Settings

MODES = ("async", "sync", "bounded")

#: Local steps that a worker may be ahead of the slowest in mode bounded, where nobody says it.
STALENESS = 4

#: Options that one mode alone reads, and what they say there.
_BELONG = {
    "replicas_to_aggregate": ("sync", "it counts the gradients that ps tasks average in one update"),
    "accumulate": ("sync", "it lets a worker give several of the gradients that ps tasks average in one update"),
    "elastic": ("sync", "with fewer live workers it lets ps tasks average fewer gradients"),
    "staleness": ("bounded", "it bounds how far a worker may be ahead of the slowest"),
}


def check_mode(settings: Settings) -> None:
    """Refuse a mode that there is not, and options of a mode that is not chosen: they would change nothing.

    Raises:
        ConfigError: naming the option, and the mode that it belongs to.
    """
    if settings.mode not in MODES:
        near = difflib.get_close_matches(str(settings.mode), MODES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the modes are: {', '.join(MODES)}."
        raise ConfigError(f"unknown mode {settings.mode!r}.", fix=hint)
    for name, (mode, meaning) in _BELONG.items():
        value = getattr(settings, name)
        if value is None or value is False or (settings.ps and settings.mode == mode):
            continue
        where = f"in mode {settings.mode}" if settings.ps else "without ps tasks"
        missing = "" if settings.ps else "--ps P --workers W "
        raise ConfigError(
            f"{name}={value} means nothing {where}.",
            why=f"{meaning}: an option of mode {mode}.",
            fix=f"add {missing}--mode {mode}, or leave --{name.replace('_', '-')} out.",
        )
    _check_aggregate(settings)


def _check_aggregate(settings: Settings) -> None:
    aggregate = settings.replicas_to_aggregate
    if aggregate is not None and aggregate > settings.workers and not settings.accumulate:
        raise ConfigError(
            f"sync with replicas_to_aggregate={aggregate} can never take a step with {settings.workers} workers.",
            why=f"each step averages {aggregate} gradients and each worker gives one.",
            fix=f"start {aggregate - settings.workers} more, use --replicas-to-aggregate {settings.workers}, "
            "or let each worker give several gradients with --accumulate.",
        )
