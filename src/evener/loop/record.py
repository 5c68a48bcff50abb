"""What is kept of a run whose parameters are in this process: checkpoints, the account of batches, its figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

from evener.errors import not_saved
from evener.ledger import Ledger
from evener.policy.leases import LeaseState
from evener.report import Finished, Progress, Reporter
from evener.settings import Settings
from evener.state.saver import NoSaver, Saver, manifest_of
from evener.state.state import State
from evener.tally import Tally
from evener.task.build import VERSION, beginning, open_ledger, open_store, tell_and_log
from evener.task.server import schedule_of
from evener.worker.allreduce.restored import Restored

#: Seconds that the last save may take.
PATIENCE = 600.0
UNUSED = "its script took no step with it"


class Record:
    """Of one process alone, or of tower 0; of other towers, and without a logdir, nothing is kept but the figures.

    Args:
        saves: whether this process is the one that has the logdir.
    """

    def __init__(self, settings: Settings, report: Reporter, *, saves: bool) -> None:
        self._settings, self._report = settings, report
        self._saver: Saver | NoSaver = NoSaver()
        self._ledger = Ledger()
        self.restored: Restored = None
        self.tally = Tally(time.monotonic)
        self.script, self.counted = b"", 0  # what the program keeps; updates of its first optimizer
        self._samples, self._first_step = 0, 0
        self._last_report = time.monotonic()
        self._book: Callable[[], LeaseState] = lambda: LeaseState(0, ())
        if saves and settings.logdir:
            tell = partial(tell_and_log, "worker:0", report)
            store = open_store(settings, tell=tell)
            self._saver = Saver(store, schedule_of(settings), shards=1, clock=time.monotonic, tell=tell)
            self.restored = beginning(store, self._saver, settings, "worker:0", report)
            self._ledger = open_ledger(settings, generation=0, run="", report=report, task="worker:0")

    def begin(self, state: State, samples: int, book: Callable[[], LeaseState], restored: Restored) -> None:
        """Training begins; `book` tells which batches are applied."""
        self._state, self._samples, self._book, self._first_step = state, samples, book, state.step
        if restored is not None:
            self.script, self.counted = restored[0].script.encode(), restored[0].counted
        self.restored = None  # as large as the state, which has taken it over
        self._ledger.begin(state.step, samples, book(), script=True)

    def stepping(self, seconds: float) -> None:
        """A step has taken so long; the first one starts the clock of all rates."""
        if not self.tally.updates:
            self.tally.begin(time.monotonic() - seconds)

    def applied(self, leases: Sequence[Sequence[int]], rank: int, *, loss: float, examples: int) -> None:
        """An update was made of these batches of each tower."""
        version = self._state.step
        entries = [(lease, tower, 0, version) for tower, mine in enumerate(leases) for lease in mine]
        self._ledger.update(version, entries or [(-1, rank, 0, version)])
        self.tally.applied(loss, examples, 0)
        self.tally.updated()

    def skipped(self, leases: Sequence[int]) -> None:
        """No update was made of these."""
        for lease in leases:
            self._ledger.skip(lease, self._state.step, UNUSED)

    def look(self, *, over: bool) -> None:
        """After an update: is it time to save, or to tell how far the run is?"""
        if self._saver.poll():
            self._ledger.complete()
        if not over and self._saver.due(self._state.step):
            self._save()
        now = time.monotonic()
        if now - self._last_report >= 0.2 or self.tally.updates == 1:
            self._last_report = now
            tally, limit = self.tally, self._settings.train_steps or 0
            self._report(Progress(self._state.step, limit, tally.examples_window.rate(), tally.steps_window.rate(),
                                  tally.loss, 0, "", tally.updates))  # fmt: skip

    def _save(self) -> None:
        contents, book = self._state.contents(), self._book()
        manifest = manifest_of(
            contents, self._state, book=book, seqs={}, examples=self.tally.examples, dropped=0,
            settings=self._settings, samples=self._samples, evener=VERSION,
            script=self.script.decode(), counted=self.counted,
        )  # fmt: skip
        self._ledger.cut(contents.step, book)
        self._saver.start(contents, manifest)

    # --- the end

    def save_last(self) -> None:
        """Raises CheckpointError when it cannot be."""
        self._finish_save()
        while not self._saver.saved(self._state.step):
            self._save()
            self._finish_save()
            if self._saver.failure is not None and not self._saver.made_room:
                raise not_saved(self._saver.failure)

    def _finish_save(self) -> None:
        self._saver.wait_own(timeout=PATIENCE)
        if self._saver.poll():
            self._ledger.complete()

    def end(self, reason: str) -> None:
        """The run has ended as it should."""
        self._ledger.end(self._state.step, reason, self._book())
        tally = self.tally
        loss = tally.loss if tally.updates else math.nan
        self._report(
            Finished(self._state.step, self._first_step, tally.examples, tally.seconds, loss, 0, 0.0, 0,
                     self._saver.newest, reason)
        )  # fmt: skip

    def close(self) -> None:
        self._saver.close()
        self._ledger.close()
