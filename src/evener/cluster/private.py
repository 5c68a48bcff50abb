"""A directory that only this user's processes can look into: keys of runs on one machine, and where they meet."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from evener.cluster.cluster import Address, Task, address
from evener.cluster.environment import runtime_directory
from evener.errors import SecurityError
from evener.settings import Settings
from evener.transport.own_keys import own


def keyed(settings: Settings, addresses: Iterable[Address]) -> Settings:
    """The settings of tasks on one machine, with this user's own keys where links may go over the network.

    Other users of a machine reach its loopback addresses too. Where tasks run on several machines nothing is changed:
    there somebody makes keys, or says --insecure.

    Raises:
        SecurityError: there is no place for such keys.
    """
    if settings.keys or settings.insecure or settings.transport == "shared":
        return settings
    if not all(address.loopback for address in addresses):
        return settings
    directory = own(private_directory(), settings.ps, settings.workers)
    return replace(settings, keys=str(directory))


def keyed_here(settings: Settings) -> Settings:
    """As `keyed`, for tasks that a launcher of this machine starts."""
    if settings.transport != "tcp" and not settings.ps_hosts:
        return settings  # shared memory: the kernel says who the other end is
    tasks = (Task("ps", index) for index in range(settings.ps))
    return keyed(settings, [address(text, task) for text, task in zip(settings.ps_hosts, tasks, strict=False)])


def private_directory(runtime: str | None = None) -> Path:
    """The user's own directory on this machine, made if it is missing; nobody else reads or writes in it.

    Args:
        runtime: what XDG_RUNTIME_DIR says, which systemd makes for each user at login; empty where it is not set. None:
            look.

    Raises:
        SecurityError: there is none, and none can be made.
    """
    runtime = runtime_directory() if runtime is None else runtime
    base = Path(runtime) if runtime and _ours(Path(runtime)) else Path(os.path.expanduser("~")) / ".cache"
    path = base / "evener"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise _none(path, str(error)) from error
    if not _ours(path):
        raise _none(path, "it is a link, or another user's")
    return path


def _ours(path: Path) -> bool:
    """A directory, no link, that belongs to this user, and that nobody else may write in."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _none(path: Path, why: str) -> SecurityError:
    return SecurityError(
        f"{path} cannot be a directory for this user's keys.",
        why=f"{why}.",
        fix="set XDG_RUNTIME_DIR to a directory of your own, give --keys DIR, or say --insecure.",
    )
