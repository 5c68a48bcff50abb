"""A whole cluster in one process, as real tasks: real servers, real exchanges, real sessions, one thread each.

What depends on who is first is up to the threads. In `sync` mode, and with one worker, nothing does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial

from evener import transport
from evener.data.loader import LoaderBatches
from evener.server.serve import serve
from evener.session.hooks import Hook
from evener.session.session import Session
from evener.task.build import build
from evener.testing import EVENER, RUN, Clock, Cluster, data_of
from evener.transport.channel import Memory
from evener.wire import codec
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.compute.towers import Towers
from evener.worker.exchange.in_flight import InFlight
from evener.worker.exchange.in_hand import InHand
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers


class Patience(Clock):
    """Stands still while all servers live; then time flies, since nobody starts a lost one again here."""

    lost = False

    def __call__(self) -> float:
        self.now += 10.0 * self.lost
        return self.now


class Meet(Hook):
    """No worker takes its first step before all have joined: else the first could end the run alone."""

    def __init__(self, barrier):
        self._barrier = barrier

    def after_create(self, session):
        self._barrier.wait(60.0)


class Tasks:
    """All tasks of a cluster as threads; `run` waits for their end and gives what each returned or raised."""

    def __init__(self, cluster: Cluster, hooks: Sequence[Sequence[Hook]]) -> None:
        self.cluster, self.patience = cluster, Patience()
        meet = Meet(threading.Barrier(len(hooks)))
        self.sessions = [self._session(index, [*made, meet]) for index, made in enumerate(hooks)]
        self.ended = {}

    def _session(self, index, hooks):
        cluster = self.cluster
        built = build(cluster.settings, cluster.recipe)
        layout = built.layout
        gradients, parameters = Memory(layout.nbytes), Memory(layout.nbytes)
        landing = Memory(layout.nbytes) if cluster.settings.terms.in_flight > 1 else None
        towers = Towers(built.model, built.recipe, layout, parameters=parameters.view, gradients=gradients.view, seed=0)
        settings, data, batches = data_of(built.recipe, cluster.settings)
        hello = Hello(
            Identity(index), RUN, EVENER, built.fingerprint, layout.fingerprint, codec.pack_specs(layout.specs),
            len(data.train), "here", 812, batches=isinstance(batches, LoaderBatches),
        )  # fmt: skip
        links = ServerLinks(
            f"worker:{index}", lambda: [listener.address for listener in cluster.listeners], layout,
            gradients=gradients, parameters=landing or parameters, connect=in_memory, report=lambda report: None,
            clock=self.patience, patience=30.0,
        )  # fmt: skip
        exchange = Servers(links, hello, sleep=time.sleep)
        if landing is not None:
            hand = InHand(exchange, settings.batches, settings.batches + batches.ahead)
            exchange = InFlight(hand, landing, parameters)
        elif hello.batches or settings.batches > 1:
            exchange = InHand(exchange, settings.batches, batches.ahead)
        return Session(
            f"worker:{index}", exchange, towers, batches, hooks, recipe=built.recipe, settings=settings,
            report=lambda report: None, clock=Clock(),
        )  # fmt: skip

    def run(self):
        tasks = {f"ps:{index}": partial(serve, server) for index, server in enumerate(self.cluster.servers)}
        tasks |= {session.task: session.run for session in self.sessions}
        threads = [threading.Thread(target=self._run, args=task) for task in tasks.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
            assert not thread.is_alive(), "a task did not end"
        return self.ended

    def _run(self, name, task):
        try:
            self.ended[name] = task()
        except Exception as error:
            self.ended[name] = error
            self.patience.lost = self.patience.lost or name.startswith("ps:")


def in_memory(shard, address, outbox, inbox, timeout):
    return transport.connect(address, outbox, inbox, timeout=timeout)
