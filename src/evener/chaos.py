"""Named points where a test makes a task die, stop or fail: ``chaos.point("server.applied")``.

A point does nothing unless the task was started with a plan in the environment variable EVENER_CHAOS:

    ps:0/server.applied@17=kill; worker:1#2/worker.pushed@40=stop; checkpoint.writing=enospc

Each fault is ``[TASK[#LIFE]/]POINT[@N]=ACTION``: when this task, in this life of it, passes this point for the N-th
time. Without TASK it is any task, without N the first time. Lives are counted by the launcher, from 1: without LIFE
it is the first alone, so that a task that was started again does not meet its plan again; ``#*`` is every life.

Actions: ``kill`` (SIGKILL to oneself), ``term`` (SIGTERM to oneself: it is told to leave), ``stop`` (SIGSTOP to
oneself; someone else must send SIGCONT), ``exit`` (status 3, at once), ``raise`` (a RuntimeError, as a user's code
would), ``enospc`` (the OSError of a full disk), and ``sleep:SECONDS``.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass

from evener.errors import ConfigError

log = logging.getLogger(__name__)

#: Every point there is, by the phases of RELIABILITY section 2; a test keeps them equal to the calls.
POINTS = frozenset(
    {
        "worker.hello",  # before it says who it is, to the first shard
        "worker.joined",  # all shards know it; it has no parameters yet
        "worker.computing",  # it has a batch
        "worker.pushing",  # before the push to each shard: with two shards, every second time is between them
        "worker.pushed",  # all shards have the gradient, none has answered
        "worker.hook",  # the update is done, its hooks come
        "worker.ending",  # the run is over; the chief evaluates next
        "worker.showing",  # before it asks for parameters to evaluate
        "worker.closing",  # before its goodbyes
        "worker.left",  # after them
        "server.starting",  # before it listens
        "server.bound",  # it listens, nobody was told
        "server.restoring",  # before the newest checkpoint is read
        "server.following",  # a follower knows the step from which ps:0 goes on
        "server.granting",  # a worker's epoch is on disk, its answer is not sent
        "server.held",  # a gradient came
        "server.applying",  # before an update
        "server.applied",  # after it; nobody was told
        "server.leaving",  # it was told to leave; the save that its leaving waits for comes next
        "server.draining",  # the run is over; the others are told next
        "server.ending",  # the final checkpoint is there; the followers are told next
        "server.ended",  # and they were told
        "checkpoint.writing",  # before a shard's files
        "checkpoint.written",  # the files have their names, the manifest is not there
        "checkpoint.committed",  # the manifest is there
        "checkpoint.deleting",  # before an old one goes
        "disk.write",  # before each write
        "disk.fsync",
        "disk.rename",
    }
)
ACTIONS = ("kill", "term", "stop", "exit", "raise", "enospc", "sleep")
_FAULT = re.compile(r"(?:(\w+:\d+)(?:#(\d+|\*))?/)?([\w.]+)(?:@(\d+))?=(\w+)(?::(\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of a plan."""

    task: str  # "ps:0"; empty: any
    life: int  # 0: every one
    point: str
    at: int
    action: str
    seconds: float = 0.0


def parse(text: str) -> list[Fault]:
    """The faults of a plan.

    Raises:
        ConfigError: it cannot be read, or names a point or an action that is not there.

    >>> parse("ps:0#2/server.applied@17=sleep:0.5")
    [Fault(task='ps:0', life=2, point='server.applied', at=17, action='sleep', seconds=0.5)]
    """
    faults = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        match = _FAULT.fullmatch(entry)
        if match is None:
            raise ConfigError(f"EVENER_CHAOS has {entry!r}.", fix="write ps:0/server.applied@17=kill.")
        task, life, point, at, action, seconds = match.groups()
        for kind, name, known in (("point", point, sorted(POINTS)), ("action", action, ACTIONS)):
            if name not in known:
                raise ConfigError(f"EVENER_CHAOS names the {kind} {name!r}.", fix=f"there are: {', '.join(known)}.")
        lives = 0 if life == "*" else int(life or 1)
        faults.append(Fault(task or "", lives, point, int(at or 1), action, float(seconds or 0)))
    return faults


class _Plan:
    """The faults that wait for this process, and how often it passed each point."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()  # checkpoints are written by a thread

    def meet(self, point: str) -> None:
        with self._lock:
            self._passed[point] += 1
            times = self._passed[point]
        for fault in self._faults:
            if fault.point == point and fault.at == times:
                log.warning("%s at %s, pass %d", fault.action, point, times)
                _act(fault)


_plan: _Plan | None = None


def arm(text: str, task: str, life: int = 1) -> None:
    """Follow what a plan says to this life of this task; an empty plan says nothing. Raises ConfigError."""
    global _plan  # noqa: PLW0603 - points are calls without arguments, in places that know of no plan
    faults = [fault for fault in parse(text) if fault.task in ("", task) and fault.life in (0, life)]
    _plan = _Plan(faults) if faults else None


def point(name: str) -> None:
    """A place where something may go wrong; costs one look at a name when nothing is planned."""
    if _plan is not None:
        _plan.meet(name)


def _act(fault: Fault) -> None:
    match fault.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(3)
        case "sleep":
            time.sleep(fault.seconds)
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case _:
            raise RuntimeError(f"chaos at {fault.point}")
