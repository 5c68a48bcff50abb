"""Where the next good record begins behind a damaged one: looked for byte by byte, at a bounded cost."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Protocol

import numpy as np

from evener.data.tfrecord import crc
from evener.errors import InputError

#: Protocol buffers cannot be larger, so a length above it is damage.
MAX_RECORD = 2**31 - 1
#: Bytes that are read in vain, for each byte of the file. A head that agrees with its checksum may promise all of the
#: rest, and there can be one in every 12 bytes.
VAIN = 4

_BLOCK = 256 * 1024


class RecordBytes(Protocol):
    """The bytes of one file, unpacked."""

    path: Path
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer at the end."""
        ...

    def data_from(self, offset: int) -> int:
        """Where, from `offset` on, something else than zeros may lie: a file may be mostly hole."""
        ...


def length_of(head: bytes) -> int:
    """What the first 12 bytes of a record say; -1 when they are fewer."""
    return int.from_bytes(head[:8], "little") if len(head) == crc.HEAD else -1


class Search:
    """Goes through a file once, forwards. Each place is looked at once, however often it is asked to go on."""

    def __init__(self, source: RecordBytes) -> None:
        self._source = source
        self._left = VAIN * source.size
        self._block, self._start, self._stop = b"", 0, 0
        self._places: list[int] = []  # between start and stop, where a head agrees with its checksum

    def good_from(self, offset: int) -> int:
        """Where the next record with good length and good data begins, or the end of the file.

        Raises:
            InputError: too much was read in vain.
        """
        while offset + crc.HEAD <= self._source.size:
            if not self._start <= offset < self._stop:
                self._look(offset)
            for number in range(bisect_left(self._places, offset), len(self._places)):
                if self._is_good(self._places[number]):
                    return self._places[number]
            offset = self._stop
        return self._source.size

    def _look(self, offset: int) -> None:
        block = self._source.read(offset, _BLOCK)
        self._block, self._start = block, offset
        self._stop = offset + len(block) - crc.HEAD + 1 if len(block) >= crc.HEAD else self._source.size
        if block.strip(b"\0"):
            self._places = (crc.heads(np.frombuffer(block, np.uint8)) + offset).tolist()
        else:  # no head is all zeros
            self._places = []
            self._stop = max(self._stop, self._source.data_from(self._stop) - crc.HEAD + 1)

    def _is_good(self, place: int) -> bool:
        at = place - self._start
        length = length_of(self._block[at : at + crc.HEAD])
        if length > MAX_RECORD or place + length + 16 > self._source.size:
            return False
        frame = self._source.read(place, length + 16)
        if frame[-4:] == crc.tail(frame[crc.HEAD : -4]):
            return True
        self._left -= length
        if self._left < 0:
            raise InputError(
                f"{self._source.path}: no good record was found up to byte {place}.",
                why=f"so many places look like one that {VAIN} times the bytes of the file were read in vain.",
                fix="copy or make the file again.",
            )
        return False
