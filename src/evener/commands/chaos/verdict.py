"""What must hold of a run, whatever was done to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evener.commands.chaos.played import Played

#: Figures by which two runs are compared, the first that both have, and the sign of what is better.
FIGURES = (("validation_accuracy", 1), ("validation_loss", -1), ("train_loss", -1))


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold."""

    name: str
    holds: bool
    told: str


def checks(played: Played, beside: Played, tolerance: float | None) -> list[Check]:
    """Judge a run beside an undisturbed one; of that one beside itself.

    Args:
        tolerance: how much worse its final figure may be; None: nobody asks.
    """
    found = [_end(played, beside), _samples(played), _left(played)]
    return found if tolerance is None else [*found, _figure(played.result, beside.result, tolerance)]


def lost(played: Played) -> int:
    """Updates that were undone because ps tasks died before they were saved."""
    return played.account.lost if played.account is not None else 0


def _end(played: Played, beside: Played) -> Check:
    name = "end"
    if played.status is None:
        return Check(name, False, f"it did not end within {played.limit:.0f} s")
    if played.status:
        return Check(name, False, f"it ended with status {played.status}: {_why(played)}")
    reason, expected = played.result.get("reason", ""), beside.result.get("reason", "")
    if reason != expected:
        return Check(name, False, f"it ended because {reason!r}; undisturbed because {expected!r}")
    if played.account is not None and beside.account is not None:
        epochs, wanted = played.account.epochs, beside.account.epochs
        steps, were = played.result.get("global_step"), beside.result.get("global_step")
        if str(reason).startswith("reached step") and steps != were:
            return Check(name, False, f"it ended at step {steps}; undisturbed at {were}")
        if not str(reason).startswith("reached step") and epochs != wanted:
            return Check(name, False, f"it trained {epochs} whole epochs; undisturbed {wanted}")
    return Check(name, True, f"it ended as undisturbed: {reason or 'the program was over'}")


def _why(played: Played) -> str:
    error = played.result.get("error")
    if isinstance(error, Mapping) and error.get("what"):
        return str(error["what"])
    return played.said.rpartition("\n")[2].strip() or "it said nothing"


def _samples(played: Played) -> Check:
    if played.account is None:
        return Check("samples", False, f"nobody can tell what became of the samples: {played.unread}")
    story = str(played.account).splitlines()
    if played.account.clean:
        return Check("samples", True, "the ledger is clean: every sample once, or named")
    return Check("samples", False, "; ".join(story[-3:]))


def _left(played: Played) -> Check:
    if played.left:
        return Check("nothing left", False, f"left behind: {', '.join(played.left)}")
    if played.status is None:
        return Check("nothing left", True, "not known, since its processes had to be killed")
    return Check("nothing left", True, "no process, socket, shared memory or draft is left")


def _figure(mine: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> Check:
    for name, better in FIGURES:
        have, had = mine.get(name), other.get(name)
        if have is None or had is None:
            continue
        told = f"{name} {have:.4f}; undisturbed {had:.4f}, tolerance {tolerance:g}"
        return Check("figure", better * (had - have) <= tolerance, told)
    return Check("figure", False, "there is no figure to compare: neither validation nor a loss that both runs tell")
