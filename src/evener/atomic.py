"""Files that hold either everything or nothing, whatever ends the process or the machine (RELIABILITY S2)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from evener import chaos


class Record(msgspec.Struct, frozen=True):
    """One file of a checkpoint."""

    nbytes: int
    sha256: str


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview]) -> Record:
    """Write a file so that its name holds either everything or nothing, even after a power loss."""
    draft = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    digest, nbytes = hashlib.sha256(), 0
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                digest.update(view)
                nbytes += len(view)
                chaos.point("disk.write")
                while len(view):
                    view = view[file.write(view) :]
            chaos.point("disk.fsync")
            os.fsync(file.fileno())  # data before the name
        chaos.point("disk.rename")
        os.rename(draft, path)
        sync_directory(path.parent)  # the name itself
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    return Record(nbytes, digest.hexdigest())


def sync_directory(path: Path) -> None:
    """Let the names in a directory survive a power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
