"""What a pickle of plain data may name, and what it stands for: how numpy makes arrays of bytes, and bytes are made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from evener.allowance import Allowance


class UnfitPickle(Exception):
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


class Name:
    def __init__(self, name: str) -> None:
        self.name = name


class NewArray:
    """An array whose contents are still to come, and where in the memo it lies until then."""

    def __init__(self) -> None:
        self.kept: list[int] = []


class NewDtype:
    """The dtype uint8; the only one that is read."""


def named(module: object, name: object) -> Name:
    """What a pickle may name. Raises Unfit for all else."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise UnfitPickle("it names something by what is no text")
    found = _NAMES.get((module, name))
    if found is None:
        raise UnfitPickle(f"it names {module[:80]}.{name[:80]}, which is not plain data")
    return Name(found)


def called(name: object, arguments: object, allowance: Allowance) -> Any:
    """What numpy and `_codecs` would make of these arguments."""
    if not isinstance(name, Name) or not isinstance(arguments, tuple):
        raise UnfitPickle("it calls something that is not plain data")
    match name.name, arguments:
        case "_reconstruct", (Name(name="ndarray"), (0,), _):
            return NewArray()
        case "dtype", ("u1" | "|u1", *_):
            return NewDtype()
        case "dtype", (other, *_):
            raise UnfitPickle(f"an array of dtype {shown(other)}; only bytes (u1) are read")
        case "encode", (str(text), "latin1"):
            allowance.copied(len(text))
            return text.encode("latin1")
        case "bytes", ():
            return b""
    raise UnfitPickle(f"it calls {name.name} with other arguments than numpy does")


def array_of(state: object, allowance: Allowance) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of bytes that numpy would make of this state. Raises Unfit for any other."""
    match state:
        case (int(), tuple(shape), NewDtype(), bool(fortran), bytes() | str() as raw):
            if isinstance(raw, str):
                allowance.copied(len(raw))
                raw = raw.encode("latin1")
            whole = len(shape) <= 8 and all(isinstance(size, int) and 0 <= size <= 2**40 for size in shape)
            if fortran or not whole or math.prod(shape) != len(raw):
                raise UnfitPickle(f"an array of shape {shown(shape)} and {len(raw)} bytes")
            return np.frombuffer(raw, dtype=np.uint8).reshape(shape)
    raise UnfitPickle("an array that is not made as numpy makes it")


def shown(value: object) -> str:
    """A value in a message: what holds others is not written out, for they may be many."""
    if isinstance(value, tuple) and len(value) <= 8 and all(isinstance(size, int | str) for size in value):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, str | bytes):
        value = value[:40]
    return repr(value) if isinstance(value, str | bytes | int | float) else f"a {type(value).__name__}"
