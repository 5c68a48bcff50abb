"""One worker: its parts put together."""

from __future__ import annotations

import os
import secrets
import socket
import time

from evener.data.batches import Batches
from evener.report import Line, Reporter, Status
from evener.settings import Settings
from evener.task.build import VERSION, Built
from evener.task.parts import Model, Prepared, prepared
from evener.task.placing import place_model
from evener.task.rendezvous import Rendezvous
from evener.task.wiring import Dialer
from evener.transport.channel import Memory
from evener.wire import codec
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.exchange.exchange import Exchange
from evener.worker.exchange.in_flight import InFlight
from evener.worker.exchange.in_hand import InHand
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers


def run_worker(  # noqa: PLR0913 - what a task is told, each once
    index: int,
    built: Built,
    settings: Settings,
    *,
    run: str,
    rendezvous: Rendezvous,
    report: Reporter,
    rank: int | None = None,
) -> None:
    """Train as worker `index` until the servers end the run. They are where `rendezvous` says; that may change.

    `rank` is its number among the workers of this machine, if that is another one.
    """
    task = f"worker:{index}"
    report(Status(task, "starting", waiting_for="its data"))
    parts = prepared(built, settings, task, report)
    settings = parts.settings
    gradients, parameters = Memory(built.layout.nbytes), Memory(built.layout.nbytes)
    homes = place_model(built, settings, rank=index if rank is None else rank, report=report, task=task)
    # With two in flight the last gradient is read from its memory while the next one is made.
    model = Model.over(parts, parameters.view, gradients.view, homes, apart=settings.terms.in_flight > 1)
    landing = Memory(built.layout.nbytes) if settings.terms.in_flight > 1 else None
    hello = Hello(
        Identity(index), run, VERSION, built.fingerprint, built.layout.fingerprint,
        codec.pack_specs(built.layout.specs), len(parts.data.train), socket.gethostname(), os.getpid(),
        process=secrets.token_hex(8), sources=built.sources, batch=codec.cut(parts.first, 1000),
        batches=parts.by_loader, ahead=_ahead(parts) > 0,
    )  # fmt: skip
    report(Status(task, "starting", waiting_for="the addresses of the ps tasks"))
    links = ServerLinks(
        task, rendezvous.addresses, built.layout, gradients=gradients, parameters=landing or parameters,
        connect=Dialer(settings, task, run), report=report, clock=time.monotonic,
        patience=settings.stall_timeout + 30.0,
    )  # fmt: skip
    servers = Servers(links, hello, sleep=time.sleep)
    exchange: Exchange = servers
    if landing is not None:
        hand = InHand(servers, settings.batches, settings.batches + _ahead(parts))
        exchange = InFlight(hand, landing, parameters)
    elif hello.batches or hello.ahead or settings.batches > 1:
        exchange = InHand(servers, settings.batches, _ahead(parts))
    reason = parts.session(model.reached_by(exchange), model.towers, homes).run()
    if settings.ps_hosts:  # started by hand: nobody else says so on this screen
        report(Line(task, f"the run is over: {reason}"))
    report(Status(task, "done"))


def _ahead(parts: Prepared) -> int:
    """Batches besides those of the present gradient that it is good to know: they are prepared meanwhile."""
    if isinstance(parts.batches, Batches):
        return int(parts.batches.quiet and parts.settings.ahead)
    return parts.batches.ahead
