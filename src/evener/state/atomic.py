"""Files that hold either everything or nothing, whatever ends the process or the machine (RELIABILITY S2)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from evener import chaos

#: What a file system answers to a call that it does not have (Lustre without locks, CIFS and FUSE without fsync of a
#: directory, NFS without its lock service). Any other answer, EIO above all, is a failure.
LACKING = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


class FileRecord(msgspec.Struct, frozen=True):
    """One file of a checkpoint."""

    nbytes: int
    sha256: str


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a file so that its name holds either everything or nothing, even after a power loss."""
    draft = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    digest, nbytes = hashlib.sha256(), 0
    with contextlib.suppress(FileNotFoundError):  # of a process of this number that is no more; or a link
        os.unlink(draft)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            chaos.point("disk.write")
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                digest.update(view)
                nbytes += len(view)
                while len(view):
                    view = view[file.write(view) :]
            chaos.point("disk.fsync")
            flush(file.fileno())  # data before the name
        chaos.point("disk.rename")
        os.rename(draft, path)
        sync_directory(path.parent)  # the name itself
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    return FileRecord(nbytes, digest.hexdigest())


def sync_directory(path: Path) -> str:
    """Let the names in a directory survive a power loss. Why they do not, where this file system cannot; else ""."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return flush(fd)
    finally:
        os.close(fd)


def flush(fd: int) -> str:
    """`fsync`, where there is one: what is written is kept without it too, unless the power fails.

    Returns why not, where this file system has none; else "". Raises OSError when it has one and it failed.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in LACKING:
            raise
        return error.strerror or str(error)
    return ""
