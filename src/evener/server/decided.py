"""What the leader collects for its followers, and what it knows of the lengths of gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import msgspec

from evener.state import rules
from evener.wire.messages import Decided, Key, Released


class Decisions:
    """Collects the decisions of one event; they travel as one message, in the leader's order."""

    def __init__(self) -> None:
        self.apply: list[Key] = []
        self.drop: list[Key] = []
        self.release: list[tuple[int, int, Released]] = []
        self.gone: list[tuple[int, int]] = []
        self.factor: float | None = None
        self.judged: dict[str, float] = {}

    def answered(self, worker: int, epoch: int, answer: Released) -> None:
        """The other shards send the same answer, less what only the leader's has."""
        if answer.leases or answer.script:
            answer = msgspec.structs.replace(answer, leases=[], script=b"")
        self.release.append((worker, epoch, answer))

    def take(self, version: int) -> Decided | None:
        """The message, if there is anything to tell; collecting starts anew."""
        if not (self.apply or self.drop or self.release or self.gone or self.judged):
            return None
        message = Decided(version, self.apply, self.drop, self.release, self.gone, self.judged, self.factor)
        self.apply, self.drop, self.release, self.gone, self.judged, self.factor = [], [], [], [], {}, None
        return message


class Products:
    """Inner products of the gradients that are held, summed over the shards; empty where nothing is clipped by norm."""

    def __init__(self) -> None:
        self._known: dict[tuple[Key, Key], float] = {}

    def add(self, key: Key, products: Sequence[tuple[Key, float]]) -> None:
        """A shard's part of this gradient's products with others that it holds."""
        for other, number in products:
            pair = (min(key, other), max(key, other))
            self._known[pair] = self._known.get(pair, 0.0) + number

    def length(self, key: Key) -> float:
        """The norm of one gradient; 0.0 where it is not measured."""
        return math.sqrt(self._known.get((key, key), 0.0))

    def norm(self, keys: Sequence[Key], weights: Sequence[float] | None = None) -> float:
        """The norm of the mean of these gradients, which are forgotten. `weights`: see `rules.mean`."""
        pairs = (self._known[min(one, other), max(one, other)] for one in keys for other in keys)
        if weights is not None:
            pairs = (pair * one * other for pair, (one, other) in
                     zip(pairs, itertools.product(weights, weights), strict=True))  # fmt: skip
        norm = rules.norm_of_mean(pairs, len(keys) if weights is None else math.fsum(weights))
        for key in keys:
            self.forget(key)
        return norm

    def forget(self, key: Key) -> None:
        """This gradient was applied, or will not be."""
        self._known = {pair: number for pair, number in self._known.items() if key not in pair}
