"""`tf.train.Example`, a map from names to lists of bytes, floats or whole numbers, as protocol buffer bytes.

    message Example { Features features = 1; }         message BytesList { repeated bytes value = 1; }
    message Features { map<string, Feature> feature = 1; }   FloatList, Int64List likewise, packed
    message Feature { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }

These four messages have not changed since 2015, and an own reader of them knows where in the record each value lies,
which `schema.py` needs to take a whole batch apart at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evener.errors import ConfigError

#: A feature's values: a list of bytes, float32 [n] or int64 [n].
Values = list[bytes] | NDArray[np.float32] | NDArray[np.int64]

BYTES, FLOAT, INT64 = 1, 2, 3  # the field numbers in Feature
KINDS = {0: "nothing", BYTES: "bytes", FLOAT: "float", INT64: "int64"}

#: Features and values of one record that lie apart. Numbers that lie in one piece count once.
MOST = 1 << 20

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_UINT64 = 2**64 - 1


class Malformed(Exception):
    """These bytes are no Example; the text says why."""


@dataclass(slots=True)
class Field:
    """Where one feature lies in its record.

    Args:
        kind: BYTES, FLOAT, INT64, or 0 when the feature holds nothing.
        spans: (start, stop) of its values. BYTES: one span a value. FLOAT: raw float32, any number a span.
            INT64: varints, any number a span.
    """

    kind: int
    spans: list[tuple[int, int]]


def fields(record: bytes) -> dict[str, Field]:
    """Where each feature of an Example lies.

    As protocol buffers ask: unknown fields are passed over, a name that comes again replaces the one before.

    Raises:
        Malformed: not an Example.
    """
    found: dict[str, Field] = {}
    pieces = 0
    for number, wire, start, stop in _walk(record, 0, len(record)):
        if (number, wire) == (1, _LENGTH):
            for inner, kind, begin, end in _walk(record, start, stop):
                if (inner, kind) == (1, _LENGTH):
                    name, field = _entry(record, begin, end)
                    found[name] = field
                    pieces += 1 + len(field.spans)
                    if pieces > MOST:
                        raise Malformed(f"more than {MOST} features and values")
    return found


def decode(record: bytes) -> dict[str, Values]:
    """The features of an Example; those that hold nothing are left out.

    Raises:
        Malformed: not an Example.
    """
    return {name: values(record, field) for name, field in fields(record).items() if field.kind}


def values(record: bytes, field: Field) -> Values:
    """The values of one feature."""
    pieces = [record[start:stop] for start, stop in field.spans]
    if field.kind == BYTES:
        return pieces
    joined = b"".join(pieces)
    if field.kind == INT64:
        return varints(joined)
    if len(joined) % 4:
        raise Malformed(f"a float list of {len(joined)} bytes")
    return np.frombuffer(joined, dtype="<f4").astype(np.float32)


def varints(data: bytes) -> NDArray[np.int64]:
    """Numbers of 7 bits a byte, lowest first, the top bit set in all but a number's last byte.

    Raises:
        Malformed: the last number has no end, or one has more than 10 bytes.
    """
    coded = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(coded < 0x80)
    if len(ends) == len(coded):  # every number is below 128
        return coded.astype(np.int64)
    if coded[-1] >= 0x80:
        raise Malformed("a whole number that is cut off")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise Malformed(f"a whole number of {lengths.max()} bytes")
    total = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max())):
        longer = lengths > place
        bits = (coded[starts[longer] + place] & 0x7F).astype(np.uint64)
        total[longer] |= bits << np.uint64(7 * place)
    return total.view(np.int64)


def encode(features: Mapping[str, Any]) -> bytes:
    """The bytes of an Example.

    Args:
        features: name -> bytes, text or a list of these; a number, a list of numbers or an array of any shape:
            whole numbers become int64, others float32. An empty list is an empty list of bytes; an empty array
            is one of its dtype's kind.

    Raises:
        ConfigError: a value is none of these, or a whole number that int64 cannot hold.

    >>> decode(encode({"label": 3, "name": "three"}))
    {'label': array([3]), 'name': [b'three']}
    """
    return _field(1, b"".join(_field(1, _field(1, name.encode()) + _field(2, _feature(name, value)))
                              for name, value in features.items()))  # fmt: skip


def _feature(name: str, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview | str):
        value = [value]
    if isinstance(value, list | tuple) and all(isinstance(v, bytes | bytearray | memoryview | str) for v in value):
        texts = (v.encode() if isinstance(v, str) else bytes(v) for v in value)
        return _field(BYTES, b"".join(_field(1, text) for text in texts))
    try:
        array = np.asarray(value).reshape(-1)
    except (TypeError, ValueError) as error:
        raise _unfit(name, f"{type(value).__name__} ({error})") from error
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            floats = array.astype("<f4")
        if np.isinf(floats).sum() != np.isinf(array).sum():
            raise _unfit(name, f"{array.dtype} beyond the range of float32")
        return _field(FLOAT, _packed(floats.tobytes()))
    if array.dtype.kind not in "bui" or (array.dtype.kind == "u" and len(array) and int(array.max()) >= 2**63):
        raise _unfit(name, f"{type(value).__name__} of {array.dtype}")
    return _field(INT64, _packed(b"".join(_varint(number & _UINT64) for number in array.astype(np.int64).tolist())))


def _unfit(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"feature {name!r} cannot be written: {what}.",
        why="an Example holds lists of bytes, of float32 or of whole numbers that fit int64.",
        fix="give bytes, a text, numbers, an array, or a list of one of these.",
    )


def _packed(data: bytes) -> bytes:
    return _field(1, data) if data else b""  # an empty list has no field 1, as protocol buffers write it


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _LENGTH]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def _entry(record: bytes, start: int, stop: int) -> tuple[str, Field]:
    """One name and its Feature."""
    name, field = b"", Field(0, [])
    for number, wire, begin, end in _walk(record, start, stop):
        if (number, wire) == (1, _LENGTH):
            name = record[begin:end]
        elif (number, wire) == (2, _LENGTH):
            _merge(record, begin, end, field)
    try:
        return name.decode(), field
    except UnicodeDecodeError:
        raise Malformed(f"a feature name that is not UTF-8: {name!r}") from None


def _merge(record: bytes, start: int, stop: int, field: Field) -> None:
    """Read a Feature: the last kind that is given counts, the same kind twice is one list."""
    for kind, wire, begin, end in _walk(record, start, stop):
        if kind not in KINDS or wire != _LENGTH:
            continue
        if kind != field.kind:
            field.kind, field.spans = kind, []
        single = {BYTES: _LENGTH, FLOAT: _FIXED32, INT64: _VARINT}[kind]
        for number, coded, first, last in _walk(record, begin, end):
            if number == 1 and coded in (single, _LENGTH):
                field.spans.append((first, last))
                if len(field.spans) > MOST:
                    raise Malformed(f"more than {MOST} values that lie apart")


def _walk(record: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: (number, wire type, start, stop) of each content."""
    while at < stop:
        key, at = _number(record, at, stop)
        wire, start = key & 7, at
        if wire == _LENGTH:
            length, start = _number(record, at, stop)
            at = start + length
        elif wire == _VARINT:
            _, at = _number(record, at, stop)
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise Malformed(f"wire type {wire} at byte {start}")
        if at > stop or not key >> 3:
            raise Malformed(f"a field at byte {start} that ends behind its message, or has no number")
        yield key >> 3, wire, start, at


def _number(record: bytes, at: int, stop: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = shift = 0
    while at < stop and shift < 70:
        byte = record[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _UINT64, at
        shift += 7
    raise Malformed(f"a number that is cut off at byte {at}")
