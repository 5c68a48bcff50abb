"""The processes of a run that was started here: found by the kernel's word, signalled only while they are themselves.

Linux only. This process adopts whatever its children leave behind (a *subreaper*), so that a process which outlives its
run is a child of this one, and found.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evener.errors import ConfigError

_TASK = re.compile(r"(ps|worker):\d+")
_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37


@dataclass(frozen=True, slots=True)
class Living:
    """One process. Its number may be another's later, its number with its time of birth may not."""

    pid: int
    born: int  # clock ticks since the machine was started
    state: str = ""  # as in /proc: "R", "S", "T" stopped, "Z" ended and not waited for
    session: int = 0

    def same(self, other: Living | None) -> bool:
        return other is not None and (self.pid, self.born) == (other.pid, other.born)


def look(pid: int) -> tuple[Living, int] | None:
    """A process and its parent's number; None: there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Living(pid, int(words[19]), words[0], int(words[3])), int(words[1])


def descendants(root: int) -> list[Living]:
    """All processes below one, also those that have ended and nobody has waited for."""
    below: dict[int, list[Living]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (seen := look(int(entry.name))) is not None:
            below.setdefault(seen[1], []).append(seen[0])
    found, rest = [], [root]
    while rest:
        children = below.pop(rest.pop(), [])
        found += children
        rest += [child.pid for child in children]
    return found


def title(process: Living) -> str:
    """The command of a process, as `ps` shows it."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def send(process: Living, number: signal.Signals) -> bool:
    """Signal a process, if it is still the one that was seen. False: it is gone, and nobody was signalled."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:  # the handle stands for whoever has the number now; the time of birth says whether that is the one we mean
        seen = look(process.pid)
        if seen is None or not process.same(seen[0]):
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


class Brood:
    """The processes that this one has started since, whoever their parents were. Made by `brood`."""

    def __init__(self, others: list[Living]) -> None:
        self._others = {(other.pid, other.born) for other in others}

    def alive(self) -> list[Living]:
        return [one for one in self._all() if one.state != "Z"]

    def tasks(self) -> dict[str, Living]:
        """Tasks of evener by name: "ps:0", "worker:1".

        What a task forks, as a DataLoader does, is called like it; but the task alone leads its session.
        """
        leaders = {one: title(one).split() for one in self.alive() if one.session == one.pid}
        return {
            words[-1]: one
            for one, words in leaders.items()
            if words and _TASK.fullmatch(words[-1]) and words[:2] != ["evener", "guard"]
        }

    def reap(self, but: int) -> None:
        """Let those go that ended after their parents; `but`: the command itself, for which another waits."""
        for one in self._all():
            seen = look(one.pid)
            if one.state == "Z" and one.pid != but and seen is not None and seen[1] == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(one.pid, os.WNOHANG)

    def end(self) -> None:
        """Kill all that live, also what they start meanwhile."""
        for _ in range(10):
            if not [one for one in self.alive() if send(one, signal.SIGKILL)]:
                return

    def _all(self) -> list[Living]:
        return [one for one in descendants(os.getpid()) if (one.pid, one.born) not in self._others]


@contextmanager
def brood() -> Iterator[Brood]:
    """For as long as a run lasts; what lives then is killed.

    Raises:
        ConfigError: this system does not tell enough of processes.
    """
    if sys.platform != "linux":
        raise ConfigError("evener chaos needs Linux.", why="it finds and signals processes by /proc and pidfd.")
    before = ctypes.c_int(0)
    libc = ctypes.CDLL(None)
    libc.prctl(_GET_CHILD_SUBREAPER, ctypes.byref(before))
    libc.prctl(_SET_CHILD_SUBREAPER, 1)
    found = Brood(descendants(os.getpid()))
    try:
        yield found
    finally:
        found.end()
        libc.prctl(_SET_CHILD_SUBREAPER, before.value)
