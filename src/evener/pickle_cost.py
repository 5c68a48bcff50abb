"""What PyTorch would have to do to read a file of `torch.save`, found out before it begins.

`torch.load(weights_only=True)` runs no code, but believes what a pickle says of sizes: a few bytes make a key that
takes for ever to hash, and a small archive unpacks to more than there is memory for. Here the same opcodes are gone
through with nothing on the stack but what each thing is.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from evener.allowance import Allowance, Excess

#: Opcodes and containers of the pickle in a file of weights: a tensor takes about 60 of the ones and 6 of the others.
OPCODES, CONTAINERS = 16_000_000, 2_000_000
#: Pickles in a file of PyTorch before 1.6: a magic number, the protocol, the system, the objects, their keys.
PICKLES = 5

#: Opcodes that put one thing on the stack which holds no others.
_LEAVES = frozenset({
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
    "GLOBAL", "EMPTY_TUPLE",
})  # fmt: skip
_CONTAINERS = frozenset({"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ADDING = {"APPEND": 1, "SETITEM": 2}
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1"})


class _Thing:
    """Something on the stack: what it was made of, as far as that is looked at."""

    def __init__(self, kind: str, inside: tuple[Any, ...] = ()) -> None:
        self.kind, self.inside = kind, inside


_MARK = _Thing("mark")


def check(file: BinaryIO, size: int) -> None:
    """Refuse a file that says more than it holds. It is left at its beginning.

    Args:
        size: of the file, in bytes.

    Raises:
        Excess: the text says what there is too much of.
        ValueError, zipfile.BadZipFile, OSError: it is damaged, or `torch.save` did not write it.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        _check_archive(file, size)
    elif start[:1] == b"\x80":
        for _ in range(PICKLES):
            _check_pickle(file, size)
    else:
        raise ValueError("torch.save did not write it")
    file.seek(0)


def _check_archive(file: BinaryIO, size: int) -> None:
    """PyTorch stores without compression, each record in its own place."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Excess("compressed records")
        if sum(entry.file_size for entry in entries) > size:
            raise Excess("records that lie on each other")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as program:
                    _check_pickle(program, size)


def _check_pickle(program: Any, size: int) -> None:
    try:
        machine = _CostMachine(Allowance(size, OPCODES, CONTAINERS))
        for opcode, argument, _ in pickletools.genops(program):
            machine.step(opcode.name, argument)
    except (IndexError, KeyError) as error:
        raise ValueError("its pickle is damaged") from error


class _CostMachine:
    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._stack: list[_Thing] = []
        self._memo: dict[int, _Thing] = {}

    def step(self, name: str, argument: Any) -> None:
        self._allowance.opcode()
        stack = self._stack
        if name in _LEAVES:
            stack.append(_Thing(str(argument) if name == "GLOBAL" else name))
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "BINPERSID":
            stack.append(_Thing(name, self._last(1)))
        elif name not in ("PROTO", "STOP"):
            self._container(name)

    def _container(self, name: str) -> None:
        if name in _CONTAINERS:
            self._make(())
        elif name in _TUPLES:
            self._make(self._last(_TUPLES[name]))
        elif name == "TUPLE":
            self._make(self._since_mark())
        elif name in _ADDING:
            self._add(self._last(_ADDING[name]))
        elif name in ("APPENDS", "SETITEMS"):
            self._add(self._since_mark())
        elif name in ("REDUCE", "NEWOBJ"):
            self._call(*self._last(2))
        elif name == "BUILD":
            self._add(self._last(1))
        else:
            raise ValueError(f"the opcode {name} in its pickle is not for tensors")

    def _make(self, inside: tuple[_Thing, ...]) -> None:
        thing = _Thing("container", inside[:2])
        self._allowance.fill(thing, inside)
        self._stack.append(thing)

    def _add(self, items: tuple[_Thing, ...]) -> None:
        self._allowance.fill(self._stack[-1], items)

    def _call(self, function: _Thing, arguments: _Thing) -> None:
        """What is made holds all that it is made of."""
        of_number = bool(arguments.inside) and arguments.inside[0].kind in _NUMBERS
        if function.kind.endswith("Tensor") or (function.kind.endswith(" bytearray") and of_number):
            raise Excess(f"memory of {function.kind.replace(' ', '.')} by its size alone")
        self._make((arguments,))

    def _last(self, count: int) -> tuple[_Thing, ...]:
        if len(self._stack) < count or any(thing is _MARK for thing in self._stack[-count:]):
            raise IndexError
        taken = tuple(self._stack[-count:])
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> tuple[_Thing, ...]:
        return tuple(reversed(list(self._until_mark())))

    def _until_mark(self) -> Iterator[_Thing]:
        while (thing := self._stack.pop()) is not _MARK:
            yield thing
