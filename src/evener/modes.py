"""The modes in which gradients become updates, and which options belong to which of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from evener.errors import ConfigError
from evener.policy import MODES
from evener.policy.asynchronous import Async
from evener.policy.bounded import Bounded
from evener.policy.collecting import Rennala, Ringmaster, Softsync
from evener.policy.gathering import Quorum
from evener.policy.mode import Mode, Terms
from evener.policy.synchronous import Sync

__all__ = [
    "MODES", "Async", "Bounded", "Mode", "Quorum", "Rennala", "Ringmaster", "Softsync", "Sync", "Terms", "mode_of",
    "options_of_mode", "terms_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """An option, and what each mode that has it says of it."""

    kind: type
    metavar: str
    texts: Mapping[str, str]  # by the mode's name


def options_of_modes() -> dict[str, Known]:
    """All options of all modes, by name."""
    known: dict[str, Known] = {}
    for name, mode in MODES.items():
        for entry in fields(mode):  # type: ignore[arg-type]  # a Protocol cannot say that it is a dataclass
            about = entry.metadata
            texts = {**known[entry.name].texts} if entry.name in known else {}
            known[entry.name] = Known(about["kind"], about["metavar"], texts | {name: about["text"]})
    return known


OPTIONS = options_of_modes()


def mode_of(mode: Any, given: Mapping[str, Any], *, ps: bool = True) -> Mode:
    """The mode that options name.

    Args:
        mode: its name, or the object itself.
        given: values of `OPTIONS`; None and False say nothing.
        ps: there are ps tasks, without which no option of a mode means anything.

    Raises:
        ConfigError: no such mode, an option of another mode, or a value that cannot work.
    """
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    made = type(mode) in MODES.values()
    name = mode.name if made else mode
    if not isinstance(name, str) or name not in MODES:
        near = difflib.get_close_matches(str(name), MODES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the modes are: {', '.join(MODES)}."
        raise ConfigError(f"unknown mode {name!r}.", fix=hint)
    if made and said:
        option = next(iter(said))
        raise ConfigError(f"{option} stands beside mode={mode!r}.", fix=f"say it there: {type(mode).__name__}(...).")
    mine = {entry.name for entry in fields(MODES[name])}  # type: ignore[arg-type]  # as above
    for option, value in said.items():
        if not ps:
            raise _foreign(option, value, "without ps tasks", "--ps P --workers W ")
        if option not in mine:
            raise _foreign(option, value, f"in mode {name}", "")
    return mode if made else MODES[name](**said)


@lru_cache
def terms_of(mode: Mode, workers: int, least: int, *, by_samples: bool) -> Terms:
    """What a mode asks of so many workers. Kept, since servers ask several times for each gradient.

    Args:
        least: workers without whom there is to be no update.
        by_samples: batches are of a size for each worker.
    """
    terms = mode.terms(workers)
    if by_samples and isinstance(mode, Sync):  # a round is so many samples, whoever computes them
        terms = replace(terms, fewest=1, needs_all=False)
    return replace(terms, fewest=max(terms.fewest, least))


def elastic_of(mode: Mode) -> Mode:
    """The mode that goes on with whoever lives, where it would wait for all."""
    has = any(entry.name == "elastic" for entry in fields(mode))  # type: ignore[arg-type]  # as above
    return replace(mode, elastic=True) if has else mode  # type: ignore[type-var]  # as above


def options_of_mode(mode: Mode) -> dict[str, Any]:
    """What was said of it: values that are not the defaults."""
    return {
        entry.name: value
        for entry in fields(mode)  # type: ignore[arg-type]  # as above
        if (value := getattr(mode, entry.name)) != entry.default
    }


def check_mode(mode: Mode, *, ps: int, workers: int) -> None:
    """Refuse a mode that could never take a step, and options that would change nothing.

    Raises:
        ConfigError: naming the option, and the mode that it belongs to.
    """
    if ps:
        mode.check(workers)
        return
    for option, value in options_of_mode(mode).items():
        raise _foreign(option, value, "without ps tasks", "--ps P --workers W ")


def _foreign(option: str, value: Any, where: str, missing: str) -> ConfigError:
    modes, texts = list(OPTIONS[option].texts), list(OPTIONS[option].texts.values())
    return ConfigError(
        f"{option}={value} means nothing {where}.",
        why=f"{texts[0].split(';')[0]}: an option of mode {' and '.join(modes)}.",
        fix=f"add {missing}--mode {modes[0]}, or leave --{option.replace('_', '-')} out.",
    )
