"""Whether a cluster has room for what is asked, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def total(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of resources, by name."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            sums[name] = sums.get(name, 0.0) + amount
    return sums


def lacking(
    asked: Sequence[Mapping[str, float]], nodes: int, has: Mapping[str, float], free: Mapping[str, float]
) -> str:
    """What is missing for these tasks to be placed.

    Args:
        asked: what each task needs.
        nodes: how many there are.
        has, free: of the whole cluster, and what nobody uses of that.

    >>> lacking([{"CPU": 1.0}] * 6, 2, {"CPU": 4.0}, {"CPU": 3.0})
    'they need 6 CPU; 2 nodes have 4, 3 of them free'
    >>> lacking([{"CPU": 1.0, "GPU": 1.0}] * 2, 1, {"CPU": 4.0}, {"CPU": 4.0})
    'they need 2 GPU; 1 node has none'
    >>> lacking([{"CPU": 2.0}] * 2, 3, {"CPU": 6.0}, {"CPU": 5.0})
    'they need 4 CPU; 3 nodes have 6, 5 of them free: Ray has found no node so far'
    """
    where = f"{nodes} node{'s have' if nodes != 1 else ' has'}"
    told = []
    for name, amount in total(asked).items():
        if amount > free.get(name, 0.0):
            some = f"{has[name]:g}, {free.get(name, 0.0):g} of them free" if has.get(name) else "none"
            told.append(f"{amount:g} {name}; {where} {some}")
    if told:
        return "they need " + ", and ".join(told)
    needs = ", ".join(f"{amount:g} {name}" for name, amount in total(asked).items())
    some = ", ".join(f"{has.get(name, 0.0):g}, {free.get(name, 0.0):g} of them free" for name in total(asked))
    return f"they need {needs}; {where} {some}: Ray has found no node so far"
