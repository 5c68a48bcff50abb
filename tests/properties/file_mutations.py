"""Files that are almost right: a seeded way to spoil bytes and JSON, and programs of opcodes."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from random import Random
from typing import Any

EVIL_NUMBERS = [0, 1, -1, 2**7, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, -(2**63), 2**64 - 1, 10**30]
EVIL: list[Any] = [
    *EVIL_NUMBERS, None, True, 0.5, 1e308, -0.0, "", "x", "../../x", "\0", "\u00b2", "A" * 3000, [], [[]], {},
    {"@": "tuple"}, {"@": "tensor", "dtype": "load", "is": [1]},
    {"@": "dict", "is": [[[], 1]]}, {"@": "float", "is": "x"},
    [1] * 1000,
]  # fmt: skip

#: Opcodes with an argument of their own size, and such as have none.
SIZED = {b"K": 1, b"M": 2, b"J": 4, b"G": 8, b"q": 1, b"r": 4, b"h": 1, b"j": 4, b"\x80": 1, b"\x95": 8}
COUNTED = {b"U": 1, b"C": 1, b"\x8c": 1, b"\x8a": 1, b"T": 4, b"X": 4, b"B": 4, b"\x8e": 8}
BARE = [bytes([code]) for code in b"(N}])\x88\x89\x85\x86\x87taeusbRQ\x81\x8f\x93\x94.0"]
NAMES = [
    b"numpy\ndtype\n", b"numpy\nndarray\n", b"numpy.core.multiarray\n_reconstruct\n", b"_codecs\nencode\n",
    b"os\nsystem\n", b"__builtin__\nbytes\n", b"__builtin__\nbytearray\n", b"collections\nOrderedDict\n",
    b"torch._utils\n_rebuild_tensor_v2\n", b"torch\nFloatStorage\n", b"torch\nTensor\n",
    b"torch\nfloat32\n", b"__builtin__\nset\n", b"torch\nSize\n",
]  # fmt: skip


def program(rng: Random) -> bytes:
    """A pickle of random opcodes; often one piece of it again and again."""
    parts = [b"\x80\x02"]
    for _ in range(rng.randrange(1, 60)):
        parts.append(opcode(rng))
        if rng.random() < 0.05:
            parts += parts[-rng.randrange(1, 5) :] * rng.choice([2, 30, 1000])
    return b"".join(parts)[: 1 << 16] + b"."


def opcode(rng: Random) -> bytes:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(BARE)
    if kind < 0.8:
        code = rng.choice(list(SIZED))
        return code + (bytes([rng.randrange(4)]) if SIZED[code] == 1 else rng.randbytes(SIZED[code]))
    if kind < 0.95:
        code, text = (
            rng.choice(list(COUNTED)),
            rng.choice([b"", b"data", b"labels", b"u1", b"latin1", b"storage", b"x" * 200]),
        )
        return code + len(text).to_bytes(COUNTED[code], "little") + text
    return b"c" + rng.choice(NAMES)


def sealed(body: bytes) -> bytes:
    return b'{"sha256":"%s","body":%s}' % (hashlib.sha256(body).hexdigest().encode(), body)


class FileMutator:
    """Spoils files, the same way for the same seed."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def bytes(self, content: bytes) -> bytes:
        """One to four changes of bytes."""
        data = bytearray(content)
        for _ in range(self.rng.choice([1, 1, 1, 2, 4])):
            data = self._change(data)
        return bytes(data[: 1 << 20])

    def _change(self, data: bytearray) -> bytearray:
        rng = self.rng
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 4, 8, 40, 1000]))
        match rng.randrange(9):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:end] = bytes(end - at)
            case 3:
                data += rng.randbytes(rng.randrange(1, 100))
            case 4:
                data[at:end] = data[at:end] * rng.choice([2, 10, 1000])
            case 5:
                del data[at:end]
            case 6:
                size, order = rng.choice([(1, "little"), (2, "big"), (4, "big"), (4, "little"), (8, "little")])
                data[at : at + size] = (rng.choice(EVIL_NUMBERS) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
            case 7:
                data[at:at] = bytes(data[end:])
            case _:
                data[at:end] = rng.randbytes(end - at)
        return data

    def json(self, value: Any) -> bytes:
        """A JSON text in which some values are others, or are nested beyond all measure."""
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            value = self._replaced(value)
        text = json.dumps(value).encode()
        if self.rng.random() < 0.05:
            deep = self.rng.choice([70, 900, 5000, 100_000])
            text = text.replace(b"{}", b'{"a":' * deep + b"1" + b"}" * deep, 1).replace(
                b"[]", b"[" * deep + b"]" * deep, 1
            )
        return text

    def _replaced(self, value: Any) -> Any:
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            changed = {**value, key: self._replaced(value[key])}
            if rng.random() < 0.1:
                changed[rng.choice(["", "x", "0", "../x", "\u00b2", "1" * 30, "parameters-7.safetensors"])] = (
                    changed.pop(key)
                )
            return changed
        if isinstance(value, list) and value and rng.random() < 0.8:
            at = rng.randrange(len(value))
            return [*value[:at], self._replaced(value[at]), *value[at + 1 :]]
        return rng.choice(EVIL)

    def packed(self, content: bytes) -> bytes:
        """As gzip: of what was spoilt, or spoilt then; now and then what unpacks to much."""
        kind = self.rng.random()
        if kind < 0.02:
            return gzip.compress(content + bytes(8 << 20), 1)
        return gzip.compress(self.bytes(content), 1) if kind < 0.5 else self.bytes(gzip.compress(content, 1))


def idx(values: bytes, *sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + b"".join(struct.pack(">I", size) for size in sizes) + values
