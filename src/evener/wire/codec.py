"""Messages to header bytes and back: magic, version, then msgpack. Nothing in a header can make the reader run code."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from evener import errors
from evener.wire.layout import Spec
from evener.wire.messages import PROTOCOL, AnyMessage, Refused

MAGIC = b"evnr"
PREFIX = MAGIC + bytes([PROTOCOL])
MAX_SPECS = 16 * 1024 * 1024  # bytes a description of a model may unpack to
MAX_SENTENCE = 8000  # characters that one peer tells another to pass on: three of the longest fit in a header

#: Without these bounds 64 KB from the wire would become three million empty tensors, half a gigabyte of them.
_Shape = Annotated[tuple[int, ...], Meta(max_length=64)]
_Specs = Annotated[list[tuple[Annotated[str, Meta(max_length=4096)], _Shape, str, bool]], Meta(max_length=100_000)]

#: What a decoder raises at bytes of a peer. RecursionError: lists in lists in lists, in fields that we do not know.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)
_specs_decoder = msgspec.msgpack.Decoder(_Specs)


def encode(message: AnyMessage) -> bytes:
    """One message as header bytes."""
    return PREFIX + _encoder.encode(message)


def decode(header: bytes) -> AnyMessage:
    """The message of a header.

    Raises:
        ProtocolError: not evener's bytes, or not a message.
        VersionError: another version of the protocol.
    """
    if header[:4] != MAGIC:
        raise errors.ProtocolError(
            f"a peer sent {bytes(header[:8])!r}, which does not begin an evener message.",
            why="something else talks to this port.",
        )
    if header[4:5] != PREFIX[4:]:
        raise errors.VersionError(
            f"a peer speaks protocol {header[4] if len(header) > 4 else '?'}, this task speaks {PROTOCOL}.",
            why="the two tasks run different versions of evener.",
            fix="install the same evener everywhere.",
        )
    try:
        message: AnyMessage = _decoder.decode(memoryview(header)[5:])
        return message
    except _UNREADABLE as error:  # it quotes what it could not read
        raise errors.ProtocolError(f"a peer sent a message that cannot be read: {cut(str(error), 200)}.") from error


def pack_specs(specs: Iterable[Spec]) -> bytes:
    """A model's description, for `Hello.specs`."""
    return zlib.compress(_encoder.encode([(s.name, s.shape, s.dtype, s.trained) for s in specs]))


def unpack_specs(packed: bytes) -> list[Spec]:
    """The description in a `Hello`. Raises ProtocolError when it is damaged or unpacks to more than 16 MB."""
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(packed, MAX_SPECS)
        if unpacker.unconsumed_tail:
            raise errors.ProtocolError("a peer's model description is larger than 16 MB.")
        return [Spec(*row) for row in _specs_decoder.decode(plain)]
    except (zlib.error, *_UNREADABLE) as error:
        raise errors.ProtocolError(f"a peer's model description cannot be read: {cut(str(error), 200)}.") from error


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and how much is missing."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit} more characters)"


def refusal(error: errors.EvenerError) -> Refused:
    """An error as an answer. It fits in a header, also where the error quotes what a peer sent."""
    return Refused(type(error).__name__, *(cut(text, MAX_SENTENCE) for text in (error.what, error.why, error.fix)))


def raised(refused: Refused) -> errors.EvenerError:
    """The error in an answer; an unknown kind becomes a ProtocolError."""
    kind = getattr(errors, refused.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.EvenerError)):
        kind = errors.ProtocolError
    return kind(refused.what, why=refused.why, fix=refused.fix)
