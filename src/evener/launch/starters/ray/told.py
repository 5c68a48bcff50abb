"""What the launcher and the actors of a run tell each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Start:
    """Where a person has started the run. An actor that finds the same directories works in them."""

    directory: str
    mark: int  # of that directory: what another one of this name hardly has
    logdir: str
    token: str  # the name of a file that the launcher has written there
    keyed: bool = True  # tasks prove to each other who they are
    shipped: Mapping[str, str] = field(default_factory=dict)  # settings that are paths, as they are where Ray ships to


@dataclass(frozen=True, slots=True)
class ActorHere:
    """An actor says where it has come to stand."""

    host: str
    address: str  # by which other nodes reach it
    node: str  # as Ray calls it
    version: str  # of evener
    certificate: str  # the public half of its key, PEM; empty: no keys
    shares: bool  # it sees the launcher's logdir


@dataclass(frozen=True, slots=True)
class Heard:
    """What a task has told since: reports as they stand in a stream. `how`: as `Running.ended`, once it is over."""

    reports: bytes = b""
    how: str | None = None
    drains: bool = False  # its node is to go away: this task was told to leave


def mark_of(directory: str) -> int:
    """What tells a directory from others of its name; the same on all machines that share it. 0: there is none.

    Its inode: its times change while a run writes there.
    """
    try:
        return os.stat(directory).st_ino
    except OSError:
        return 0


def same(start: Start) -> bool:
    """Whether the launcher's current directory is here too."""
    return start.mark != 0 and mark_of(start.directory) == start.mark


def shares(start: Start) -> bool:
    """Whether the launcher's logdir is here too."""
    return (Path(start.logdir) / start.token).is_file()
