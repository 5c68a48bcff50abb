"""Keys that nobody has to make: for tasks of one user on one machine, in a directory that only this user can read.

They keep out other users of the machine, who reach its loopback addresses as well as we do. Between machines there is
no such directory: there somebody makes keys and hands them out (`evener keys new`).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from evener.transport import keys


def own(private: Path, ps: int, workers: int) -> Path:
    """The directory with the keys of tasks ps-0, ..., worker-0, ... and of the client; what is missing is made.

    All clusters of this user on this machine use the same ones: they trust each other already. Tasks may ask at once.

    Args:
        private: a directory that nobody else can read.

    Raises:
        SecurityError: a key there cannot be read or written.
    """
    directory = private / "keys"
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = keys.names(max(ps, 1), max(workers, 1))
        # A writer that was killed may have left one half: keys are pairs, or they are made anew.
        missing = [name for name in wanted if not _whole(directory, name)]
        for name in missing:
            for suffix in (keys.PUBLIC, keys.SECRET):
                (directory / (name + suffix)).unlink(missing_ok=True)
        if missing:
            keys.new(directory, missing)
    finally:
        os.close(lock)
    return directory


def _whole(directory: Path, name: str) -> bool:
    return all((directory / (name + suffix)).is_file() for suffix in (keys.PUBLIC, keys.SECRET))
