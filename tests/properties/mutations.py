"""Frames that are almost right: valid messages, and a seeded way to spoil them.

Half of the mutations work on bytes (flip, cut, splice, lie about a length), half on what the bytes mean (another type,
a huge number, a field too many, a list in a list in a list, another message's name, a bomb as the model's description).
"""

from __future__ import annotations

import math
import zlib
from random import Random
from typing import Any

import msgspec

from evener.wire import codec
from evener.wire.layout import Layout
from evener.wire.messages import (
    AnyMessage,
    Decided,
    Follow,
    Goodbye,
    Granted,
    Halt,
    Held,
    Hello,
    Join,
    Lead,
    Lost,
    Pull,
    Pulled,
    Push,
    Refused,
    Released,
    RunOver,
    Save,
    Saved,
)  # fmt: skip
from evener.wire.words import Identity

#: Heads of msgpack values that promise far more than follows: text, bytes, lists, maps, extensions.
LIES = [
    b"\xd9\xff", b"\xda\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc4\xff", b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc6\x0f\xff\xff\xff", b"\x9f", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", b"\x8f",
    b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc7\xff\x01", b"\xc8\xff\xff\x01",
    b"\xc9\xff\xff\xff\xff\x01", b"\xc1",
]  # fmt: skip
DEEP = [b"\x91" * 3000 + b"\xc0", b"\x81\xc0" * 3000, b"\x91" * 100_000]


def bomb(pattern: bytes, head: bytes = b"") -> bytes:
    """zlib of 20 MB of a pattern, behind a head: a few KB on the wire."""
    packer = zlib.compressobj(9)
    block = pattern * ((1 << 20) // len(pattern))
    return b"".join([packer.compress(head), *(packer.compress(block) for _ in range(20)), packer.flush()])


def rows(count: int) -> bytes:
    """The description of so many tensors without name and shape, 5 bytes each."""
    return zlib.compress(b"\xdd" + count.to_bytes(4, "big") + b"\x94\xa0\x90\xa0\xc2" * count, 9)


BOMBS = [
    bomb(b"\0"),
    bomb(b"\x94\xa0\x90\xa0\xc2", b"\xdd\x00\x3f\xff\xff"),
    rows(3_000_000),
    rows(99_999),
    zlib.compress(b"\x91\x94\xa1w\xdd\x00\xff\xff\xff" + b"\1" * 0xFFFFFF + b"\xa0\xc2", 9),
    zlib.compress(b"\x91" * 1_000_000),
    zlib.compress(b"\xdd\xff\xff\xff\xff"),
    zlib.compress(b""),
]
EVIL: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, -(2**31), 2**53, 2**63 - 1, -(2**63), 2**64 - 1, 0.0, -0.0, 1e308, 5e-324,
    math.nan, math.inf, -math.inf, "", "x", "\0\n\x1b[2J", "A" * 1000, "\N{GRINNING FACE}" * 20_000, b"", b"\xff" * 300,
    [], [[]], [0, 0, 0], {}, {"a": 1}, {1: {2: {3: []}}}, [1] * 1000, msgspec.msgpack.Ext(5, b"x"),
    msgspec.msgpack.Ext(-1, b"\xff" * 12),
]  # fmt: skip
NAMES = ["Hello", "Join", "Push", "Pull", "Goodbye", "Halt", "Granted", "Released", "Refused", "Follow", "Lead", "Held",
         "Lost", "Decided", "Save", "Saved", "RunOver", "Nope", "__class__", ""]  # fmt: skip


def valid(identity: Identity, *, run: str, evener: str, recipe: str, layout: Layout, samples: int) -> list[AnyMessage]:
    """One of each message, as a task of this run would say it."""
    specs = codec.pack_specs(layout.specs)
    release = Released(7, 8, 9, "reached step 10", True, "computed at version 2, now 3", 1, 4, 0.5)
    return [
        Hello(identity, run, evener, recipe, layout.fingerprint, specs, samples, "here", 812),
        Join(identity), Push(identity, 1, 0, 0, 0.5, 10), Pull(identity, "parameters"), Goodbye(identity),
        Halt(identity, "why"), Granted(identity), release, Pulled("parameters", 1), Refused("Fenced", "a", "b", "c"),
        Follow(1, run, layout.fingerprint), Lead(1, 0), Held(1, 0, 1, 1), Lost(1, 0, 1),
        Decided(8, [(0, 1, 7)], [(1, 1, 6)], [(0, 1, release)], [(2, 1)]), Save(3),
        Saved(1, 3, {"a": (1, "f" * 64)}, b"{}"), RunOver("over"),
    ]  # fmt: skip


class Mutator:
    """Spoils headers; the same seed gives the same frames."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def frame(self, corpus: list[bytes]) -> bytes:
        """One header made from those of the corpus, at most as long as a header may be."""
        rng = self._rng
        header = rng.choice(corpus)
        if rng.random() < 0.5:
            header = self._rethink(header)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            header = self._scratch(header, corpus)
        return header[: 128 * 1024]

    def _scratch(self, header: bytes, corpus: list[bytes]) -> bytes:
        """One mutation of bytes."""
        rng, changed = self._rng, bytearray(header)
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(9):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = rng.randbytes(rng.randint(1, 6))
            case 4:
                changed[at:at] = changed[at : at + rng.randint(1, 20)]
            case 5:
                other = rng.choice(corpus)
                changed[at:] = other[rng.randrange(len(other)) :]  # two messages, spliced
            case 6:
                lie = rng.choice(LIES)
                changed[at : at + rng.choice((0, 1, len(lie)))] = lie
            case 7 if rng.random() < 0.05:
                changed[at:] = rng.choice(DEEP)
            case _:
                changed[5:6] = bytes([0x90 | rng.randrange(16)])  # how many fields there are
        return bytes(changed)

    def _rethink(self, header: bytes) -> bytes:
        """One mutation of what a header means."""
        rng = self._rng
        try:
            fields = msgspec.msgpack.decode(header[5:])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return header
        if not isinstance(fields, list) or not fields:
            return header
        where, at = fields, rng.randrange(len(fields))
        while isinstance(where[at], list) and where[at] and rng.random() < 0.7:
            where, at = where[at], rng.randrange(len(where[at]))
        match rng.randrange(8):
            case 0:
                fields[0] = rng.choice(NAMES)
            case 1:
                where.insert(at, rng.choice(EVIL))
            case 2:
                del where[at]
            case 3:
                where.append(rng.choice(EVIL))
            case 4 if fields[0] == "Hello" and len(fields) > 7 and rng.random() < 0.2:
                fields[6], fields[7] = "0" * 16, rng.choice(BOMBS)  # another layout, so the description is read
            case 5 if isinstance(where[at], int):
                where[at] += rng.choice((-1, 1, 256, -256))
            case 6 if rng.random() < 0.05:
                return header[:5] + msgspec.msgpack.encode(fields)[:-1] + rng.choice(DEEP)
            case _:
                where[at] = rng.choice(EVIL)
        try:
            return header[:5] + msgspec.msgpack.encode(fields)
        except OverflowError:  # a number that was the greatest already
            return header
