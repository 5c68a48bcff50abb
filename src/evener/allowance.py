"""What one pickle may cost. Few bytes can say much: a tuple of a tuple twice, sixty times over, has 2^60 leaves.

Each container is charged with all that it holds, each time that it is held, so whoever walks over the result, hashes it
or prints it has a bounded way to go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: Opcodes of one pickle. An official file of CIFAR-10, 10,000 labels and names, has about 40,000; fifty of it are read.
OPCODES = 4_000_000
#: Lists, dicts and tuples. An official file has eight.
CONTAINERS = 100_000
#: Containers in containers.
DEPTH = 100


class Excess(Exception):
    """The pickle would cost more than plain data do; the text says what of."""


class Allowance:
    """Counts what a pickle makes.

    Args:
        nbytes: of arrays and byte strings that may be made by copying, which a pickle can ask for again and again.
        opcodes, containers: as many are read. The leaves of the result, each counted as often as it is held, may be as
            many as opcodes.
    """

    def __init__(self, nbytes: int, opcodes: int = OPCODES, containers: int = CONTAINERS) -> None:
        self._nbytes, self._opcodes, self._containers = nbytes, opcodes, containers
        self._left = opcodes
        #: Of each container: itself, so that no other one gets its id; the depth below it; its leaves.
        self._held: dict[int, tuple[Any, int, int]] = {}
        self._closed: set[int] = set()  # what is inside of another container no longer grows

    def opcode(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Excess(f"more than {self._opcodes} opcodes")

    def copied(self, nbytes: int) -> None:
        self._nbytes -= nbytes
        if self._nbytes < 0:
            raise Excess("more bytes are made of it than it has")

    def fill(self, container: Any, items: Iterable[Any]) -> None:
        """A container is made, or these are added to it."""
        _, depth, leaves = self._held.get(id(container), (None, 0, 0))
        if id(container) in self._closed:
            raise Excess("a container that grows while another one holds it")
        for item in items:
            _, below, inside = self._held.get(id(item), (None, -1, 1))
            if below >= 0:
                self._closed.add(id(item))
            depth, leaves = max(depth, below + 1), leaves + max(1, inside)
        self._held[id(container)] = (container, depth, leaves)
        if id(container) in self._closed:
            raise Excess("a container that holds itself")
        if len(self._held) > self._containers:
            raise Excess(f"more than {self._containers} lists, dicts and tuples")
        if depth > DEPTH:
            raise Excess(f"more than {DEPTH} containers in each other")
        if leaves > self._opcodes:
            raise Excess(f"more than {self._opcodes} leaves, the same ones again and again")
