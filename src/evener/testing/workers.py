"""Workers of a `Cluster` in one process: by hand (`Worker`, `Scripted`), or one that computes (`Trainer`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from evener import transport
from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.errors import EvenerError, PeerGone
from evener.state.tensors import whole_views
from evener.task.build import build
from evener.transport.channel import Channel, Memory, Ranges
from evener.wire import codec
from evener.wire.messages import (
    AnyMessage,
    Draw,
    Drawn,
    Goodbye,
    Granted,
    Hello,
    Join,
    Pull,
    Pulled,
    Push,
    Refused,
    Released,
)
from evener.wire.words import Identity
from evener.worker.compute.towers import Towers

if TYPE_CHECKING:
    from evener.testing.cluster import Cluster

#: What all tasks of such a cluster call their run and their version of evener.
RUN, EVENER = "run-1", "0.0-test"


class Worker:
    """One life of a worker, led by hand. It remembers its last answers, and does nothing by itself."""

    def __init__(self, cluster: Cluster, index: int) -> None:
        self.cluster, self.index = cluster, index
        self.identity = Identity(index)
        self.layout = cluster.built.layout
        self.gradients, self.parameters = Memory(self.layout.nbytes), Memory(self.layout.nbytes)
        self.views = whole_views(self.layout, self.gradients.view)
        self.model_views = whole_views(self.layout, self.parameters.view)
        self.seq = 0
        self.pace = 0.0  # seconds that it says a sample takes
        self.turn: Released | None = None  # shard 0's last release, until a push answers it
        self.channels: list[Channel] = []
        cluster.workers.append(self)
        for shard in range(len(cluster.listeners)):
            ranges = self.layout.ranges(shard)
            self.channels.append(
                transport.connect(
                    cluster.address(shard), Ranges(self.gradients, ranges), Ranges(self.parameters, ranges)
                )
            )

    def say(self, shard: int, message: AnyMessage, *, payload: bool = False) -> None:
        """Put a message into a server's mailbox; it is read when the server looks."""
        self.channels[shard].send(codec.encode(message), payload=payload)

    def heard(self, shard: int = 0) -> list[AnyMessage]:
        """What a server has answered since the last call."""
        answers = []
        with suppress(PeerGone):
            while (header := self.channels[shard].receive(0.0)) is not None:
                answers.append(codec.decode(header))
        return answers

    def ask(self, message: AnyMessage, *, payload: bool = False, shard: int = 0) -> list[AnyMessage]:
        self.say(shard, message, payload=payload)
        self.cluster.settle()
        return self.heard(shard)

    def refused(self, message: AnyMessage, *, payload: bool = False, shard: int = 0) -> EvenerError:
        """Ask for something that must not be; returns the error that the worker would raise."""
        (answer,) = self.ask(message, payload=payload, shard=shard)
        assert isinstance(answer, Refused), answer
        return codec.raised(answer)

    def hello(self, **changes: Any) -> Hello:
        built = self.cluster.built
        hello = Hello(
            self.identity, RUN, EVENER, built.fingerprint, self.layout.fingerprint,
            codec.pack_specs(self.layout.specs), self.cluster.samples, "here", 812,
        )  # fmt: skip
        return msgspec.structs.replace(hello, **changes)

    def greet(self) -> Identity:
        """Say Hello to every shard."""
        for shard in range(len(self.channels)):
            (granted,) = self.ask(self.hello(), shard=shard)
            assert isinstance(granted, Granted), granted
            self.identity = granted.identity
        return self.identity

    def start(self) -> Released | None:
        """Greet and join every shard; the first release, or None if this worker must wait."""
        self.greet()
        return self.join()

    def join(self) -> Released | None:
        """Join every shard; the first release, or None if this worker must wait."""
        for shard in range(len(self.channels)):
            self.say(shard, Join(self.identity))
        return self.listen()

    def listen(self) -> Released | None:
        """The release that all shards have sent; None while it has not come."""
        self.cluster.settle()
        answers = [self.heard(shard) for shard in range(len(self.channels))]
        if not any(answers):
            return None
        releases = [release for (release,) in answers if isinstance(release, Released)]
        assert len(releases) == len(answers), answers
        told = [msgspec.structs.replace(release, leases=[], script=b"") for release in releases]  # the leader's alone
        assert all(one == told[0] for one in told), f"shards disagree: {releases}"
        self.turn = releases[0]
        return self.turn

    def message(self, **changes: Any) -> Push:
        """The push that is due now."""
        assert self.turn is not None, "this worker was not released"
        count = self.turn.count
        push = Push(
            self.identity, self.seq + 1, self.turn.version, self.turn.lease, 0.5, count or 10, count=count,
            seconds=self.pace * count,
        )  # fmt: skip
        return msgspec.structs.replace(push, **changes)

    def fill(self, value: float) -> None:
        """A gradient that is this number everywhere."""
        for view in self.views.values():
            view.fill_(value)

    def push(self, value: float | None = None, **changes: Any) -> Released | None:
        """Push to every shard, the leader last; the release, or None if this worker must wait."""
        if value is not None:
            self.fill(value)
        push = self.message(**changes)
        self.seq, self.turn = push.seq, None
        for shard in reversed(range(len(self.channels))):
            self.say(shard, push, payload=True)
        return self.listen()

    def pull(self, what: str) -> dict[str, torch.Tensor]:
        """What the servers show; it lies in this worker's parameters from now on."""
        for shard in range(len(self.channels)):
            self.say(shard, Pull(self.identity, what))
        self.cluster.settle()
        for shard in range(len(self.channels)):
            (answer,) = self.heard(shard)
            assert isinstance(answer, Pulled) and answer.what == what, answer
        return {name: view.clone() for name, view in self.model_views.items()}

    def leave(self, reason: str = "") -> None:
        for shard in range(len(self.channels)):
            with suppress(PeerGone):
                self.say(shard, Goodbye(self.identity, reason))
        self.cluster.settle()
        self.die()

    def die(self, order: Sequence[int] = ()) -> None:
        """Its process is gone; servers see it when they look."""
        for shard in order or range(len(self.channels)):
            self.channels[shard].close()


class Scripted(Worker):
    """A worker of a script: it has leases in hand, and the version that it was answered with."""

    def __init__(self, cluster: Cluster, index: int) -> None:
        super().__init__(cluster, index)
        self.want = 1
        self.hand: list[int] = []
        self.size = 0  # samples of what is in hand, where that is a stretch of them
        self.version = -1
        self.drawn: Drawn | None = None  # the answer to its last draw
        self.script = b""  # the last that it was told
        self.stop = ""

    def join(self) -> Released | None:
        for shard in range(len(self.channels)):
            self.say(shard, Join(self.identity, self.want))
        return self.listen()

    def listen(self) -> Released | None:
        release = super().listen()
        if release is not None:
            self.version = release.version
            self._given(release)
            assert release.lease == (self.hand[0] if self.hand and not release.stop else -1), (release, self.hand)
        return release

    def _given(self, answer: Released | Drawn) -> None:
        self.hand += answer.leases
        self.size = answer.count or self.size
        self.script = answer.script or self.script
        self.stop = answer.stop or self.stop

    def message(self, **changes: Any) -> Push:
        """Of the first in hand, unless `leases` says otherwise."""
        leases: list[int] = list(changes.pop("leases", self.hand[:1]))
        self.hand = [lease for lease in self.hand if lease not in leases]
        count = self.size if leases else 0
        push = Push(
            self.identity, self.seq + 1, self.version, leases[0] if leases else -1, None, count or 10,
            more=leases[1:], want=self.want, count=count, seconds=self.pace * count,
        )  # fmt: skip
        return msgspec.structs.replace(push, **changes)

    def draw(self, want: int = 1, *, wait: bool = False, unused: Sequence[int] = ()) -> Drawn | None:
        """Ask for more; the answer, or None if this worker must wait for it."""
        self.hand = [lease for lease in self.hand if lease not in unused]
        self.say(0, Draw(self.identity, want, wait, list(unused)))
        return self.drawn_since()

    def drawn_since(self) -> Drawn | None:
        """The answer to a draw, if it has come."""
        self.cluster.settle()
        answers = self.heard(0)
        if not answers:
            return None
        (answer,) = answers
        assert isinstance(answer, Drawn), answer
        self.drawn = answer
        self.version = max(self.version, answer.version)
        self._given(answer)
        return answer


class Trainer(Worker):
    """A worker that computes real gradients, in the test's own thread."""

    def __init__(self, cluster: Cluster, index: int) -> None:
        super().__init__(cluster, index)
        built = build(cluster.settings, cluster.recipe)
        self.towers = Towers(
            built.model, built.recipe, built.layout,
            parameters=self.parameters.view, gradients=self.gradients.view, seed=cluster.settings.seed,
        )  # fmt: skip
        data = as_data(built.recipe.data())
        self.batches = Batches(data.train, batch_size=cluster.settings.batch_size, seed=cluster.settings.seed)

    def work(self) -> None:
        """Compute the lease and push it; the answer is there at the next `listen`, or later."""
        assert self.turn is not None
        lease, count = self.turn.lease, self.turn.count
        batch = self.batches.stretch(lease, count) if count else self.batches.batch(lease)
        loss = self.towers.begin(batch, self.turn.lease)
        unused = self.layout.mask(self.towers.collect())
        self.push(loss=loss, examples=len(batch[1]), unused=unused)


def train(workers: Sequence[Trainer], *, chance: Random | None = None, until: int | None = None) -> None:
    """Workers compute and push, one at a time, in turn or by chance, until the run ends or reaches step `until`."""
    cluster = workers[0].cluster
    for worker in workers:
        if not worker.identity.epoch:
            worker.start()
    while True:
        for worker in workers:
            if worker.turn is None:
                worker.listen()
        ready = [worker for worker in workers if worker.turn is not None and not worker.turn.stop]
        if not ready or (until is not None and cluster.step >= until):
            break
        (chance.choice(ready) if chance else ready[0]).work()
        cluster.tick(0.01)


def finished(workers: Sequence[Trainer]) -> None:
    """All say goodbye after `train`, and the servers end."""
    for worker in workers:
        worker.leave()
    workers[0].cluster.finish()
