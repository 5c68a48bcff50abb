"""Tasks on standing servers: the client's side. `standing` is the other end.

One link to each server for the whole run: while it holds, the server works for nobody else, and starts its task as
often as it is told to. Its end, by whatever death of the client, ends the task.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import msgspec

from evener import errors, transport
from evener.choices import counts_of
from evener.cluster.cluster import ClusterSpec, Task
from evener.cluster.private import keyed
from evener.control import control
from evener.control.control import Assignment, Order, log_of
from evener.launch.starters.never import NotStarted
from evener.launch.starters.process import Running
from evener.report import AnyReport, Failed
from evener.settings import Settings
from evener.transport import keys
from evener.transport.channel import Channel, Memory, Ranges
from evener.wire import codec
from evener.wire.messages import Refused
from evener.wire.standing import Dismiss, Relay, Reserve, Reserved, TaskEnded

#: Seconds to reach a server that should be there; for one that was there a moment ago; for its first answer.
REACH, REACH_AGAIN, ANSWER = 10.0, 1.0, 10.0
#: Bytes of a stream in one message: below `channel.MAX_HEADER`.
PIECE = 64 * 1024

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?")


def check_recipe(recipe: str) -> None:
    """Servers import a recipe by its name. Raises ConfigError for a file, which they need not have, and for no name."""
    module = recipe.partition(":")[0]
    if REFERENCE.fullmatch(recipe) is None or module.endswith(".py"):
        raise errors.ConfigError(
            f"standing servers cannot take the recipe {recipe!r}.",
            why="they import it by name, on their own machines: code and file paths do not travel.",
            fix='install its module there, and write "package.module:name"; or train without --existing-servers.',
        )


def options_for(servers: ClusterSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options, with what the servers say of it: how many tasks, and that each binds a free port of its host.

    Raises:
        ConfigError: the options contradict the host lists.
    """
    if not servers.ps:
        raise errors.ConfigError("no ps server is named.", fix="add --ps-hosts HOST:PORT,...")
    counts = {"ps": len(servers.ps), "workers": len(servers.worker)}
    asked = dict(options)
    if isinstance(workers := options.get("workers"), str):
        asked |= counts_of(workers)
    for name, count in counts.items():
        if asked.get(name) not in (None, count):
            raise errors.ConfigError(
                f"{name}={options[name]}, but the host lists name {count}.", fix="leave the number out."
            )
    free = tuple(str(replace(address, port=0)) for address in servers.ps)
    return {**asked, **counts, "ps_hosts": free}


def pieces(data: bytes) -> list[bytes]:
    """Parts of a stream that fit into a message each."""
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


@dataclass(frozen=True, slots=True)
class _ServerLink:
    """One server that works for us."""

    channel: Channel
    reserved: Reserved


class RemoteTask:
    """One life of a task on a server."""

    def __init__(self, name: str, address: str, link: _ServerLink, log: str) -> None:
        self.host, self.log = link.reserved.host, log
        self.pid = 0  # not of this machine
        self._name, self._address, self._channel = name, address, link.channel
        self._how: str | None = None
        self._stream = control.reports()

    @property
    def open(self) -> bool:
        return self._how is None

    def fileno(self) -> int:
        return self._channel.fileno()

    def pending(self) -> bool:
        return self._channel.pending()

    def order(self, order: Order) -> None:
        if self.open:
            with contextlib.suppress(errors.PeerGone):
                for piece in pieces(control.framed(order)):
                    self._channel.send(codec.encode(Relay(piece)))

    def reports(self) -> list[AnyReport]:
        heard: list[AnyReport] = []
        try:
            while self.open and (header := self._channel.receive(0.0)) is not None:
                match codec.decode(header):
                    case Relay(data):
                        heard += self._stream.feed(data)
                    case TaskEnded(how):
                        self._how = how
                    case Refused(kind, what, why, fix):
                        heard.append(Failed(self._name, kind, what, why, fix))
                        self._how = "was refused"
                    case other:
                        raise errors.ProtocolError(f"it sent a {type(other).__name__}.")
        except errors.WireError as error:
            self._how = f"is lost: its server at {self._address} is gone ({error.what.rstrip('.')})"
        return heard

    def ended(self) -> str | None:
        return self._how

    def kill(self) -> None:
        if self.open:
            with contextlib.suppress(errors.PeerGone):
                self._channel.send(codec.encode(Dismiss()))

    def close(self) -> None:
        """The link stays: the server may be told to start the task again."""


class StandingServers:
    """Starts tasks on the standing servers of a cluster, one task on each.

    Args:
        servers: where they listen.
        settings: of the run; its keys are those of the client, and stay here.
    """

    def __init__(self, servers: ClusterSpec, settings: Settings) -> None:
        if not settings.script:
            check_recipe(settings.recipe)
        settings = keyed(settings, [servers.address(task) for task in servers.tasks()])
        self._servers, self._settings = servers, settings
        self._keys = keys.load(settings.keys, "client") if settings.keys else None
        self._links: dict[Task, _ServerLink] = {}

    def reserve(self, tell: Callable[[str], None]) -> None:
        """Make all servers ours, or none.

        Raises:
            EvenerError: which of them cannot be reached, refuse us or are busy.
        """
        tasks = self._servers.tasks()
        tell(f"asks the standing servers: {', '.join(f'{task} at {self._servers.address(task)}' for task in tasks)}")
        with ThreadPoolExecutor(len(tasks)) as pool:
            tries = {task: pool.submit(self._connect, task, REACH) for task in tasks}
        failures: dict[Task, BaseException] = {}
        for task, attempt in tries.items():
            if (error := attempt.exception()) is None:
                self._links[task] = attempt.result()
            else:
                failures[task] = error
        if failures:
            self.close()
            raise _not_ready(failures, len(tasks))
        on = [link.reserved for link in self._links.values()]
        places = sorted({f"{one.host}:{PurePath(one.directory) / self._settings.logdir}" for one in on})
        tell(f"the logdir is on the servers: {', '.join(places)}")

    def start(self, assignment: Assignment) -> Running:
        task = Task(assignment.job, assignment.index)
        told = {**assignment.settings, "keys": "", "insecure": False}
        assignment = msgspec.structs.replace(assignment, settings=told)
        address, log, why = str(self._servers.address(task)), str(log_of(assignment)), ""
        for _ in range(2):  # a link may turn out to be broken
            try:
                link = self._links.get(task) or self._connect(task, REACH_AGAIN)
                self._links[task] = link
                for piece in pieces(control.framed(assignment)):
                    link.channel.send(codec.encode(Relay(piece)))
            except errors.EvenerError as error:
                why = error.what.rstrip(".") + (f": {error.why}" if error.why else "")
                if (lost := self._links.pop(task, None)) is None:
                    break
                lost.channel.close()
            else:
                return RemoteTask(str(task), address, link, str(PurePath(link.reserved.directory) / log))
        return NotStarted(address, log, why)

    def _connect(self, task: Task, seconds: float) -> _ServerLink:
        """A link to a server that works for us now. Raises WireError."""
        nothing = Ranges(Memory(0), ())
        server = str(task).replace(":", "-")
        address = f"tcp://{self._servers.address(task)}"
        channel = transport.connect(
            address, nothing, nothing, timeout=seconds, keys=self._keys, server=server,
            heartbeat=self._settings.heartbeat_timeout,
        )  # fmt: skip
        try:
            me = (socket.gethostname(), os.getpid())
            what = self._settings.script or self._settings.recipe
            channel.send(codec.encode(Reserve(str(task), version("evener"), what, *me)))
            deadline = time.monotonic() + ANSWER
            header = channel.receive(max(0.0, deadline - time.monotonic()))
            if header is None:
                raise errors.Unavailable(f"{address} took the connection and has said nothing for {ANSWER:g} s.")
            answer = codec.decode(header)
            if isinstance(answer, Refused):
                raise codec.raised(answer)
            if not isinstance(answer, Reserved):
                raise errors.ProtocolError(f"{address} answered with a {type(answer).__name__}.")
        except BaseException:
            channel.close()
            raise
        return _ServerLink(channel, answer)

    def close(self) -> None:
        """Let the servers go: they wait for the next job."""
        for link in self._links.values():
            link.channel.close()
        self._links.clear()


def _not_ready(failures: Mapping[Task, BaseException], count: int) -> BaseException:
    """One error for all servers that cannot work for us."""
    first = next(iter(failures.values()))
    if not isinstance(first, errors.EvenerError):
        return first
    lines = []
    for task, error in failures.items():
        what = error.what if isinstance(error, errors.EvenerError) else str(error)
        why = error.why if isinstance(error, errors.EvenerError) else ""
        lines.append(f"{task}: {what.rstrip('.')}" + (f" ({why.rstrip('.')})" if why else ""))
    start = "start each by `evener server --job-name JOB --task-index I ...` with the same host lists"
    fix = f"{start}; `evener doctor` looks at them." if isinstance(first, errors.Unavailable) else first.fix
    return type(first)(
        f"{len(failures)} of {count} standing servers cannot take this run.", why="; ".join(lines), fix=fix
    )
