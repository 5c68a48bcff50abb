"""One stage of a pipeline over processes of this machine: its parts put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from evener import errors
from evener.data.batches import Batches
from evener.report import Published, Reporter, Status
from evener.session.watch import Watch
from evener.settings import Settings
from evener.state.checkpoint import Store, load
from evener.state.state import State
from evener.state.tensors import Slot, bind
from evener.task.build import VERSION, Built, beginning, open_ledger, open_store, tell_and_log, tell_start
from evener.task.parts import Prepared, prepared
from evener.task.server import schedule_of
from evener.wire.layout import Layout
from evener.worker.allreduce.meeting import listening_store, store_at
from evener.worker.exchange.local import Local
from evener.worker.pipeline.conductor import Conductor, StagesSaver, follow
from evener.worker.pipeline.pipeline import StagePart
from evener.worker.pipeline.splitting import cut, points_of
from evener.worker.pipeline.stage_group import Ask, StageGroup

#: The stages of a pipeline are processes of one machine.
HOST = "127.0.0.1"
#: Seconds that the stages have to meet: imports may be slow.
MEETING = 300.0
#: Seconds after which a person wants to know what a stage waits for.
LONG = 10.0


def run_stage(  # noqa: PLR0913 - what a task is told, each once
    stage: int,
    built: Built,
    settings: Settings,
    *,
    addresses: Callable[[], Sequence[str]],
    stop_asked: Callable[[], str],
    report: Reporter,
) -> None:
    """Train as stage `stage`: the first runs the session, the others do their part until it ends."""
    task = f"worker:{stage}"
    points = points_of(built.recipe, built.model, settings.pipeline_stages)
    report(Status(task, "starting", waiting_for="its data"))
    parts = prepared(built, settings, task, report)
    settings, batches = parts.settings, _numbered(parts)
    report(Status(task, "starting", waiting_for="the other stages"))
    if stage == 0:
        store, address = listening_store(HOST, MEETING)
        report(Published(task, address))
    else:
        store = store_at(addresses()[0], MEETING)
    group = StageGroup(store, stage=stage, stages=settings.pipeline_stages, patience=settings.stall_timeout)
    try:
        part, state = _parts(built, settings, points, batches, group)
        part.check_penalty()
        if stage:
            _follow(part, state, settings, batches, report)
        else:
            tell_start(built, settings, task, report)
            local = _local(part, state, settings, len(parts.data.train), report)
            parts.session(Conductor(local, part, group, stop_asked), part).run()
        report(Status(task, "done"))
    finally:
        group.close()


def _numbered(parts: Prepared) -> Batches:
    """The batches, if they can be cut. Raises ConfigError."""
    own_step, batches = parts.built.recipe.step is not None, parts.batches
    if own_step or not isinstance(batches, Batches):
        raise errors.ConfigError(
            f"a recipe with {'a step of its own' if own_step else 'a DataLoader'} does not go with a pipeline.",
            why="batches are cut into microbatches, and the model into stages, between its inputs and its loss.",
            fix="give it a loss and a data set of pairs, or train without --pipeline-stages.",
        )
    return batches


def _local(part: StagePart, state: State, settings: Settings, samples: int, report: Reporter) -> Local:
    """Stage 0's own part; from here on all stages continue from the same checkpoint."""
    task = "worker:0"
    tell = partial(tell_and_log, task, report)
    if warning := _normalizes(part.model, settings):
        tell(warning)
    store = open_store(settings, tell=tell)
    saver = StagesSaver(store, schedule_of(settings), shards=part.group.stages, clock=time.monotonic, tell=tell)
    saver.group = part.group
    restored = beginning(store, saver, settings, task, report)
    part.group.give(Ask.CONTINUE, restored[0].step if restored else -1)
    ledger = open_ledger(settings, generation=0, run="", report=report, task=task)
    return Local(
        state, part.slot, settings=settings, samples=samples, saver=saver, ledger=ledger,
        restored=restored, report=report, clock=time.monotonic, evener=VERSION,
    )  # fmt: skip


def _parts(
    built: Built, settings: Settings, points: Sequence[str], batches: Batches, group: StageGroup
) -> tuple[StagePart, State]:
    inputs = batches.batch(0)[0]
    if not isinstance(inputs, Tensor):
        raise errors.ConfigError(
            f"a pipeline takes one tensor as input, the data give {type(inputs).__name__}.",
            why="it is cut into microbatches along its first dimension.",
            fix="let the data set give one tensor, or train without --pipeline-stages.",
        )
    made = cut(built.model, points, inputs[: settings.batch_size // settings.chunks])
    stages = {spec.name: made.homes[spec.name] for spec in built.layout.specs}
    layout = Layout(built.layout.specs, shards=group.stages, stages=stages)
    state = State(built.model, built.recipe, layout, shard=group.stage)
    bind(built.model, {piece.spec.name: view for piece, view in state.parameters.named()})
    part = StagePart(
        built.model, built.recipe, made, group, Slot(layout, group.stage),
        schedule=settings.pipeline_schedule, microbatches=settings.chunks, seed=settings.seed,
    )  # fmt: skip
    return part, state


def _follow(part: StagePart, state: State, settings: Settings, batches: Batches, report: Reporter) -> None:
    task = f"worker:{part.group.stage}"
    store: Store = open_store(settings, writable=False)
    _, step = part.group.take()
    state.begin(
        settings.steps_per_epoch(len(batches.dataset)), load(store.path(step))[1] if step >= 0 else None,
        hyperparameters=settings.hyperparameters,
    )  # fmt: skip
    watch = Watch(task, report, time.monotonic)
    told = [0.0]

    def busy(what: str, at: int) -> None:
        watch.busy(what, LONG)
        if time.monotonic() - told[0] >= 0.2:
            told[0] = time.monotonic()
            report(Status(task, "training", at))

    watch.start()
    try:
        follow(part, state, store=store, batches=batches, busy=busy)
    finally:
        watch.stop()


def _normalizes(model: nn.Module, settings: Settings) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not names:
        return ""
    return (
        f"warning: {names[0]} normalizes over each microbatch of {settings.batch_size // settings.chunks} samples, "
        "not over the batch: the loss is not that of one process"
    )
