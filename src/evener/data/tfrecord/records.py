"""The frames of a TFRecord file: uint64 length, its masked CRC, the data, their masked CRC; no header, no index.

All of it is little-endian. A file that was cut between two records looks whole: nothing in it says how many there are.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from evener import files
from evener.data.tfrecord import crc
from evener.data.tfrecord.search import MAX_RECORD, RecordBytes, Search, length_of
from evener.errors import InputError

#: A compressed file is unpacked into memory, up to this size.
MAX_UNPACKED = 4 * 1024**3

#: Bytes at either end of a file by which another content is known.
ENDS = 4096

_BLOCK, _SMALL_BLOCK, _LARGE_RECORD = 256 * 1024, 4096, 16 * 1024


@dataclass(frozen=True, slots=True)
class Bad:
    """A stretch of a file that holds no good record: usually one, more when a length was damaged.

    Args:
        offset, nbytes: where it lies, in bytes (of the unpacked data).
        number: of the first record that it spoils, counted from 0.
        reason: what is wrong.
    """

    path: Path
    offset: int
    nbytes: int
    number: int
    reason: str

    def error(self) -> InputError:
        return InputError(
            f"{self.path}: record {self.number} at byte {self.offset} is bad: {self.reason}.",
            why="it does not agree with its checksum, or the file was cut short.",
            fix="copy or make the file again; or leave bad records out, which are then counted: "
            "skip_bad_records=True, --skip-bad-records.",
        )


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A good record: number, offset of its first byte and length of its data; the data if they were asked for."""

    number: int
    offset: int
    length: int
    data: bytes = b""


class OnDisk:
    """A file, read by position: nothing is mapped, so a file that shrinks or a disk that fails is no SIGBUS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = files.descriptor(path, os.O_RDONLY, link=True)
            found = os.fstat(self._descriptor)
        except OSError as error:
            raise unreadable(path, error) from error
        self.size = found.st_size
        self.time_ns = found.st_mtime_ns
        # What a change shows by. Not its time: some file systems tell none, or another one a second later.
        ends = self.read(0, ENDS) + self.read(max(0, self.size - ENDS), ENDS)
        self.stamp = (self.size, hashlib.sha256(ends).hexdigest()[:16])

    def read(self, offset: int, count: int) -> bytes:
        try:
            return os.pread(self._descriptor, count, offset)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def data_from(self, offset: int) -> int:
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError as error:  # there are no more data; or this file system does not tell
            return self.size if error.errno == errno.ENXIO else offset

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class Unpacked:
    """A gzip file, unpacked into memory, because it cannot be read by position."""

    def __init__(self, path: Path, *, max_nbytes: int = MAX_UNPACKED) -> None:
        self.path = path
        content = bytearray()
        try:
            with files.opened(path) as packed, gzip.GzipFile(fileobj=packed) as file:
                while piece := file.read(1 << 20):
                    content += piece
                    if len(content) > max_nbytes:
                        raise InputError(
                            f"{path} holds more than {max_nbytes} bytes when unpacked.",
                            why="compressed files are read into memory.",
                            fix="unpack it with gunzip; plain files are read from disk, record by record.",
                        )
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path} is damaged after {len(content)} unpacked bytes: {error}",
                why="it cannot be unpacked to its end, so the records behind that place are lost.",
                fix="copy or make the file again.",
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error
        except MemoryError as error:
            raise InputError(
                f"{path} holds more than {len(content)} bytes when unpacked, and there is no more memory.",
                why="compressed files are read into memory.",
                fix="unpack it with gunzip; plain files are read from disk, record by record.",
            ) from error
        self._content = memoryview(content)  # without a copy
        self.size = len(content)

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._content[offset : offset + count])

    def data_from(self, offset: int) -> int:
        return offset


def is_gzip(path: Path) -> bool:
    """By its first bytes. A plain file whose first length looks like gzip has that length's checksum behind it."""
    first = OnDisk(path).read(0, crc.HEAD)
    return first[:3] == b"\x1f\x8b\x08" and first != crc.head(max(length_of(first), 0))


def opened(path: Path) -> OnDisk | Unpacked:
    """The bytes of a file, by its kind.

    Raises:
        InputError: it cannot be read, or not be unpacked.
    """
    return Unpacked(path) if is_gzip(path) else OnDisk(path)


def read(source: RecordBytes, number: int, offset: int, length: int) -> bytes:
    """The data of one record whose place is known.

    Raises:
        InputError: it is not there, or damaged.
    """
    frame = source.read(offset, length + 16)
    data = frame[crc.HEAD : -4]
    if len(frame) < length + 16:
        reason = f"{len(frame)} of its {length + 16} bytes are there"
    elif frame[: crc.HEAD] != crc.head(length):
        reason = "its length has changed since the file was indexed"
    elif frame[-4:] != crc.tail(data):
        reason = "its data do not agree with their checksum"
    else:
        return data
    raise Bad(source.path, offset, len(frame), number, reason).error()


def walk(source: RecordBytes, *, data: bool, skip: bool = False) -> Iterator[FoundRecord | Bad]:
    """All records of a file in order. The first that is bad is the last, unless bad ones are skipped.

    Args:
        data: read and check the data too, not the lengths alone.
        skip: go on behind bad stretches. After a damaged length the next good record is searched for, byte by byte.
    """
    window, search = _Window(source), Search(source)
    number = offset = block = 0
    while offset < source.size:
        # Behind a large record, only the next head is wanted when data are not.
        block = _SMALL_BLOCK if block > _LARGE_RECORD and not data else _BLOCK
        found = _next(window, number, offset, data, block)
        if isinstance(found, Bad):
            if not skip:
                yield found
                return
            if found.nbytes == 0:
                found = replace(found, nbytes=search.good_from(offset + 1) - offset)
            offset += found.nbytes
        else:
            block = found.length
            offset += found.length + 16
        yield found
        number += 1


def told(skipped: int, good: int, first: Bad | None) -> None:
    """Say how many bad records were left out, and where the first of them is."""
    if skipped and first:
        records = "record" if skipped == 1 else "records"
        sys.stderr.write(
            f"skipped {skipped} bad {records}, kept {good}; the first: {first.path}, record {first.number} at byte "
            f"{first.offset}: {first.reason}\n"
        )


def unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be read: {error.strerror or error}.",
        why=str(error),
        fix="check the path, and that this user may read the file.",
    )


class _Window:
    """A block of the file in memory: a system call for each small record would be most of the time."""

    def __init__(self, source: RecordBytes) -> None:
        self.source = source
        self._start = 0
        self._block = b""

    def read(self, offset: int, count: int, block: int = _BLOCK) -> bytes:
        at = offset - self._start
        if at < 0 or at + count > len(self._block):
            if count > block:
                return self.source.read(offset, count)
            self._start, at = offset, 0
            self._block = self.source.read(offset, block)
        return self._block[at : at + count]


def _next(window: _Window, number: int, offset: int, data: bool, block: int) -> FoundRecord | Bad:
    """The record at `offset`; a `Bad` of 0 bytes when it cannot be told where the next one begins."""
    head = window.read(offset, crc.HEAD, block)
    left = window.source.size - offset

    def bad(reason: str, nbytes: int = 0) -> Bad:
        return Bad(window.source.path, offset, nbytes, number, reason)

    length = length_of(head)
    if length < 0:
        return bad(f"the file ends after {len(head)} of the 12 bytes of its length and checksum", left)
    if head != crc.head(length) or length > MAX_RECORD:
        is_it = "; is this a TFRecord file?" if offset == 0 else ""
        return bad(f"its length does not agree with its checksum, or is no length{is_it}")
    if left < length + 16:
        return bad(f"the file ends after {left} of its {length + 16} bytes")
    if not data:
        return FoundRecord(number, offset, length)
    frame = window.read(offset, length + 16)
    content = frame[crc.HEAD : -4]
    if len(frame) < length + 16 or frame[-4:] != crc.tail(content):
        return bad("its data do not agree with their checksum", length + 16)
    return FoundRecord(number, offset, length, content)
