"""One task of a cluster that somebody else starts: one command per machine, in any order."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evener.cluster import Cluster
from evener.devices import prepare_process
from evener.errors import ConfigError
from evener.launch.build import build
from evener.launch.environment import Found, explain
from evener.launch.server import run_server
from evener.launch.worker import run_worker
from evener.report import AnyReport, Line
from evener.settings import Settings


def settings_for(cluster: Cluster, settings: Settings) -> Settings:
    """The settings of a task: how many there are, and where, is said by the cluster."""
    if not cluster.ps:
        raise ConfigError("the cluster has no job 'ps'.", fix="name at least one: --ps-hosts HOST:PORT.")
    return replace(
        settings,
        ps=len(cluster.ps),
        workers=len(cluster.worker),
        ps_hosts=tuple(str(address) for address in cluster.ps),
    )


def run_member(found: Found, settings: Settings, report: Callable[[AnyReport], None]) -> None:
    """Be one task until the run is over.

    A ps task ends when the run is over; Ctrl-C (SIGINT) or SIGTERM makes ps:0 save and end the run, and makes a worker
    leave it.

    Raises:
        EvenerError: what went wrong, here or at a peer.
    """
    job, index = found.task.job, found.task.index
    prepare_process(settings.threads)
    logging.basicConfig(
        filename=Path(settings.logdir) / "logs" / f"{job}-{index}.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for line in explain(found).splitlines():
        report(Line(str(found.task), line))
    built = build(settings)
    run = found.cluster.fingerprint
    addresses = [f"tcp://{address}" for address in found.cluster.ps]
    if job == "worker":
        run_worker(index, built, settings, run=run, addresses=lambda: addresses, report=report)
        return
    asked: list[str] = []

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.default_int_handler)  # the second one ends it at once
        asked.append("interrupted")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run_server(
            index, built, settings, run=run, leader=lambda: addresses[0],
            stop_asked=lambda: asked[0] if asked else "", report=report,
        )  # fmt: skip
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
