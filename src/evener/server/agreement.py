"""What two tasks of a run must agree on: each difference is refused with both sides."""

from __future__ import annotations

from dataclasses import dataclass

from evener import errors
from evener.wire import codec
from evener.wire.agreed import differing
from evener.wire.layout import Layout
from evener.wire.messages import Hello


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a peer must agree on."""

    run: str
    recipe: str
    evener: str
    sources: str = ""
    allow_difference: bool = False


def compare(hello: Hello, expected: Expected, layout: Layout, mine: str) -> str:
    """Does a worker train what this server, `mine`, serves?

    Returns:
        What its recipe files differ in, where that is allowed; empty if they are the same.

    Raises:
        VersionError, ModelMismatch: naming the first difference.
    """
    name = f"worker:{hello.identity.worker}"
    if hello.evener != expected.evener:
        raise errors.VersionError(
            f"{name} runs evener {hello.evener}, {mine} runs {expected.evener}.",
            fix="install the same evener everywhere.",
        )
    if hello.layout != layout.fingerprint:
        difference = layout.difference(codec.unpack_specs(hello.specs), here=mine, there=name)
        raise errors.ModelMismatch(
            difference or f"{name} places tensors as {hello.layout}, {mine} as {layout.fingerprint}.",
            why="every task must build the same model.",
            fix="start all tasks with the same recipe, options and number of ps tasks.",
        )
    if hello.recipe != expected.recipe:
        theirs, ours = differing(hello.recipe, expected.recipe)
        raise errors.ModelMismatch(
            f"{name} trains {theirs}, {mine} trains {ours}.",
            why="recipe, options, seed, batch size, clipping, rules, frozen layers and the file of --init-from must "
            "be equal everywhere.",
            fix="start all tasks with the same recipe and options.",
        )
    return _other_sources(hello, expected, mine)


def _other_sources(hello: Hello, expected: Expected, mine: str) -> str:
    if hello.sources == expected.sources:
        return ""
    ours, theirs = set(expected.sources.split()), hello.sources.split()
    what = (
        f"worker:{hello.identity.worker} runs {' '.join(s for s in theirs if s not in ours) or 'no such files'}, "
        f"{mine} runs {' '.join(sorted(ours - set(theirs))) or 'no such files'}."
    )
    if expected.allow_difference:
        return what
    raise errors.ModelMismatch(
        what,
        why="all tasks must run the same recipe, and its files differ, or were edited since a task was started.",
        fix="copy the same files everywhere and start anew; or say --allow-difference if the difference is meant.",
    )
