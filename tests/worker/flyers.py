"""Workers with two gradients in flight, in one thread with their servers: the test says who looks when."""

from __future__ import annotations

from evener import transport
from evener.state.tensors import whole_views
from evener.testing import EVENER, RUN
from evener.transport.channel import Memory
from evener.wire import codec
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.exchange.exchange import Computed
from evener.worker.exchange.in_flight import InFlight
from evener.worker.exchange.in_hand import InHand
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers


class Parked(Exception):
    """A worker waits, and its servers have nothing to do: it goes on when another one does something."""


class Pumped:
    """A channel whose servers work off all that has come while the worker waits for them; else they do nothing."""

    def __init__(self, flyer, inner):
        self._flyer, self._inner = flyer, inner
        self.fileno, self.pending, self.close = inner.fileno, inner.pending, inner.close

    def send(self, header, *, payload=False):
        self._inner.send(header, payload=payload)
        if self._flyer.eager:
            self._flyer.cluster.settle()

    def receive(self, timeout):
        if timeout:
            self._flyer.cluster.settle()
        header = self._inner.receive(0.0)
        if header is None and timeout:
            raise Parked
        return header


class Flyer:
    """One process of a worker. The gradient of lease k is k + 1 everywhere, so that the parameters tell what was
    applied."""

    def __init__(self, cluster, index, process="first"):
        self.cluster, self.index = cluster, index
        self.eager = False  # servers answer whatever it sends at once
        layout = cluster.built.layout
        self.gradients, landing, self.parameters = (Memory(layout.nbytes) for _ in range(3))
        self._views = whole_views(layout, self.gradients.view)
        self._model = whole_views(layout, self.parameters.view)
        built = cluster.built
        hello = Hello(
            Identity(index), RUN, EVENER, built.fingerprint, layout.fingerprint, codec.pack_specs(layout.specs),
            cluster.samples, "here", 812, process=f"{process} {index}",
        )  # fmt: skip
        self.links = ServerLinks(
            f"worker:{index}", lambda: [listener.address for listener in self.cluster.listeners], layout,
            gradients=self.gradients, parameters=landing, connect=self._connect, report=lambda report: None,
            clock=cluster.clock, patience=30.0,
        )  # fmt: skip
        self.servers = Servers(self.links, hello, sleep=self._never)
        self.flight = InFlight(InHand(self.servers, 1, 1), landing, self.parameters)
        self.gradient = None  # lease, once it is begun
        self.turn = None
        cluster.workers.append(self)
        try:
            self.turn = self.flight.start()
        except Parked:
            self.die()
            cluster.settle()
            raise

    def _connect(self, shard, address, outbox, inbox, timeout):
        return Pumped(self, transport.connect(address, outbox, inbox, timeout=0.0))

    def _never(self, seconds):
        raise AssertionError("a test waits for something that does not come")

    @property
    def value(self):
        """Of the parameters that the model has."""
        (row,) = self._model.values()
        assert len(set(row.tolist())) == 1, "the model holds parameters of two versions"
        return row[0].item()

    @property
    def ended(self):
        return bool(self.turn.stop)

    def begins(self):
        """As `Session.step`: take what is there, and compute."""
        self.turn = self.flight.newest(self.turn)
        self.gradient = self.turn.lease if self.turn.lease >= 0 else None
        return self.turn

    def gives(self):
        """As `Towers.collect` and `Session.step`: write the gradient where it is free, and give it."""
        self.flight.free()
        for view in self._views.values():
            view.fill_(self.gradient + 1)
        self.gradient = None
        try:
            self.turn = self.flight.update(Computed(loss=0.5, examples=10, seconds=0.1))
        except Parked:
            self.turn = self.flight._hand.dealt(self.turn)
        return self.turn

    def steps(self):
        self.begins()
        return self.gives()

    def lose_links(self):
        """As when its host is cut off: it finds out when it next speaks or listens."""
        for channel in self.links._channels:
            channel.close()

    def die(self, order=()):
        self.links.hang_up()
