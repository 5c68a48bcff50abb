"""What all messages are made of: their root, who speaks, and bounds of what a peer may say."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

#: Bounds that hold before anybody computes with what a peer said. 2**53: sums of such counts stay far below the 64 bits
#: that JSON and msgpack can write, and a float holds each exactly.
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Index = Annotated[int, Meta(ge=0, lt=2**20)]  # of a task
Lease = Annotated[int, Meta(ge=-1, lt=2**53)]
Word = Annotated[str, Meta(max_length=1024)]
#: Leases that a worker may have in hand, or name in one push.
Several = Annotated[list[Lease], Meta(max_length=4096)]
Want = Annotated[int, Meta(ge=0, le=4096)]
#: What a script keeps besides tensors of its model: JSON.
Script = Annotated[bytes, Meta(max_length=8 << 20)]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Root of all messages; encoded as a tagged array."""


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """One life of one worker, as seen by one generation of the servers."""

    worker: Index
    epoch: Count = 0  # granted by shard 0; a worker that comes back under its index gets the next one
    generation: Count = 0  # counts restores: a gradient of an older generation was computed on lost parameters
