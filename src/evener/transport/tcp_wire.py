"""What travels on a link between hosts, once both ends have greeted (and, with keys, shaken hands).

A message is a head (its kind and the length of its header), the header, and sometimes a payload: the bytes of each
range, in order, with no words between them, for both ends know the sizes from the first message of the link. Before a
payload the header is filled up with zeros, so that the payload begins at a multiple of `ALIGNMENT`. With keys
the header and every 512 KB of the payload are sealed pieces (`tcp_seal`), so that the receiver opens one while the
sender seals the next; the head is bound to each and tells nothing that a watcher could not count.

Nothing here touches a socket. A reader says where the next bytes belong (`target`) and is told how many came (`took`),
so the bytes of a payload go from the kernel to where they are wanted: no copy without keys, one (the opening) with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from evener.transport.channel import MAX_HEADER, MAX_PARTS
from evener.transport.tcp_seal import TAG_BYTES, Sealing

#: What both ends say first: magic, version, has keys.
GREETING = struct.Struct("<4sBB2x")
MAGIC, VERSION = b"EVTC", 2
HEAD = struct.Struct("<II")  # kind, bytes of the header
#: Of a payload that are sealed at once.
CHUNK = 1 << 19

#: What is sent before a payload has a multiple of so many bytes. The kernel copies it to pages of its own, which often
#: begin with it: so the header says where in a page a payload goes. Processors that copy by `rep movsb` take four times
#: as long to a place that lies, within its page, 1 to 15 bytes behind the one they copy from (AMD Zen 4: 2.8 GB/s, else
#: 10.6), and ranges of a payload begin at multiples of 64 in their own pages, too.
ALIGNMENT = 64

#: Kinds of messages. OPEN is a worker's first, its header the sizes it offers; BYE a server's last, with its reason.
OPEN, PLAIN, PAYLOAD, BYE = range(4)


@dataclass(frozen=True, slots=True)
class Received:
    """One that has come; its payload lies where the reader was told to put it."""

    kind: int
    header: bytes


def greeting(*, keys: bool) -> bytes:
    return GREETING.pack(MAGIC, VERSION, keys)


class Greeting:
    """Reads the first bytes of the other end."""

    def __init__(self) -> None:
        self._data, self._filled = bytearray(GREETING.size), 0

    #: As with a reader; a few bytes are not worth a word with the kernel.
    missing = 1

    def target(self) -> memoryview:
        return memoryview(self._data)[self._filled :]

    def took(self, nbytes: int) -> bool | None:
        """Has the other end keys? None while that is not known. Raises ValueError for anything but a greeting.

        Each byte is judged when it comes, so that who says something else need not finish it.
        """
        self._filled += nbytes
        known = min(self._filled, len(MAGIC))
        if self._data[:known] != MAGIC[:known]:
            if self._data[0] == 0xFF:
                raise ValueError("the greeting of ZeroMQ, which an older evener speaks")
            raise ValueError("no greeting of evener")
        if self._filled > len(MAGIC) and self._data[len(MAGIC)] != VERSION:
            raise ValueError(f"a greeting of transport version {self._data[len(MAGIC)]}, we speak {VERSION}")
        if self._filled < GREETING.size:
            return None
        _, _, keys = GREETING.unpack(self._data)
        if keys > 1 or any(self._data[6:]):
            raise ValueError("a malformed greeting")
        return bool(keys)


class Reader:
    """Reads messages. `limit` is the longest header that may come now, `targets` where a payload goes."""

    def __init__(self, opening: Sealing | None, limit: int = MAX_HEADER) -> None:
        self.limit = limit
        #: None while no payload may come, with the reason in `refusal`.
        self.targets: list[memoryview] | None = None
        self.refusal = "a payload before it was admitted"
        self._opening = opening
        self._head = bytearray(HEAD.size)
        self._scratch = memoryview(b"")  # for a sealed piece of a payload
        self._parts: Iterator[memoryview] = iter(())
        self._part = memoryview(b"")  # where the piece that is read now belongs
        self._header = b""
        #: What is read now; no bound method, whose circle would keep the memory of a payload after its link.
        self._phase: Callable[[Reader], Received | None]
        self._begin()

    def _begin(self) -> None:
        self._phase = Reader._took_head
        self._expect(memoryview(self._head))

    def _expect(self, target: memoryview) -> None:
        self._target, self._filled, self._wanted = target, 0, len(target)

    def target(self) -> memoryview:
        return self._target[self._filled :] if self._filled else self._target

    @property
    def missing(self) -> int:
        """Bytes until the next step."""
        return self._wanted - self._filled

    def took(self, nbytes: int) -> Received | None:
        """A whole message, if it is complete now. Raises ValueError for what no peer of ours would send."""
        self._filled += nbytes
        return None if self._filled < self._wanted else self._phase(self)

    def _took_head(self) -> Received | None:
        self._kind, length = HEAD.unpack(self._head)
        if self._kind > BYE:
            raise ValueError(f"a message of kind {self._kind}")
        if length > self.limit:
            raise ValueError(f"a header of {length} bytes, where {self.limit} are the most")
        if self._kind == PAYLOAD and self.targets is None:
            raise ValueError(self.refusal)
        self._phase = Reader._took_header
        self._length = length
        tag = TAG_BYTES if self._opening else 0
        size = length + tag + (filling(length + tag) if self._kind == PAYLOAD else 0)
        self._expect(memoryview(bytearray(size)))
        return None if size else self._took_header()

    def _took_header(self) -> Received | None:
        filled: bytearray | memoryview = self._target
        if self._opening is not None:
            filled = bytearray(self._wanted - TAG_BYTES)
            self._opening.open(self._target, bytes(self._head), filled)
        self._header = bytes(filled[: self._length])
        if any(filled[self._length :]):
            raise ValueError("a header that is filled up with something else than zeros")
        if self._kind == PAYLOAD and self.targets is not None:
            if self._opening is not None:
                self._scratch = memoryview(bytearray(_longest(self.targets) + TAG_BYTES))
            self._parts = pieces(self.targets, CHUNK if self._opening else 1 << 62)
            self._phase = Reader._took_piece
        return self._next_piece() if self._kind == PAYLOAD else self._end()

    def _next_piece(self) -> Received | None:
        part = next(self._parts, None)
        if part is None:
            return self._end()
        self._part = part
        if self._opening is None:
            self._expect(part)
        else:
            self._expect(self._scratch[: len(part) + TAG_BYTES])
        return None

    def _took_piece(self) -> Received | None:
        if self._opening is not None:
            self._opening.open(self._target, bytes(self._head), self._part)
        return self._next_piece()

    def _end(self) -> Received:
        message = Received(self._kind, self._header)
        self._part, self._header, self._scratch = memoryview(b""), b"", memoryview(b"")
        self._begin()
        return message


def pieces(ranges: Sequence[memoryview], size: int) -> Iterator[memoryview]:
    """The ranges in pieces of at most so many bytes; of an empty range there is none."""
    for view in ranges:
        for at in range(0, view.nbytes, size):
            yield view if view.nbytes <= size else view[at : at + size]


def filling(nbytes: int) -> int:
    """How many zeros follow on a header of so many bytes (with its tag, if it has one) before a payload begins.

    >>> filling(56), filling(4), filling(57)
    (0, 52, 63)
    """
    return -(HEAD.size + nbytes) % ALIGNMENT


def _longest(ranges: Sequence[memoryview]) -> int:
    """Bytes of the longest sealed piece of a payload, without its tag."""
    return min(CHUNK, max((view.nbytes for view in ranges), default=0))


def written(
    kind: int, header: bytes, payload: Sequence[memoryview], sealing: Sealing | None
) -> Iterator[list[bytes | memoryview]]:
    """A message as buffers to send, in order. What is yielded may change when the next is asked for."""
    head = HEAD.pack(kind, len(header))
    if kind == PAYLOAD:
        header += bytes(filling(len(header) + (TAG_BYTES if sealing else 0)))
    if sealing is None:
        yield [head + header, *(view for view in payload if view.nbytes)]
        return
    first = memoryview(bytearray(len(header) + TAG_BYTES))
    sealing.seal(header, head, first)
    before: list[bytes | memoryview] = [head, first]
    scratch = memoryview(bytearray(_longest(payload) + TAG_BYTES)) if payload else memoryview(b"")
    for piece in pieces(payload, CHUNK):
        sealed = scratch[: piece.nbytes + TAG_BYTES]
        sealing.seal(piece, head, sealed)
        yield [*before, sealed]
        before = []
    if before:
        yield before


def written_bytes(kind: int, header: bytes, payload: Sequence[memoryview], *, sealed: bool) -> int:
    """How many bytes `written` makes of a message."""
    first = len(header) + (TAG_BYTES if sealed else 0)
    tags = sum(-(-view.nbytes // CHUNK) for view in payload) if sealed else 0
    filled = filling(first) if kind == PAYLOAD else 0
    return HEAD.size + first + filled + sum(view.nbytes for view in payload) + tags * TAG_BYTES


def pack_sizes(sizes: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(sizes)}Q", *sizes)


def unpack_sizes(header: bytes) -> tuple[int, ...]:
    count, rest = divmod(len(header), 8)
    if rest or count > MAX_PARTS:
        raise ValueError(f"a list of sizes of {len(header)} bytes")
    return struct.unpack(f"<{count}Q", header)


#: The longest header of a first message.
MAX_OPENING = 8 * MAX_PARTS
