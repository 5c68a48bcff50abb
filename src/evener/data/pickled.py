"""Pickles of plain data, read as data: nothing in them is ever imported, called or run.

The python archive of CIFAR-10 holds pickles (protocol 2, written by Python 2), and Python's own reader does whatever a
pickle says. This one knows the few opcodes that make dicts, lists, tuples, numbers, texts, bytes and numpy arrays of
bytes. A pickle may only *name* the few functions that numpy arrays and bytes are made with; the names are compared
with a table and what they stand for is done here. Everything else is refused with its offset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np


class Refused(Exception):
    """The bytes are no pickle, or one that holds more than plain data.

    Args:
        what: the reason, for people.
        offset: of the opcode, in bytes.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what}, at byte {offset}")
        self.what = what
        self.offset = offset


class _Unfit(Exception):
    """Something in the pickle is not allowed; `read` adds where."""


#: What a pickle may name, each with what it does here. numpy 2 moved its functions.
_RECONSTRUCT, _ARRAY, _DTYPE, _ENCODE, _BYTES = "_reconstruct", "ndarray", "dtype", "encode", "bytes"
_NAMES: dict[tuple[object, object], str] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("_codecs", "encode"): _ENCODE,  # how Python 3 writes bytes in protocol 2, and none:
    ("__builtin__", "bytes"): _BYTES,
}


class _Name:
    def __init__(self, name: str) -> None:
        self.name = name


class _NewArray:
    """An array whose contents are still to come."""


class _NewDtype:
    """The dtype uint8; the only one that is read."""


_MARK = object()


def read(content: bytes) -> object:
    """What a pickle of protocol 2 to 4 holds: None, bool, int, float, str, bytes, tuple, list, dict, uint8 arrays.

    Texts of Python 2 are str, each byte one character (Latin-1).

    Raises:
        Refused: cut short, no pickle, or anything but plain data.
    """
    machine = _Machine(content)
    offset = 0
    try:
        while True:
            offset = machine.at
            if machine.step():
                return machine.result()
    except _Unfit as unfit:
        raise Refused(str(unfit), offset) from None
    except (IndexError, struct.error):
        raise Refused("the pickle is cut short", len(content)) from None
    except (TypeError, ValueError, KeyError, UnicodeError) as error:
        raise Refused(f"the pickle is damaged ({type(error).__name__}: {error})", offset) from None


class _Machine:
    """The stack machine that pickles are programs for, without what makes them dangerous."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self) -> bool:
        """Do one opcode; True at the end of the pickle."""
        opcode = self._take(1)
        if opcode == b".":
            return True
        if opcode in _PUSHES:
            self._stack.append(_PUSHES[opcode](self))
        elif opcode in _CHANGES:
            _CHANGES[opcode](self)
        else:
            raise _Unfit(f"opcode {opcode!r} is not for plain data")
        return False

    def result(self) -> object:
        return self._pop()

    # --- reading

    def _take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.content):
            raise IndexError
        taken = self.content[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def counted(self, code: str) -> bytes:
        return self._take(self.number(code))

    def _line(self) -> str:
        end = self.content.index(b"\n", self.at) if b"\n" in self.content[self.at : self.at + 200] else -1
        if end < 0:
            raise _Unfit("a name that does not end")
        line = self._take(end + 1 - self.at)
        return line[:-1].decode("ascii")

    # --- the stack

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Unfit("the pickle takes more than it gave")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise _Unfit("the pickle takes more than it gave")

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    def tuple_since_mark(self) -> tuple[Any, ...]:
        return tuple(self._since_mark())

    # --- memo

    def put(self, code: str) -> None:
        self._memo[self.number(code)] = self._stack[-1]

    def put_next(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, code: str) -> Any:
        return self._memo[self.number(code)]

    # --- containers

    def append(self, items: list[Any]) -> None:
        into = self._pop()
        if not isinstance(into, list):
            raise _Unfit(f"an element for {type(into).__name__}")
        into.extend(items)
        self._stack.append(into)

    def set_items(self, items: list[Any]) -> None:
        into = self._pop()
        if not isinstance(into, dict) or len(items) % 2:
            raise _Unfit(f"an entry for {type(into).__name__}")
        into.update(zip(items[::2], items[1::2], strict=True))
        self._stack.append(into)

    # --- names

    def named(self) -> _Name:
        return self._allowed(self._line(), self._line())

    def named_on_stack(self) -> _Name:
        module, name = self.last(2)
        return self._allowed(module, name)

    def _allowed(self, module: object, name: object) -> _Name:
        found = _NAMES.get((module, name))
        if found is None:
            raise _Unfit(f"it names {module}.{name}, which is not plain data")
        return _Name(found)

    def call(self) -> Any:
        name, arguments = self.last(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise _Unfit("it calls something that is not plain data")
        match name.name, arguments:
            case "_reconstruct", (_Name(name="ndarray"), (0,), _):
                return _NewArray()
            case "dtype", ("u1" | "|u1", *_):
                return _NewDtype()
            case "dtype", (other, *_):
                raise _Unfit(f"an array of dtype {other!r}; only bytes (u1) are read")
            case "encode", (str(text), "latin1"):
                return text.encode("latin1")
            case "bytes", ():
                return b""
        raise _Unfit(f"it calls {name.name} with other arguments than numpy does")

    def build(self) -> None:
        made, state = self.last(2)
        if isinstance(made, _NewArray):
            array = _array(state)
            for key, value in self._memo.items():
                if value is made:
                    self._memo[key] = array
            self._stack.append(array)
        elif isinstance(made, _NewDtype):
            self._stack.append(made)  # its state says byte order and alignment, which bytes have not
        else:
            raise _Unfit(f"it gives a state to {type(made).__name__}, which is not plain data")


def _array(state: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    match state:
        case (int(), tuple(shape), _NewDtype(), bool(fortran), bytes() | str() as raw):
            content = raw.encode("latin1") if isinstance(raw, str) else raw
            if not all(isinstance(size, int) and size >= 0 for size in shape) or fortran:
                raise _Unfit(f"an array of shape {shape}")
            return np.frombuffer(content, dtype=np.uint8).reshape(shape)
    raise _Unfit("an array that is not made as numpy makes it")


def _whole_number(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


_PUSHES: dict[bytes, Callable[[_Machine], Any]] = {
    b"(": lambda _: _MARK,
    b"N": lambda _: None,
    b"\x88": lambda _: True,
    b"\x89": lambda _: False,
    b"}": lambda _: {},
    b"]": lambda _: [],
    b")": lambda _: (),
    b"K": lambda m: m.number("<B"),
    b"M": lambda m: m.number("<H"),
    b"J": lambda m: m.number("<i"),
    b"\x8a": lambda m: _whole_number(m.counted("<B")),
    b"G": lambda m: m.number(">d"),
    b"U": lambda m: m.counted("<B").decode("latin1"),
    b"T": lambda m: m.counted("<i").decode("latin1"),
    b"X": lambda m: m.counted("<I").decode(),
    b"\x8c": lambda m: m.counted("<B").decode(),
    b"C": lambda m: m.counted("<B"),
    b"B": lambda m: m.counted("<I"),
    b"\x8e": lambda m: m.counted("<Q"),
    b"\x85": lambda m: m.last(1),
    b"\x86": lambda m: m.last(2),
    b"\x87": lambda m: m.last(3),
    b"t": lambda m: m.tuple_since_mark(),
    b"h": lambda m: m.get("<B"),
    b"j": lambda m: m.get("<I"),
    b"c": lambda m: m.named(),
    b"\x93": lambda m: m.named_on_stack(),
    b"R": lambda m: m.call(),
}

_CHANGES: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda m: _check_protocol(m.number("<B")),
    b"\x95": lambda m: m.number("<Q"),
    b"q": lambda m: m.put("<B"),
    b"r": lambda m: m.put("<I"),
    b"\x94": lambda m: m.put_next(),
    b"a": lambda m: m.append([*m.last(1)]),
    b"e": lambda m: m.append([*m.tuple_since_mark()]),
    b"s": lambda m: m.set_items([*m.last(2)]),
    b"u": lambda m: m.set_items([*m.tuple_since_mark()]),
    b"b": lambda m: m.build(),
}


def _check_protocol(version: int) -> None:
    if not 2 <= version <= 4:
        raise _Unfit(f"a pickle of protocol {version}")
