"""What processes hold that could outlive them, read from /proc; and whether it has."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Belongings:
    """What some processes hold that could outlive them."""

    sockets: frozenset[str] = frozenset()  # names of UNIX sockets: abstract ones, "@name", and files
    ports: frozenset[int] = frozenset()  # that they listen on
    shared: frozenset[str] = frozenset()  # in /dev/shm

    def __or__(self, other: Belongings) -> Belongings:
        return Belongings(self.sockets | other.sockets, self.ports | other.ports, self.shared | other.shared)

    def left(self) -> list[str]:
        """What of it is still there."""
        ports = {port for port, _ in _listening()}
        names = {name for name, _ in _unix_sockets()}
        return (
            sorted(name for name in self.sockets if name in names or os.path.exists(name))
            + [f"port {port}" for port in sorted(self.ports & ports)]
            + sorted(path for path in self.shared if os.path.exists(path))
        )


def belongings(pids: Iterable[int]) -> Belongings:
    """Of these processes now."""
    links: set[str] = set()
    shared: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    links.add(os.readlink(fd))
            maps = Path(f"/proc/{pid}/maps").read_text()
            shared |= set(re.findall(r"(/dev/shm/\S+)", maps))
    shared |= {link for link in links if link.startswith("/dev/shm/")}  # noqa: S108 - looked at only
    return Belongings(
        frozenset(name for name, inode in _unix_sockets() if f"socket:[{inode}]" in links),
        frozenset(port for port, inode in _listening() if f"socket:[{inode}]" in links),
        frozenset(path.removesuffix(" (deleted)") for path in shared),
    )


def drafts(logdir: Path) -> list[str]:
    """Files that were being written to a logdir's checkpoints when somebody died."""
    return sorted(str(path) for path in (logdir / "checkpoints").rglob("*.tmp.*"))


def _unix_sockets() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if len(words) == 8:
            yield words[7], words[6]


def _listening() -> Iterator[tuple[int, str]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):  # no such protocol here
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A":
                    yield int(words[1].rpartition(":")[2], 16), words[9]
