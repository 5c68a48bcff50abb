"""Servers and the sessions of workers over the links of real tasks, in one thread: nothing depends on who is quick.

A worker that waits lets the servers work off what has come, then the other workers take their steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kernel_calls import KernelCalls

from evener import transport
from evener.recipes.recipe import Recipe
from evener.session.session import Session
from evener.task.build import build
from evener.testing import EVENER, RUN, Clock, Cluster, data_of
from evener.transport.channel import Channel, Listener, Memory, wait
from evener.transport.keys import load, names, new
from evener.transport.tcp import TcpListener
from evener.wire import codec
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.compute.towers import Towers
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers

#: Seconds: what is done by the clock, as asking the kernel whether a host is silent, is not done in a test.
NEVER = 4e4
PATIENCE = 60.0


class Waiting:
    """A channel of a worker, whose waiting is when the others work."""

    def __init__(self, inner: Channel, meanwhile: Callable[[], None]) -> None:
        self._inner, self._meanwhile = inner, meanwhile
        self.send, self.fileno, self.pending, self.close = inner.send, inner.fileno, inner.pending, inner.close

    def receive(self, timeout: float) -> bytes | None:
        with KernelCalls():  # of others, or of this test
            until = time.monotonic() + PATIENCE
            while not wait([self._inner], 0.0):
                self._meanwhile()
                assert time.monotonic() < until, "no answer comes"
        return self._inner.receive(timeout)


class Linked:
    """A cluster whose links are "shared", "tcp", or "tcp with keys".

    `calls` has what each task asks of the kernel, by its name, while `counting`.
    """

    def __init__(self, recipe: Recipe, directory: Path, links: str, **options: Any) -> None:
        self._keys = directory / "keys" if "keys" in links else None
        if self._keys is not None:
            new(self._keys, names(1, 2))
        self.calls: dict[str, KernelCalls] = defaultdict(KernelCalls)
        self.counting = False
        kind, listen = links.partition(" ")[0], transport.listen

        def listening(_: str) -> Listener:
            keys = self._keys and load(self._keys, "ps-0")
            listener = listen(kind, keys=keys, insecure=keys is None, heartbeat=NEVER)
            if isinstance(listener, TcpListener):
                listener._clock = Clock()  # that it never looks after its links
            return listener

        with patch.object(transport, "listen", listening):
            self.cluster = Cluster(recipe, directory / "run", **options)
        self.sessions = [self._session(index) for index in range(self.cluster.settings.workers)]
        self._busy: set[int] = set()  # workers in the middle of a step
        self._until = 0  # the step that all of them go to

    def _session(self, index: int) -> Session:
        cluster = self.cluster
        built = build(cluster.settings, cluster.recipe)
        layout = built.layout
        gradients, parameters = Memory(layout.nbytes), Memory(layout.nbytes)
        towers = Towers(built.model, built.recipe, layout, parameters=parameters.view, gradients=gradients.view, seed=0)
        settings, data, batches = data_of(built.recipe, cluster.settings)
        hello = Hello(
            Identity(index), RUN, EVENER, built.fingerprint, layout.fingerprint, codec.pack_specs(layout.specs),
            len(data.train), "here", 812,
        )  # fmt: skip

        def connect(shard, address, outbox, inbox, timeout):  # between hosts, it waits for the server's answer
            keys = self._keys and load(self._keys, f"worker-{index}")
            with ThreadPoolExecutor(1) as pool:
                made = pool.submit(transport.connect, address, outbox, inbox, keys=keys, heartbeat=NEVER)
                while not made.done():
                    cluster.settle()
                return Waiting(made.result(), lambda: self._others(index))

        servers = Servers(
            ServerLinks(
                f"worker:{index}", lambda: [listener.address for listener in cluster.listeners], layout,
                gradients=gradients, parameters=parameters, connect=connect, report=lambda report: None,
                clock=Clock(), patience=PATIENCE,
            ), hello, sleep=time.sleep,
        )  # fmt: skip
        return Session(
            f"worker:{index}", servers, towers, batches, [], recipe=built.recipe, settings=settings,
            report=lambda report: None, clock=Clock(),
        )  # fmt: skip

    def _others(self, index: int) -> None:
        """What happens while a worker waits."""
        for shard in range(len(self.cluster.servers)):
            while self.cluster.busy(shard):
                with self._counted(f"ps:{shard}"):
                    self.cluster.look(shard)
        for other, session in enumerate(self.sessions):
            if other not in self._busy and session.local_step < self._until:
                self._step(other)

    def _counted(self, task: str) -> KernelCalls:
        return self.calls[task] if self.counting else KernelCalls()

    def steps(self, count: int) -> None:
        """So many of each worker."""
        self._until = self.sessions[0].local_step + count
        while any(session.local_step < self._until for session in self.sessions):
            for index, session in enumerate(self.sessions):
                if session.local_step < self._until:
                    self._step(index)

    def _step(self, index: int) -> None:
        self._busy.add(index)
        try:
            with self._counted(f"worker:{index}"):
                self.sessions[index].step()
        finally:
            self._busy.discard(index)

    def __enter__(self) -> Linked:
        for session in self.sessions:
            session.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for session in self.sessions:
            session.__exit__(None, None, None)
        self.cluster.close()
