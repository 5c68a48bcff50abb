"""What all tasks of a run must be told alike, in words that name what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

#: Characters of a value that travel, and of all of them: words of a greeting are short. The digest is of everything.
_VALUE, _ALL = 60, 900


def fingerprint_of(name: str, parts: Mapping[str, object]) -> str:
    """One word for what is trained: its name, a digest of all parts, and the parts as far as there is room.

    >>> fingerprint_of("mnist", {"seed": 0})
    'mnist 427928697a4c\\nseed=0'
    """
    lines = [f"{part}={value}".replace("\n", " ") for part, value in parts.items()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    shown = [line if len(line) <= _VALUE else f"{line[:_VALUE]}..." for line in lines]
    return "\n".join([f"{name[:100]} {digest}", *shown])[:_ALL]


def differing(one: str, other: str) -> tuple[str, str]:
    """What two fingerprints do not share, for people; the digests where the parts that travel are the same.

    >>> differing("mnist 12\\nseed=0\\nbatch size=5", "mnist 34\\nseed=1\\nbatch size=5")
    ('mnist with seed=0', 'mnist with seed=1')
    """
    name, *parts = one.split("\n")
    others, *more = other.split("\n")
    mine, theirs = [part for part in parts if part not in more], [part for part in more if part not in parts]
    if name.split(" ")[:-1] != others.split(" ")[:-1] or not (mine or theirs):
        return repr(name), repr(others)
    said = [(name, mine), (others, theirs)]
    one, other = (f"{what.rpartition(' ')[0]} with {', '.join(told) or 'none of these'}" for what, told in said)
    return one, other
