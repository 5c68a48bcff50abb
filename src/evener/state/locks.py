"""A directory that one run has for itself, on whatever file system it lies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from evener.errors import CheckpointError
from evener.files import descriptor
from evener.state.atomic import LACKING, sync_directory

#: What `flock` answers when somebody else has the lock; EACCES where a network file system makes it of other locks.
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

#: What the file of a lock begins with.
NOTE = b"pid "


class Lock:
    """Held from its making to `close`; the kernel lets go of it too, at death.

    Args:
        directory: made if it is not there.
        tell: gets a line for each thing that the file system lacks: locks, names that survive a power loss.

    Raises:
        CheckpointError: the directory cannot be written, or another run holds it.
    """

    def __init__(self, directory: Path, tell: Callable[[str], None]) -> None:
        self._directory, self._file, self._fd = directory, directory / ".lock", -1
        self._acquire(tell)
        self._probe(tell)

    def _acquire(self, tell: Callable[[str], None]) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._fd = descriptor(self._file, os.O_RDWR | os.O_CREAT, link=False)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in LACKING:
                tell(
                    f"warning: {self._directory} is on a file system without locks ({error.strerror}): nothing keeps "
                    "a second run out of it"
                )
                return
            raise self._refused(error) from error
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a note of who has it
            if os.pread(self._fd, len(NOTE), 0) in (b"", NOTE):  # else it is a file of somebody else
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, NOTE + str(os.getpid()).encode(), 0)

    def lost(self) -> bool:
        """Whether the directory was deleted, or the lock in it: another run would not see it."""
        # Not told by its number: on some file systems that changes by itself.
        return self._fd < 0 or not os.path.lexists(self._file) or os.fstat(self._fd).st_nlink == 0

    def _refused(self, error: OSError) -> CheckpointError:
        holder = os.read(self._fd, 64).decode(errors="replace")
        self.close()
        if error.errno not in HELD:
            return CheckpointError(
                f"{self._directory} cannot be locked ({error.strerror}).", fix="choose another --logdir."
            )
        return CheckpointError(
            f"{self._directory} is in use by another run ({holder or 'unknown process'}).",
            why="two runs in one directory would overwrite each other's checkpoints.",
            fix="wait for it, stop it, or choose another --logdir.",
        )

    def _probe(self, tell: Callable[[str], None]) -> None:
        """Try now what each checkpoint needs, not after an hour of training."""
        try:
            lacking = sync_directory(self._directory)
        except OSError as error:
            self.close()
            raise self._not_writable(error) from error
        if lacking:
            tell(
                f"warning: {self._directory} is on a file system that cannot flush a directory ({lacking}): "
                "checkpoints survive kill -9, but a power loss may take the newest"
            )

    def _not_writable(self, error: OSError) -> CheckpointError:
        strange = error.errno in (errno.ELOOP, errno.EINVAL) and error.filename == str(self._file)
        return CheckpointError(
            f"{self._directory} is not writable ({error.strerror}).",
            why=f"a run writes its number into {self._file}." if strange else "",
            fix=f"look what it is and remove {self._file}, or choose another --logdir."
            if strange
            else "choose another --logdir.",
        )

    def close(self) -> None:
        """Let go of the directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
