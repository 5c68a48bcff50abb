"""Pickles of plain data, read as data: nothing in them is ever imported, called or run.

The python archive of CIFAR-10 holds pickles (protocol 2, written by Python 2), and Python's own reader does whatever a
pickle says. This one knows the few opcodes that make dicts, lists, tuples, numbers, texts, bytes and numpy arrays of
bytes. A pickle may only *name* the few functions that numpy arrays and bytes are made with; the names are compared
with a table and what they stand for is done here. Everything else is refused with its offset, and so is what costs more
than plain data of its length do (`evener.allowance`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from evener.allowance import Allowance, Excess
from evener.data.pickled_names import Name, NewArray, NewDtype, UnfitPickle, array_of, called, named, shown


class PickleRefused(Exception):
    """The bytes are no pickle, or one that holds more than plain data.

    Args:
        what: the reason, for people.
        offset: of the opcode, in bytes.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what}, at byte {offset}")
        self.what = what
        self.offset = offset


_MARK = object()

#: What a dict may have as a key. To hash a tuple is to walk over all that it holds.
_KEYS = (str, bytes, int, float, type(None))


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
    except (UnfitPickle, Excess) as unfit:
        raise PickleRefused(str(unfit), offset) from None
    except (IndexError, struct.error):
        raise PickleRefused("the pickle is cut short", len(content)) from None
    except (TypeError, ValueError, KeyError, UnicodeError) as error:
        raise PickleRefused(f"the pickle is damaged ({type(error).__name__}: {str(error)[:80]})", offset) from None


class _Machine:
    """The stack machine that pickles are programs for, without what makes them dangerous."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._allowance = Allowance(len(content))

    def step(self) -> bool:
        """Do one opcode; True at the end of the pickle."""
        self._allowance.opcode()
        opcode = self._take(1)
        if opcode == b".":
            return True
        if opcode in _PUSHES:
            self._stack.append(_PUSHES[opcode](self))
        elif opcode in _CHANGES:
            _CHANGES[opcode](self)
        else:
            raise UnfitPickle(f"opcode {opcode!r} is not for plain data")
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
            raise UnfitPickle("a name that does not end")
        line = self._take(end + 1 - self.at)
        return line[:-1].decode("ascii")

    # --- the stack

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise UnfitPickle("the pickle takes more than it gave")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise UnfitPickle("the pickle takes more than it gave")

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    def since_mark(self) -> tuple[Any, ...]:
        return tuple(self._since_mark())

    def made(self, container: Any) -> Any:
        self._allowance.fill(container, container)
        return container

    # --- memo

    def put(self, place: int | None = None) -> None:
        place, value = len(self._memo) if place is None else place, self._stack[-1]
        self._memo[place] = value
        if isinstance(value, NewArray):
            value.kept.append(place)

    def get(self, code: str) -> Any:
        return self._memo[self.number(code)]

    # --- containers

    def append(self, items: list[Any]) -> None:
        into = self._pop()
        if not isinstance(into, list):
            raise UnfitPickle(f"an element for {type(into).__name__}")
        self._allowance.fill(into, items)
        into.extend(items)
        self._stack.append(into)

    def set_items(self, items: list[Any]) -> None:
        into = self._pop()
        if not isinstance(into, dict) or len(items) % 2:
            raise UnfitPickle(f"an entry for {type(into).__name__}")
        if strange := [key for key in items[::2] if not isinstance(key, _KEYS)]:
            raise UnfitPickle(f"an entry whose key is {shown(strange[0])}")
        self._allowance.fill(into, items)
        into.update(zip(items[::2], items[1::2], strict=True))
        self._stack.append(into)

    # --- names

    def named(self) -> Name:
        return named(self._line(), self._line())

    def named_on_stack(self) -> Name:
        module, name = self.last(2)
        return named(module, name)

    def call(self) -> Any:
        name, arguments = self.last(2)
        return called(name, arguments, self._allowance)

    def build(self) -> None:
        made, state = self.last(2)
        if isinstance(made, NewArray):
            array = array_of(state, self._allowance)
            for place in made.kept:
                if self._memo[place] is made:
                    self._memo[place] = array
            self._stack.append(array)
        elif isinstance(made, NewDtype):
            self._stack.append(made)  # its state says byte order and alignment, which bytes have not
        else:
            raise UnfitPickle(f"it gives a state to {type(made).__name__}, which is not plain data")


def _whole_number(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


_PUSHES: dict[bytes, Callable[[_Machine], Any]] = {
    b"(": lambda _: _MARK,
    b"N": lambda _: None,
    b"\x88": lambda _: True,
    b"\x89": lambda _: False,
    b"}": lambda m: m.made({}),
    b"]": lambda m: m.made([]),
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
    b"\x85": lambda m: m.made(m.last(1)),
    b"\x86": lambda m: m.made(m.last(2)),
    b"\x87": lambda m: m.made(m.last(3)),
    b"t": lambda m: m.made(m.since_mark()),
    b"h": lambda m: m.get("<B"),
    b"j": lambda m: m.get("<I"),
    b"c": lambda m: m.named(),
    b"\x93": lambda m: m.named_on_stack(),
    b"R": lambda m: m.call(),
}

_CHANGES: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda m: _check_protocol(m.number("<B")),
    b"\x95": lambda m: m.number("<Q"),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(),
    b"a": lambda m: m.append([*m.last(1)]),
    b"e": lambda m: m.append([*m.since_mark()]),
    b"s": lambda m: m.set_items([*m.last(2)]),
    b"u": lambda m: m.set_items([*m.since_mark()]),
    b"b": lambda m: m.build(),
}


def _check_protocol(version: int) -> None:
    if not 2 <= version <= 4:
        raise UnfitPickle(f"a pickle of protocol {version}")
