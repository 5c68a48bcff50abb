"""One task of a cluster that somebody else starts: one command per machine, in any order."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from evener import chaos
from evener.choices import counts_of
from evener.cluster.cluster import ClusterSpec
from evener.cluster.environment import Found, chaos_plan, explain, seeing_devices
from evener.control.notice import noticed
from evener.control.told import Told, told_to_leave
from evener.devices import prepare_process
from evener.errors import ConfigError
from evener.report import Line, Reporter
from evener.settings import Settings, check_gpus
from evener.task.build import build
from evener.task.logs import LogFile
from evener.task.rendezvous import Directory, Fixed, Rendezvous, for_cluster
from evener.task.script import Joining, run_script
from evener.task.server import run_server
from evener.task.worker import run_worker

#: Seconds after the first worker has come in which a person may still be typing the commands of the others.
LATECOMERS = 60.0


def options_in(cluster: ClusterSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a task: how many there are, and where, is said by the cluster."""
    if not cluster.ps:
        raise ConfigError("the cluster has no job 'ps'.", fix="name at least one: --ps-hosts HOST:PORT.")
    hosts = tuple(str(address) for address in cluster.ps)
    count, asked = len(cluster.worker), options.get("workers")
    counts = counts_of(asked) if isinstance(asked, str) else {"workers": asked or count}
    if counts["workers"] != count:
        raise ConfigError(
            f"workers={asked}, but the cluster names {count} workers.", why="it says where each of them may be.",
            fix=f"say --workers M..{count}, or leave it out.",
        )  # fmt: skip
    return {**options, "ps": len(cluster.ps), **counts, "ps_hosts": hosts}


def local_rank(cluster: ClusterSpec, index: int) -> tuple[int, int]:
    """The number of a worker among those of its machine, and how many these are."""
    host = cluster.worker[index].host
    mine = [number for number, address in enumerate(cluster.worker) if address.host == host]
    return mine.index(index), len(mine)


def run_member(found: Found, settings: Settings, report: Reporter, *, rendezvous: str = "") -> None:
    """Be one task until the run is over; a ps task sees no GPU.

    A ps task ends when the run is over; Ctrl-C (SIGINT) makes ps:0 save and end the run. SIGTERM or SIGHUP makes any
    task save or give back what it holds and leave, while the others go on or wait for it.

    Args:
        rendezvous: a directory that all tasks share, where ps tasks with port 0 say which they got.

    Raises:
        EvenerError: what went wrong, here or at a peer.
        Preempted: it was told to leave, and left.
    """
    job, index = found.task.job, found.task.index
    rank = local_rank(found.cluster, index)[0] if job == "worker" else 0
    with seeing_devices(settings, job, rank):
        _run(found, settings, report, rendezvous)


def _run(found: Found, settings: Settings, report: Reporter, rendezvous: str) -> None:
    """What `run_member` says, seeing the devices that it may see."""
    job, index = found.task.job, found.task.index
    rank = None
    if job == "worker":
        rank, local_workers = local_rank(found.cluster, index)
        check_gpus(settings, local_workers)
    run, asked = found.cluster.fingerprint, list[str]()

    def stop_asked() -> str:
        return asked[0] if asked else ""

    meeting = _meeting(found, settings, report, rendezvous, stop_asked)
    prepare_process(settings.threads, serves=job == "ps")
    _log_and_explain(found, settings, report)
    told = Told(str(found.task), raises=job == "worker")
    leaves = partial(_leaves, settings, told, report)
    if settings.script:
        joining = Joining(
            job=job, index=index, settings=settings, report=report, run=run, rendezvous=meeting,
            stop_asked=stop_asked, leave_asked=told.reason, rank=rank,
            latecomers=LATECOMERS,
        )  # fmt: skip
        with _interrupted(asked, job == "ps"), leaves():
            run_script(joining)
        return
    built = build(settings)
    if job == "worker":
        with leaves():
            run_worker(index, built, settings, run=run, rendezvous=meeting, report=report, rank=rank)
        return

    with _interrupted(asked, True), leaves():
        run_server(
            index, built, settings, run=run, rendezvous=meeting, stop_asked=stop_asked, report=report,
            leave_asked=told.reason, latecomers=LATECOMERS,
        )  # fmt: skip


@contextlib.contextmanager
def _leaves(settings: Settings, told: Told, report: Reporter) -> Iterator[None]:
    """A signal or a notice lets it leave."""
    say = lambda text: report(Line(told.task, text))  # noqa: E731
    with told_to_leave(told, grace=settings.grace), noticed(settings.preemption_notice, told.announce, say):
        yield


def _meeting(
    found: Found, settings: Settings, report: Reporter, directory: str, stop_asked: Callable[[], str]
) -> Rendezvous:
    """Where the ps tasks are: as the cluster says, or in a directory that all tasks share."""
    return for_cluster(
        directory,
        found.cluster,
        Fixed([f"tcp://{address}" for address in found.cluster.ps]),
        lambda place: Directory(
            place, found.cluster.fingerprint, len(found.cluster.ps), task=str(found.task),
            patience=settings.stall_timeout, report=report, stop_asked=stop_asked,
        ),
    )  # fmt: skip


def _log_and_explain(found: Found, settings: Settings, report: Reporter) -> None:
    """Its log file, where a test wants it to fail, and who it is, for people."""
    task = str(found.task)
    path = Path(settings.logdir) / "logs" / f"{found.task.job}-{found.task.index}.log"
    logging.basicConfig(handlers=[LogFile(path, lambda text: report(Line(task, text)))], level=logging.INFO)
    chaos.arm(chaos_plan(), task)
    for line in explain(found).splitlines():
        report(Line(task, line))


@contextlib.contextmanager
def _interrupted(asked: list[str], serves: bool) -> Iterator[None]:
    """Ctrl-C at a ps task lets it save and end the run; a second one ends it at once."""
    if not serves:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.default_int_handler)
        asked.append("interrupted")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
