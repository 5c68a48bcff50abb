"""One ps task: its parts put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evener import chaos, errors
from evener.devices.process import give_back
from evener.ledger import path_of
from evener.policy.synchronous import Sync
from evener.report import Reporter
from evener.server.agreement import Expected
from evener.server.course import Setup
from evener.server.lead import Leader
from evener.server.links import Links
from evener.server.serve import never, serve
from evener.server.shard import Shard
from evener.settings import Settings
from evener.state.saver import Saver, SaveSchedule
from evener.state.state import State
from evener.state.tensors import let_go
from evener.task.build import (
    VERSION,
    Built,
    beginning,
    build,
    checkpoints,
    open_ledger,
    open_store,
    settled,
    tell_and_log,
    tell_start,
)
from evener.task.follower import LeaderLine, follower
from evener.task.grants import NAME, GrantsFile
from evener.task.rendezvous import Rendezvous
from evener.task.ruling import copies_told
from evener.task.wiring import close, listen, public_address
from evener.transport.channel import Listener


def schedule_of(settings: Settings) -> SaveSchedule:
    return SaveSchedule(
        every_seconds=settings.save_checkpoint_secs,
        every_steps=settings.save_checkpoint_steps,
        keep=settings.keep,
    )


def usual_batch(settings: Settings) -> float | None:
    """What the step of one gradient is measured by, where each is an update of its own; None: all steps are alike."""
    return float(settings.mean_batch) if settings.by_samples and not isinstance(settings.mode, Sync) else None


def run_server(  # noqa: PLR0913 - what a task is told, each once
    index: int,
    built: Built,
    settings: Settings,
    *,
    run: str,
    rendezvous: Rendezvous,
    stop_asked: Callable[[], str],
    report: Reporter,
    leave_asked: Callable[[], str] = never,
    again: Callable[[], Built] | None = None,
    latecomers: float = 0.0,
) -> None:
    """Serve shard `index` until the run is over. ps:0 is where `rendezvous` says; that may change.

    When another ps task is lost, this one begins a new generation: from the newest checkpoint, with workers that come
    back by themselves.

    Args:
        latecomers: seconds from the first worker on in which the others may come although the run is over.

    Raises:
        Preempted: `leave_asked` gave a reason, and what this task held is saved.
    """
    chaos.point("server.starting")
    settings = settled(settings, built.recipe)
    listeners = listen(settings, index, run)
    lives = _Lives(
        index, settings, run, listeners, leader=lambda: rendezvous.addresses()[0],
        stop_asked=stop_asked, leave_asked=leave_asked, report=report, anew=again is None,
        latecomers=latecomers,
    )  # fmt: skip
    task = f"ps:{index}"
    try:
        chaos.point("server.bound")
        copies = copies_told(built.recipe, built.layout, settings)
        # Told before the state is made: PyTorch's first optimizer imports for a second, in which workers can come.
        rendezvous.publish(task, public_address(settings, index, listeners[0]))
        if index == 0:
            tell_start(built, settings, task, report)
            if copies:
                tell_and_log(task, report, copies)
        while (loss := lives.serve(built)) is not None:
            tell_and_log(task, report, f"{loss.what} All go on from the newest checkpoint {_then(loss)}.")
            # Parameters as at the start: there may be no checkpoint yet.
            built = again() if again is not None else build(settings)
    finally:
        close(settings, index, run, listeners)


def _then(loss: errors.ServerLost) -> str:
    if not isinstance(loss, errors.RolledBack):
        return "once it is back"
    many = "s" if len(loss.leases) > 1 else ""
    return f"without lease{many} {', '.join(map(str, loss.leases))}" if loss.leases else "without that batch"


@dataclass(slots=True)
class _Lives:
    """The lives of one shard, one after the other, at one address."""

    index: int
    settings: Settings
    run: str
    listeners: list[Listener]
    leader: Callable[[], str]  # where ps:0 listens
    stop_asked: Callable[[], str]
    leave_asked: Callable[[], str]
    report: Reporter
    anew: bool  # whether a model is made for each
    latecomers: float
    without: tuple[int, ...] = ()  # leases that roll-backs left out

    def serve(self, built: Built) -> errors.ServerLost | None:
        """One life. None when the run is over; else why another one begins.

        Raises:
            Preempted: this task was told to leave.
            TaskFailed: the run has failed.
        """
        state = State(built.model, built.recipe, built.layout, shard=self.index)
        if self.anew:  # each life makes a model of its own; a program's stays as it made it, for the next life
            let_go(built.model)
            give_back()
        shard = Shard(
            state, measure=self.settings.refuse_norm is not None, usual=usual_batch(self.settings),
            workers=self.settings.workers,
        )  # fmt: skip
        scaled = usual_batch(self.settings) is not None or state.ruled.scales
        if self.index == 0 and scaled and state.steps.note:
            tell_and_log("ps:0", self.report, state.steps.note)
        links = Links(self.listeners, built.layout, self.index, _expected(built, self.settings, self.run))
        try:
            (self._follow if self.index else self._lead)(links, shard)
        except errors.TaskFailed as loss:
            if self.leave_asked():
                raise errors.Preempted(loss.what) from None
            if self.stop_asked() or not isinstance(loss, errors.ServerLost):
                raise
            if isinstance(loss, errors.RolledBack):
                self.without += loss.leases
            return loss
        return None

    def _lead(self, links: Links, shard: Shard) -> None:
        server = _leader(
            links,
            shard,
            self.settings,
            run=self.run,
            report=self.report,
            without=self.without,
            latecomers=self.latecomers,
            stop_asked=lambda: self.stop_asked() or self.leave_asked(),
        )
        serve(server, self.stop_asked, self.leave_asked)
        if server.ending.failure is not None:
            raise server.ending.failure
        if server.course.failed:
            raise errors.TaskFailed(f"the run ended: {server.course.stopping}.")

    def _follow(self, links: Links, shard: Shard) -> None:
        line = LeaderLine(
            self.index, self.settings, run=self.run, address=self.leader, report=self.report,
            stop_asked=lambda: self.stop_asked() or self.leave_asked(),
        )  # fmt: skip
        serve(follower(line, links, shard, self.settings, self.report), self.stop_asked, self.leave_asked)


def _expected(built: Built, settings: Settings, run: str) -> Expected:
    """What a worker must agree on."""
    return Expected(
        run=run, recipe=built.fingerprint, evener=VERSION, sources=built.sources,
        allow_difference=settings.allow_difference,
    )  # fmt: skip


def _leader(  # noqa: PLR0913 - what a leader is given, each once
    links: Links,
    shard: Shard,
    settings: Settings,
    *,
    run: str,
    report: Reporter,
    without: tuple[int, ...],
    latecomers: float,
    stop_asked: Callable[[], str],
) -> Leader:
    tell = partial(tell_and_log, "ps:0", report)
    store = open_store(settings, tell=tell)
    saver = Saver(store, schedule_of(settings), shards=settings.ps, clock=time.monotonic, tell=tell)
    chaos.point("server.restoring")
    restored = beginning(store, saver, settings, "ps:0", report)
    file = GrantsFile(checkpoints(settings) / NAME, settings.workers, tell)
    file.find(path_of(Path(settings.logdir)), restored[0] if restored else None)
    file.begin(sleep=time.sleep, patience=settings.stall_timeout, stopped=stop_asked)
    grants = file.grants
    ledger = open_ledger(settings, generation=grants.generation, run=run, report=report)
    setup = Setup(
        settings=settings, saver=saver, ledger=ledger, report=report, clock=time.monotonic,
        restored=restored[0] if restored else None,
        generation=grants.generation, epochs=dict(grants.epochs), holders=dict(grants.holders),
        keep_grants=file.keep, evener=VERSION, without=without,
        latecomers=latecomers,
    )  # fmt: skip
    return Leader(links, shard, setup, restored[1] if restored else None)
