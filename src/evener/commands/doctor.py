"""Tries every task of a cluster from here, all at once, and says what it met: `evener doctor`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evener import errors, transport
from evener.cluster.cluster import ClusterSpec, Task
from evener.cluster.private import keyed
from evener.settings import Settings
from evener.transport import keys as keys_module
from evener.transport.channel import Channel, Memory, Ranges
from evener.transport.keys import Keys
from evener.wire import codec
from evener.wire.messages import Refused
from evener.wire.standing import Ping, Pong

VERSION = version("evener")
#: Seconds to connect, and for all of one try.
REACH, TRY = 2.0, 3.0

READY, JOINED = "ready", "joined"
#: States of a try that say nothing of a worker: one of `evener task` does not listen, whoever has its port.
SILENT = ("refused", "no answer", "not evener")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one task answered, or why not."""

    task: str
    address: str
    state: str  # "ready", "joined", "no DNS", "refused", "no answer", "not evener", "wrong key", "no keys here", ...
    detail: str = ""
    workers: tuple[int, ...] = ()  # a leading ps task: who has joined

    @property
    def ready(self) -> bool:
        return self.state in (READY, JOINED)


def examine(cluster: ClusterSpec, keys: str = "", task: Task | None = None, *, insecure: bool = False) -> list[Finding]:
    """One finding for each task, in order; takes at most 3 s.

    Args:
        keys: the directory of the cluster's keys, if it has some.
        task: whose key to use; else the client's, or the first whose secret lies there.
        insecure: the cluster has no keys.

    Raises:
        SecurityError: the keys cannot be read.
    """
    if not keys and not insecure:  # of one machine: this user's own
        keys = keyed(Settings(ps=1), [cluster.address(one) for one in cluster.tasks()]).keys
    mine = _load(Path(keys), task) if keys else None
    tasks = cluster.tasks()
    found: dict[Task, Finding] = {}

    def look(one: Task) -> None:
        found[one] = _look(one, f"tcp://{cluster.address(one)}", mine)

    # Daemons, because nothing can interrupt a name server that does not answer.
    threads = [threading.Thread(target=look, args=(one,), daemon=True) for one in tasks]
    deadline = time.monotonic() + TRY
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = "it did not say anything to the end within 3 s"
    findings = [found.get(one) or Finding(str(one), str(cluster.address(one)), "no answer", late) for one in tasks]
    leader = next((finding for finding in findings if finding.task == "ps:0"), None)
    return [_of_worker(finding, leader) for finding in findings]


def _load(directory: Path, task: Task | None) -> Keys:
    if task is not None:
        return keys_module.load(directory, str(task))
    secrets = sorted(path.stem for path in directory.glob("*.secret") if keys_module.NAME.fullmatch(path.stem))
    return keys_module.load(directory, "client" if "client" in secrets or not secrets else secrets[0])


def _look(task: Task, address: str, mine: Keys | None) -> Finding:
    """One try. Errors become findings: that is what this is for."""
    where = address.removeprefix("tcp://")
    try:
        host, _, port = where.rpartition(":")
        if port == "0":
            return Finding(str(task), where, "no port", "it is found when the task starts")
        socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Finding(str(task), where, "no DNS", f"the name does not resolve: {error}")
    nothing = Ranges(Memory(0), ())
    try:
        server = str(task).replace(":", "-")
        channel = transport.connect(address, nothing, nothing, timeout=REACH, keys=mine, server=server)
    except errors.EvenerError as error:
        return Finding(str(task), where, _why_not(error, mine), error.why or error.what)
    try:
        return _ask(str(task), where, channel)
    except errors.EvenerError as error:
        state = "wrong version" if isinstance(error, errors.VersionError) or "version" in error.what else "not evener"
        return Finding(str(task), where, state, error.what)
    finally:
        channel.close()


def _why_not(error: errors.EvenerError, mine: Keys | None) -> str:
    """The kind of an error of `transport.connect`, in two words."""
    from evener.transport.tcp_dial import BROKEN_OFF, FOREIGN, NOBODY

    if isinstance(error, errors.AuthError):
        if "has none" in error.what or "has no keys" in error.what:
            return "no keys here" if mine is None else "no keys there"
        return "wrong key"
    if isinstance(error, errors.SecurityError):
        return "no key of it"
    if error.why == BROKEN_OFF or error.why.startswith(FOREIGN):
        return "not evener"
    return "refused" if error.why == NOBODY else "no answer"


def _ask(task: str, where: str, channel: Channel) -> Finding:
    """Ping, and read the answer. Raises WireError for one that is none of ours."""
    channel.send(codec.encode(Ping(VERSION)))
    header = channel.receive(TRY - REACH)
    if header is None:
        detail = "it listens and says nothing: it is starting, waits for ps:0, or hangs"
        return Finding(task, where, "no answer", detail)
    answer = codec.decode(header)
    if isinstance(answer, Refused) and answer.kind == "ProtocolError":
        raise errors.VersionError("it does not know this question: it is of another version.")
    if isinstance(answer, Refused):
        raise codec.raised(answer)
    if not isinstance(answer, Pong):
        raise errors.ProtocolError(f"it answered with a {type(answer).__name__}.")
    if answer.evener != VERSION:
        return Finding(task, where, "wrong version", f"it runs evener {answer.evener}, here is {VERSION}")
    if answer.task != task:
        return Finding(task, where, "wrong task", f"{answer.task} listens there")
    return Finding(task, where, READY, _told(answer), tuple(answer.workers))


def _told(pong: Pong) -> str:
    if pong.standing:
        at = f", at step {pong.step} of run {pong.run}" if pong.run else ""
        return f"standing server, {pong.busy + at if pong.busy else 'idle'}"
    joined = ", ".join(f"worker:{worker}" for worker in pong.workers) or "no worker"
    return f"{pong.task} of run {pong.run} at step {pong.step}; joined: {joined}"


def _of_worker(finding: Finding, leader: Finding | None) -> Finding:
    """A worker of `evener task` does not listen; ps:0 knows of it."""
    job, _, index = finding.task.partition(":")
    if job != "worker" or finding.state not in (*SILENT, "no port"):
        return finding
    if leader is None or leader.state != READY or "standing server" in leader.detail:
        detail = f"no standing server there ({finding.state}); of workers of `evener task` only ps:0 knows"
        return Finding(finding.task, finding.address, "unknown", detail)
    if int(index) in leader.workers:
        return Finding(finding.task, finding.address, JOINED, "says ps:0")
    return Finding(finding.task, finding.address, "not joined", "says ps:0; it is not started, or on its way")


def table(findings: Sequence[Finding]) -> str:
    """For people: one row for each task, and a line that sums up."""
    name, address, state = (max(len(getattr(one, at)) for one in findings) for at in ("task", "address", "state"))
    lines = [f"{one.task:{name}}  {one.address:{address}}  {one.state:{state}}  {one.detail}" for one in findings]
    bad = [one.task for one in findings if not one.ready]
    lines.append(f"not ready: {', '.join(bad)}" if bad else "all are ready")
    return "\n".join(line.rstrip() for line in lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    rows = [{**asdict(one), "workers": list(one.workers), "ready": one.ready} for one in findings]
    return {"ready": all(one.ready for one in findings), "tasks": rows}
