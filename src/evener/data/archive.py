"""The files in a tar archive, one after the other, each in memory and nowhere else.

`tarfile` believes what a header says, and takes memory for a name of 7 GB. Here, what is no wanted file is passed over
in small pieces, and names, members and the whole have limits. Links and devices are passed over too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

BLOCK = 512
#: Bytes of a name or of further attributes that stand in front of a member.
LONGEST = 1 << 16
#: Members of an archive, and bytes of all, unpacked: twenty times those of CIFAR-10.
MEMBERS, TOTAL = 10_000, 4 << 30

_PIECE = 1 << 20
_FILES, _EMPTY, _NAME, _ATTRIBUTES = b"0\x007", b"123456", b"L", b"x"
_IN_FRONT = b"LKNxXg"  # their content is of the next member, or of all that follow


class DamagedArchive(Exception):
    """This is no tar archive, or more than one that is read; the text says why."""


def members(stream: BinaryIO, limit_of: Callable[[str], int]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each wanted file.

    Args:
        stream: the archive, unpacked.
        limit_of: the most bytes that a file of this name may have; 0: it is not wanted.

    Raises:
        Damaged: it is no archive, is cut short, or a limit is passed.
    """
    reader, longer = _Reader(stream), ""
    for _ in range(MEMBERS):
        header = reader.header()
        if not header.strip(b"\0"):
            return
        _check(header)
        name, kind, size = longer or _name(header), header[156:157], _number(header[124:136])
        longer = ""
        if kind in _IN_FRONT:
            if size > LONGEST:
                raise DamagedArchive(f"a name or attributes of {size} bytes")
            content = reader.padded(size)
            longer = _text(content) if kind == _NAME else _path(content) if kind == _ATTRIBUTES else ""
        elif kind in _FILES and (limit := limit_of(name)):
            if size > limit:
                raise DamagedArchive(f"{name} is too large: {size} bytes, more than {limit}")
            yield name, reader.padded(size)
        elif kind not in _EMPTY:
            reader.skip(size)
    raise DamagedArchive(f"more than {MEMBERS} members")


class _Reader:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, TOTAL

    def header(self) -> bytes:
        """A whole one; nothing where the stream ends, as it may between two members."""
        first = self._stream.read(1)
        return first + self.exactly(BLOCK - 1) if first else b""

    def exactly(self, nbytes: int) -> bytes:
        self._count(nbytes)
        content = bytearray()
        while len(content) < nbytes:  # in pieces: memory is taken for what is there, not for what a header promises
            content += self._piece(nbytes - len(content))
        return bytes(content)

    def padded(self, nbytes: int) -> bytes:
        content = self.exactly(nbytes)
        self.exactly(-nbytes % BLOCK)
        return content

    def skip(self, nbytes: int) -> None:
        left = nbytes + -nbytes % BLOCK
        self._count(left)
        while left:
            left -= len(self._piece(left))

    def _piece(self, nbytes: int) -> bytes:
        piece = self._stream.read(min(nbytes, _PIECE))
        if not piece:
            raise DamagedArchive("it is cut short")
        return piece

    def _count(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise DamagedArchive(f"it unpacks to more than {TOTAL} bytes")


def _check(header: bytes) -> None:
    """Every header holds the sum of its bytes, its own field taken as spaces."""
    if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise DamagedArchive("a header that does not agree with its checksum")


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU, where octal digits do not suffice
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise DamagedArchive("a header with a number that is none")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    before = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{before}/{_text(header[:100])}" if before else _text(header[:100])


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _path(attributes: bytes) -> str:
    """The name in POSIX attributes, lines of "LENGTH KEY=VALUE"; empty if they have none."""
    for line in attributes.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return _text(value)
    return ""
