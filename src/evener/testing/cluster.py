"""A whole cluster in one process, one thread and virtual time: the test decides what happens next.

`Cluster` holds real servers (leader and followers with their shards, policies, savers) behind memory listeners.
Nothing moves until the test says so: servers look at their mail in `Cluster.look` and `Cluster.settle`, time passes in
`Clock.advance`, and disks write when `Disk` does. Its workers are in `workers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import nn

from evener import transport
from evener.data.dataset import Data, Tensors, as_data
from evener.ledger import SEVERAL, Begin, Ledger, path_of
from evener.recipes.recipe import Recipe
from evener.report import AnyReport
from evener.server.agreement import Expected
from evener.server.course import Setup
from evener.server.follow import Follower
from evener.server.lead import Leader
from evener.server.links import Links
from evener.server.serve import once
from evener.server.shard import Shard
from evener.settings import make
from evener.state.checkpoint import Store, load
from evener.state.manifest import in_unit
from evener.state.saver import Saver, SaveSchedule
from evener.state.state import State
from evener.state.tensors import whole_views
from evener.task.build import Built, build, settled
from evener.task.server import usual_batch
from evener.testing.clock import Clock, Disk
from evener.testing.workers import EVENER, RUN, Scripted, Worker
from evener.transport.channel import Listener, Memory, Ranges, wait
from evener.wire import codec
from evener.wire.messages import Follow, Lead

Reported = TypeVar("Reported")


class Row(nn.Module):
    """One parameter of `width` equal numbers, float64, at 0: whoever adds something else somewhere is seen."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(width, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.row.sum()


def row_recipe(*, samples: int = 40, learning_rate: float = 1.0, **parts: Any) -> Recipe:
    """Plain descent with step 1 on a `Row`: the parameters are minus the sum of the averaged gradients."""
    data = Data(Tensors(torch.arange(float(samples)), torch.zeros(samples)))
    everything: dict[str, Any] = {
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
        latecomers: seconds from the first worker on in which others may come although the run is over.
    """

    def __init__(  # noqa: PLR0913 - what a test may want otherwise, each once
        self,
        recipe: Recipe,
        directory: Path,
        *,
        before: Cluster | None = None,
        follower: type[Follower] = Follower,
        shard: type[Shard] = Shard,
        without: tuple[int, ...] = (),
        batches: int | None = None,
        latecomers: float = 0.0,
        **options: Any,
    ) -> None:
        everything: dict[str, Any] = {
            "ps": 1,
            "workers": 2,
            "save_checkpoint_secs": None,
            "logdir": str(directory),
        } | options
        settings = make(everything)
        self.recipe, self.settings = recipe, settings if settings.script else settled(settings, recipe)
        self.clock, self.disk = Clock(), Disk()
        self.reports: list[AnyReport] = []
        self.generation: int = before.generation + 1 if before else 1
        self.epochs: dict[int, int] = dict(before.epochs) if before else {}
        self.holders: dict[int, str] = dict(before.holders) if before else {}
        self.built: Built = build(self.settings, recipe)
        self.samples = len(as_data(recipe.data()).train) if batches is None else batches
        self.listeners: list[Listener] = [transport.listen("memory") for _ in range(self.settings.ps)]
        self.workers: list[Worker] = []
        self._shard, self._without, self._latecomers = shard, without, latecomers
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
        shard = self._shard(state, measure=measure, usual=usual_batch(self.settings), workers=self.settings.workers)
        return links, shard

    def _lead(self) -> Leader:
        settings = self.settings
        store = Store(Path(settings.logdir) / "checkpoints")
        schedule = SaveSchedule(
            every_seconds=settings.save_checkpoint_secs, every_steps=settings.save_checkpoint_steps, keep=settings.keep
        )
        saver = Saver(store, schedule, shards=settings.ps, clock=self.clock)
        manifest, contents = store.newest() or (None, None)
        if manifest is not None:
            saver.resumed(manifest.step, str(store.path(manifest.step)))
            manifest = in_unit(manifest, settings.batch_size, by_samples=settings.by_samples)
        mode = settings.mode.name + (SEVERAL if settings.batches > 1 else "")
        about = Begin(generation=self.generation, mode=mode, batch_size=settings.batch_size)
        ledger = Ledger(path_of(Path(settings.logdir)), about)
        setup = Setup(
            settings=settings, saver=saver, ledger=ledger, report=self.reports.append, clock=self.clock,
            restored=manifest, generation=self.generation, epochs=dict(self.epochs), holders=dict(self.holders),
            keep_grants=self._keep, evener=EVENER, without=self._without,
            latecomers=self._latecomers,
        )  # fmt: skip
        return Leader(*self._parts(0), setup, contents)

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

    def reported(self, kind: type[Reported]) -> list[Reported]:
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
