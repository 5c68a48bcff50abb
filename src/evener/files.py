"""Files that may come from strangers: opened only where they are regular files, and read up to a limit.

A name may belong to a FIFO, on which `open` waits for ever, to a device such as /dev/zero, which has no end, or to a
link. What is refused here is an OSError, so that a reader tells it as it tells what the system refuses: its `strerror`
is half a sentence, and the reader says which file, why, and how to mend it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import msgspec

#: What reading JSON raises where the text is damaged, nested too deep, or none of what is asked for.
NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

#: Bytes of a small file of ours: a note, a list of grants, an address. None comes near it.
SMALL = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def descriptor(path: Path, flags: int, *, link: bool) -> int:
    """`os.open` for a regular file alone; it never waits.

    Args:
        link: whether the name may be a symbolic link, as that of a data set may. Where evener writes, it may not: what
            is written would land in a file of somebody else.

    Raises:
        OSError: as `os.open`, and for whatever is no regular file.
    """
    # NONBLOCK: a FIFO would wait for its other end; a terminal must not become that of this process.
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if link else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        raise
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = next((name for is_it, name in _KINDS if is_it(mode)), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return fd


def memory() -> int:
    """Bytes of memory of this machine: no file that has more is read into it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def opened(path: Path, *, link: bool = True) -> BinaryIO:
    """A regular file, to be read. Raises OSError as `descriptor` does."""
    return os.fdopen(descriptor(path, os.O_RDONLY, link=link), "rb")


def content(path: Path, limit: int, *, link: bool = True) -> bytes:
    """All bytes of a regular file that has at most `limit` of them.

    Raises:
        OSError: it cannot be read, is no regular file, or has more; then no memory was taken for it.
    """
    with opened(path, link=link) as file:
        if os.fstat(file.fileno()).st_size <= limit:
            read = file.read(limit + 1)
            if len(read) <= limit:
                return read
    raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
