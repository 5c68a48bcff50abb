"""A whole cluster in one process, one thread and virtual time: the test decides what happens next.

`Cluster` holds real servers (leader and followers with their shards, policies, savers) behind memory listeners.
`Worker` is a worker by hand: it says exactly what a test wants said, to one shard at a time. `Trainer` is a worker that
computes, and `train` lets several of them take their turns. Nothing moves until the test says so: servers look at
their mail in `Cluster.look` and `Cluster.settle`, time passes in `Clock.advance`, and disks write when `Disk` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from random import Random
from unittest.mock import patch

import msgspec
import torch
from torch import nn

from evener import transport
from evener.data.batches import Batches, Numbered
from evener.data.dataset import Data, Tensors, as_data
from evener.data.loader import FromLoader, LoaderBatches
from evener.errors import EvenerError, PeerGone
from evener.ledger import LOADER, SEVERAL, Begin, Ledger, path_of
from evener.recipes.recipe import Recipe
from evener.report import AnyReport
from evener.server.agreement import Expected
from evener.server.course import Setup
from evener.server.follow import Follower
from evener.server.lead import Leader
from evener.server.links import Links
from evener.server.serve import once
from evener.server.shard import Shard
from evener.session.hooks import Hook
from evener.session.session import Session
from evener.settings import Settings, make
from evener.state.checkpoint import Store, load
from evener.state.manifest import in_unit
from evener.state.saver import Saver, Schedule
from evener.state.state import State
from evener.state.tensors import Slot, whole_views
from evener.task.build import batches_of, build, counted, settled
from evener.task.server import usual_batch
from evener.transport.channel import Memory, Ranges, wait
from evener.wire import codec
from evener.wire.messages import (
    AnyMessage,
    Draw,
    Drawn,
    Follow,
    Goodbye,
    Granted,
    Hello,
    Join,
    Lead,
    Pull,
    Push,
    Refused,
    Release,
)  # fmt: skip
from evener.wire.words import Identity
from evener.worker.compute.towers import Towers
from evener.worker.exchange.local import Local

RUN, EVENER = "run-1", "0.0-test"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Disk:
    """Takes the place of the savers' threads: a job is done at once, or, while `held`, when `work` is called."""

    def __init__(self) -> None:
        self.held = False
        self.jobs: list[tuple[Future, Callable, tuple]] = []

    def __call__(self, workers: int, thread_name_prefix: str = "") -> Disk:
        return self

    def submit(self, job: Callable, *arguments: object) -> Future:
        future: Future = Future()
        self.jobs.append((future, job, arguments))
        if not self.held:
            self.work()
        return future

    def work(self) -> None:
        jobs, self.jobs = self.jobs, []
        for future, job, arguments in jobs:
            try:
                future.set_result(job(*arguments))
            except Exception as error:
                future.set_exception(error)

    def shutdown(self, wait: bool = True) -> None:
        self.work()


class Row(nn.Module):
    """One parameter of `width` equal numbers, float64, at 0: whoever adds something else somewhere is seen."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(width, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.row.sum()


def row_recipe(*, samples: int = 40, learning_rate: float = 1.0, **parts: object) -> Recipe:
    """Plain descent with step 1 on a `Row`: the parameters are minus the sum of the averaged gradients."""
    data = Data(Tensors(torch.arange(float(samples)), torch.zeros(samples)))
    everything: dict = {
        "model": Row, "data": lambda: data, "loss": lambda output, target: output.mean(), "metrics": {},
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=learning_rate), "name": "row",
    } | parts  # fmt: skip
    return Recipe(**everything)


class Cluster:
    """P servers of one run.

    Args:
        recipe, options: of the run; `options` are those of `Settings`.
        directory: the logdir; with checkpoints of an earlier cluster in it, this one resumes.
        before: the cluster that lived here before; its grants are remembered, as on disk.
        follower: the class of the following servers.
        shard: the class of the shards.
        without: leases that a roll-back left out.
        batches: of a pass of a script's loader, where `options` name a script.
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        *,
        before: Cluster | None = None,
        follower: type[Follower] = Follower,
        shard: type[Shard] = Shard,
        without: tuple[int, ...] = (),
        batches: int | None = None,
        **options: object,
    ) -> None:
        everything: dict = {"ps": 1, "workers": 2, "save_checkpoint_secs": None, "logdir": str(directory)} | options
        settings = make(everything)
        self.recipe, self.settings = recipe, settings if settings.script else settled(settings, recipe)
        self.clock, self.disk = Clock(), Disk()
        self.reports: list[AnyReport] = []
        self.generation = before.generation + 1 if before else 1
        self.epochs: dict[int, int] = dict(before.epochs) if before else {}
        self.holders: dict[int, str] = dict(before.holders) if before else {}
        self.built = build(self.settings, recipe)
        self.samples = len(as_data(recipe.data()).train) if batches is None else batches
        self.listeners = [transport.listen("memory") for _ in range(self.settings.ps)]
        self.workers: list[Worker] = []
        self._shard, self._without = shard, without
        with (
            patch("evener.state.saver.ThreadPoolExecutor", self.disk),
            patch("evener.server.follow.ThreadPoolExecutor", self.disk),
        ):
            self.leader = self._lead()
            self.servers: list[Leader | Follower] = [self.leader]
            for index in range(1, self.settings.ps):
                self.servers.append(self._follow(index, follower))

    def _parts(self, index: int) -> tuple[Links, Shard]:
        built = build(self.settings, self.recipe)
        expected = Expected(run=RUN, recipe=built.fingerprint, evener=EVENER)
        links = Links([self.listeners[index]], built.layout, index, expected)
        state = State(built.model, built.recipe, built.layout, shard=index)
        measure = self.settings.refuse_norm is not None
        return links, self._shard(state, measure=measure, usual=usual_batch(self.settings))

    def _lead(self) -> Leader:
        settings = self.settings
        store = Store(Path(settings.logdir) / "checkpoints")
        schedule = Schedule(
            every_seconds=settings.save_checkpoint_secs, every_steps=settings.save_checkpoint_steps, keep=settings.keep
        )
        saver = Saver(store, schedule, shards=settings.ps, clock=self.clock)
        if restored := store.newest():
            saver.resumed(restored[0].step, str(store.path(restored[0].step)))
            manifest = in_unit(restored[0], settings.batch_size, by_samples=settings.by_samples)
            restored = (manifest, restored[1])
        mode = settings.mode.name + (SEVERAL if settings.batches > 1 else "")
        about = Begin(generation=self.generation, mode=mode, batch_size=settings.batch_size)
        ledger = Ledger(path_of(Path(settings.logdir)), about)
        setup = Setup(
            settings=settings, saver=saver, ledger=ledger, report=self.reports.append, clock=self.clock,
            restored=restored, generation=self.generation, epochs=dict(self.epochs), holders=dict(self.holders),
            keep_grants=self._keep, evener=EVENER, without=self._without,
        )  # fmt: skip
        return Leader(*self._parts(0), setup)

    def _keep(self, epochs: dict[int, int], holders: dict[int, str]) -> None:
        self.epochs.update(epochs)
        self.holders.update(holders)

    def _follow(self, index: int, kind: type[Follower]) -> Follower:
        nothing = Ranges(Memory(0), ())
        channel = transport.connect(self.address(0), nothing, nothing)
        channel.send(codec.encode(Follow(index, RUN, self.built.layout.fingerprint)))
        self.look(0)
        lead = codec.decode(channel.receive(0.0) or b"")
        assert isinstance(lead, Lead), lead
        links, shard = self._parts(index)
        store = Store(Path(self.settings.logdir) / "checkpoints", writable=False)
        contents = load(store.path(lead.version))[1] if lead.version else None
        shard.state.step = lead.version
        return kind(
            links, shard, channel, index=index, settings=self.settings, store=store, generation=lead.generation,
            restored=contents, report=self.reports.append, clock=self.clock,
        )  # fmt: skip

    def address(self, shard: int) -> str:
        return self.listeners[shard].address

    # --- what happens

    def look(self, shard: int) -> None:
        """One server handles what has come in."""
        once(self.servers[shard], 0.0)

    def busy(self, shard: int) -> bool:
        """Is there something that this server would look at?"""
        server = self.servers[shard]
        others = [server.leader] if isinstance(server, Follower) else []
        return not server.done and bool(wait([self.listeners[shard], *others], 0.0))

    def settle(self) -> None:
        """All servers handle what has come in, until nothing is left."""
        while busy := [shard for shard in range(len(self.servers)) if self.busy(shard)]:
            for shard in busy:
                self.look(shard)

    def tick(self, seconds: float = 0.0) -> None:
        """Time passes, then every server looks at the clock, then all handle what follows from it."""
        self.clock.advance(seconds)
        for server in self.servers:
            server.tick()
        self.settle()

    def finish(self) -> None:
        """Until the run is over: saved, and the servers done."""
        for _ in range(10):
            self.tick()
            if all(server.done for server in self.servers):
                return
        raise AssertionError(f"the run does not end: waiting for {self.leader.waiting_for()}")

    # --- what is to see

    @property
    def step(self) -> int:
        return self.leader.shard.state.step

    def versions(self) -> list[int]:
        return [server.shard.state.step for server in self.servers]

    def parameters(self, what: str = "parameters") -> dict[str, torch.Tensor]:
        """All shards' parameters (or averages), whole and by name."""
        block = torch.zeros(self.built.layout.nbytes, dtype=torch.uint8).numpy().data
        for index, server in enumerate(self.servers):
            for (at, nbytes), part in zip(
                self.built.layout.ranges(index), getattr(server.shard.state, what).parts, strict=True
            ):
                block[at : at + nbytes] = part
        return whole_views(self.built.layout, block)

    def reported(self, kind: type) -> list:
        return [report for report in self.reports if isinstance(report, kind)]

    # --- coming and going

    def worker(self, index: int) -> Worker:
        return Worker(self, index)

    def scripted(self, *indices: int, want: int = 1) -> list[Scripted]:
        """Workers of a script that have joined, in this order."""
        workers = [Scripted(self, index) for index in indices]
        for worker in workers:
            worker.want = want
            worker.start()
        return workers

    def started(self, *indices: int) -> list[Worker]:
        """Workers that have joined, in this order."""
        workers = [Worker(self, index) for index in indices]
        for worker in workers:
            worker.start()
        return workers

    def close(self) -> None:
        """Everything ends at once, as if killed; what is on disk stays."""
        for worker in self.workers:
            worker.die()
        for server in self.servers:
            server.links.close()
            server.close()
        for listener in self.listeners:
            listener.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
        self.turn: Release | None = None  # shard 0's last release, until a push answers it
        self.channels: list = []
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

    def hello(self, **changes: object) -> Hello:
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

    def start(self) -> Release | None:
        """Greet and join every shard; the first release, or None if this worker must wait."""
        self.greet()
        return self.join()

    def join(self) -> Release | None:
        """Join every shard; the first release, or None if this worker must wait."""
        for shard in range(len(self.channels)):
            self.say(shard, Join(self.identity))
        return self.listen()

    def listen(self) -> Release | None:
        """The release that all shards have sent; None while it has not come."""
        self.cluster.settle()
        answers = [self.heard(shard) for shard in range(len(self.channels))]
        if not any(answers):
            return None
        releases = [release for (release,) in answers]
        assert all(isinstance(release, Release) for release in releases), releases
        told = [msgspec.structs.replace(release, leases=[], script=b"") for release in releases]  # the leader's alone
        assert all(one == told[0] for one in told), f"shards disagree: {releases}"
        self.turn = releases[0]
        return self.turn

    def message(self, **changes: object) -> Push:
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

    def push(self, value: float | None = None, **changes: object) -> Release | None:
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
            assert (type(answer).__name__, answer.what) == ("Contents", what)
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
        self.version = -1
        self.drawn: Drawn | None = None  # the answer to its last draw
        self.script = b""  # the last that it was told
        self.stop = ""

    def join(self) -> Release | None:
        for shard in range(len(self.channels)):
            self.say(shard, Join(self.identity, self.want))
        return self.listen()

    def listen(self) -> Release | None:
        release = super().listen()
        if release is not None:
            self.version = release.version
            self._given(release)
            assert release.lease == (self.hand[0] if self.hand and not release.stop else -1), (release, self.hand)
        return release

    def _given(self, answer: Release | Drawn) -> None:
        self.hand += answer.leases
        self.script = answer.script or self.script
        self.stop = answer.stop or self.stop

    def message(self, **changes: object) -> Push:
        """Of the first in hand, unless `leases` says otherwise."""
        leases: list = list(changes.pop("leases", self.hand[:1]))
        self.hand = [lease for lease in self.hand if lease not in leases]
        push = Push(
            self.identity, self.seq + 1, self.version, leases[0] if leases else -1, None, 10,
            more=leases[1:], want=self.want,
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
        (self.drawn,) = answers
        assert isinstance(self.drawn, Drawn), self.drawn
        self.version = max(self.version, self.drawn.version)
        self._given(self.drawn)
        return self.drawn


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


def data_of(recipe: Recipe, settings: Settings) -> tuple[Settings, Data, Numbered]:
    """A recipe's data and its leases, and the settings in the unit in which they are counted."""
    data = as_data(recipe.data()).sized(settings.batch_size, settings.eval_batch_size or settings.batch_size)
    settings = settled(settings, recipe)
    data_of_step = data if recipe.step is None else data.of_any_form()
    if isinstance(data.train, FromLoader):
        batches: Numbered = batches_of(data_of_step, settings)
    else:  # however few samples there are
        batches = Batches(data_of_step.train, batch_size=settings.batch_size, seed=settings.seed)
    return counted(settings, batches), data, batches


def ledger_of(settings: Settings, batches: Numbered, mode: str) -> Ledger:
    marks = (SEVERAL if settings.batches > 1 else "") + (LOADER if isinstance(batches, LoaderBatches) else "")
    return Ledger(path_of(Path(settings.logdir)), Begin(mode=mode + marks, batch_size=settings.batch_size))


def one_process(
    recipe: Recipe, directory: Path, hooks: Sequence[Hook] = (), *, clock: Clock | None = None, **options: object
) -> tuple[Session, Clock, list[AnyReport]]:
    """A session that trains alone, put together as `evener train` does, with virtual time."""
    everything: dict = {"save_checkpoint_secs": None, "logdir": str(directory)} | options
    settings, clock, reports = make(everything), clock or Clock(), []
    built = build(settings, recipe)
    recipe = built.recipe
    settings, data, batches = data_of(recipe, settings)
    store = Store(Path(settings.logdir) / "checkpoints")
    restored = store.newest()
    schedule = Schedule(
        every_seconds=settings.save_checkpoint_secs, every_steps=settings.save_checkpoint_steps, keep=settings.keep
    )
    with patch("evener.state.saver.ThreadPoolExecutor", Disk()):
        saver = Saver(store, schedule, shards=1, clock=clock)
    if restored:
        saver.resumed(restored[0].step, str(store.path(restored[0].step)))
        restored = (in_unit(restored[0], settings.batch_size, by_samples=False), restored[1])
    blocks = [torch.zeros(built.layout.nbytes, dtype=torch.uint8).numpy().data for _ in range(2)]
    parts = [[block[at : at + nbytes] for at, nbytes in built.layout.ranges(0)] for block in blocks]
    state = State(built.model, recipe, built.layout, slot=Slot(built.layout, 0, parts[0]))
    towers = Towers(built.model, recipe, built.layout, parameters=blocks[0], gradients=blocks[1], seed=settings.seed)
    ledger = ledger_of(settings, batches, "single")
    exchange = Local(
        state, Slot(built.layout, 0, parts[1]), settings=settings, samples=len(data.train), saver=saver,
        ledger=ledger, restored=restored, report=reports.append, clock=clock, evener=EVENER,
    )  # fmt: skip
    exchange.ahead, exchange.named = batches.ahead, batches.named
    session = Session(
        "worker:0", exchange, towers, batches, hooks,
        recipe=recipe, settings=settings, report=reports.append, clock=clock,
    )  # fmt: skip
    return session, clock, reports


def differences(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> Iterator[float]:
    """Of each tensor: the 2-norm of the difference over the 2-norm of the right one."""
    assert left.keys() == right.keys()
    for name, value in right.items():
        norm = torch.linalg.vector_norm(value.double())
        yield (
            float(torch.linalg.vector_norm(left[name].double() - value.double()) / norm)
            if norm
            else float(torch.linalg.vector_norm(left[name].double()))
        )


def same_bits(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)
