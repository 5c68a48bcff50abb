"""A program that holds all parameters itself, alone or as one of several towers: its own optimizers take the steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evener.errors import CheckpointError, ConfigError, NonFinite
from evener.ledger import Ledger
from evener.loop.averaging import Averaging, Sums
from evener.loop.owner import Step, Supply
from evener.loop.parts import Parts
from evener.policy.deal import Deal, Unnumbered
from evener.policy.leases import LeaseState
from evener.report import Finished, Line, Progress
from evener.state.saver import NoSaver, Saver, begin, manifest_of
from evener.state.state import State
from evener.state.tensors import CPU, Slot, bind, named_tensors, whole_views
from evener.tally import Tally
from evener.task.build import VERSION, Built, beginning, open_ledger, open_store, tell_and_log
from evener.task.script import Joining
from evener.task.server import schedule_of
from evener.worker.allreduce.allreduce import Restored, share_restored
from evener.worker.exchange.exchange import Turn


def home_of(built: Built) -> torch.device:
    """The one device on which the program has put its model. Raises ConfigError if they are several."""
    tensors = named_tensors(built.model)
    devices = {tensors[spec.name].device for spec in built.layout.specs} or {CPU}
    if len(devices) > 1:
        raise ConfigError(
            f"the model lies on several devices: {', '.join(sorted(map(str, devices)))}.",
            why="a process that holds all parameters keeps them in one memory.",
            fix="put the model on one device, or use ps tasks (--ps 1).",
        )
    return devices.pop()


class Here:
    """All parameters in this process, as an `Owner`."""

    here = True

    def __init__(self, joining: Joining, parts: Parts, built: Built, supply: Supply) -> None:
        settings, self._report = joining.settings, joining.report
        self._joining, self._settings, self._parts = joining, settings, parts
        samples = self._samples = supply.length
        self._size = supply.size
        home, tower = home_of(built), joining.tower
        self._group = tower.meet(home) if tower is not None else None
        self._rank, towers = (tower.rank, settings.aggregate) if tower is not None else (0, 1)
        saver, ledger, restored = self._kept() if self._rank == 0 else (NoSaver(), Ledger(), None)
        if self._group is not None:
            restored = share_restored(self._group, restored)
        self._saver, self._ledger = saver, ledger
        memory = torch.zeros(built.layout.nbytes, dtype=torch.uint8, device=home)
        bind(built.model, whole_views(built.layout, memory))
        ranges = [memory[at : at + nbytes] for at, nbytes in built.layout.ranges(0)]
        self._state = State(built.model, built.recipe, built.layout, slot=Slot(built.layout, 0, ranges), own=True)
        for difference in begin(self._state, restored, settings, samples or 1):
            self._tell(f"warning: {difference}")
        self._averaging = None
        if self._group is not None:
            self._averaging = Averaging(
                self._group, self._state, parts, home, stop_asked=joining.stop_asked, heard=self._hear
            )
        manifest = restored[0] if restored else None
        book = LeaseState(0, ())
        if manifest is not None:
            book = LeaseState(manifest.next_lease, tuple(manifest.unapplied), tuple(manifest.skipped))
        self._deal = Deal(samples, towers, book) if samples else Unnumbered()
        self._script = manifest.script.encode() if manifest is not None else b""
        self._first_step = self._state.step
        self._tally = Tally(time.monotonic)
        self._counted = manifest.counted if manifest is not None else 0  # updates of the first optimizer
        self._stop, self._whole, self._last_report = "", True, time.monotonic()
        self._in_hand, self._unused = 0, 0
        #: Called when others have taken a step that this tower's program knows nothing of, and with tower 0's news.
        self.idled: Callable[[], None] | None = None
        self.heard: Callable[[bytes], None] | None = None
        ledger.begin(self._state.step, samples, self._deal.state(), script=True)

    def _kept(self) -> tuple[Saver | NoSaver, Ledger, Restored]:
        settings = self._settings
        if not settings.logdir:
            return NoSaver(), Ledger(), None
        tell = partial(tell_and_log, self._joining.name, self._report)
        store = open_store(settings, tell=tell)
        saver = Saver(store, schedule_of(settings), shards=1, clock=time.monotonic, tell=tell)
        restored = beginning(store, saver, settings, self._joining.name, self._report)
        return saver, open_ledger(settings, generation=0, run="", report=self._report, task="worker:0"), restored

    def _tell(self, text: str) -> None:
        if self._rank == 0:
            self._report(Line("worker:0", text))

    # --- the loop

    def start(self, want: int) -> Turn:
        self._judge_length()
        return self._turn(self._give(want), script=self._script)

    def step(self, step: Step) -> tuple[Any, Turn]:
        if self._averaging is not None:
            return self._step_together(step, self._averaging)
        if not self._tally.updates:
            self._tally.begin(time.monotonic() - step.seconds)
        self._whole = False
        result = step.really()
        self._applied(step, [len(step.leases)], [step.group])
        self._deal.finish()
        return result, self._turn(self._give(step.want))

    def _step_together(self, step: Step, averaging: Averaging) -> tuple[Any, Turn]:
        if step.closure is not None:
            raise ConfigError(
                "optimizer.step was given a closure.",
                why="with towers the gradients of all are averaged before the step, and a closure computes others.",
                fix="call closure yourself before step(), or run the program alone.",
            )
        if not self._tally.updates:
            self._tally.begin(time.monotonic() - step.seconds)
        sums = averaging.give(step, self._shed())
        self._whole = False
        result = self._take(sums, step)
        return result, self._turn(self._give(step.want))

    def _take(self, sums: Sums, step: Step | None) -> Any:
        """The mean gradients are in place: every tower takes the same steps."""
        result = None
        groups = [group for group, gives in enumerate(sums.gives) if gives]
        for group in groups:
            optimizer = self._parts.optimizers[group]
            result = step.really() if step is not None and step.group == group else sums.steps[group](optimizer)
        if sums.stop:
            self._stop = self._stop or sums.stop
        self._skip(sums.unused)
        if groups:
            self._applied(step, sums.counts, groups, sums.loss)
        self._deal.finish()
        return result

    def _applied(self, step: Step | None, counts: Sequence[int], groups: Sequence[int], loss: float = math.nan) -> None:
        """The parameters have changed by one update."""
        self._state.step += 1
        self._counted += 0 in groups
        version = self._state.step
        if bad := self._state.parameters.first_non_finite(self._state.infinite):
            raise NonFinite(
                f"the update to global step {version} has made {bad!r} NaN or infinite.",
                why="a loss, a gradient or the step was not finite, or too large for the numbers.",
                fix="lower the learning rate, or clip the gradients in your loop.",
            )
        entries = []
        for tower, leases in enumerate(self._deal.apply(counts)):
            entries += [(lease, tower, 0, version) for lease in leases or [-1] * (not self._samples)]
        self._ledger.update(version, entries or [(-1, self._rank, 0, version)])
        self._in_hand -= counts[self._rank]
        self._whole = True
        if step is not None and step.script:
            self._script = step.script
        loss = step.loss if step is not None and math.isnan(loss) else loss
        self._tally.applied(loss, sum(counts) * self._size, 0)
        self._tally.updated()
        self._judge_length()
        if self._saver.poll():
            self._ledger.complete()
        if not self._stop and self._saver.due(version):
            self._save()
        now = time.monotonic()
        if now - self._last_report >= 0.2 or self._tally.updates == 1:
            self._last_report = now
            self._progress()

    def draw(self, want: int, *, unused: Sequence[int] = (), wait: bool = False) -> Turn:
        self._unused += len(unused)  # other towers hear of it when they meet next
        self._in_hand -= len(unused)
        if self._averaging is None:
            self._skip([self._shed()])
            self._deal.finish()
        given = self._give(want)
        if not wait or given or self._averaging is None:
            return self._turn(given)
        self._idle(self._averaging)
        return self._turn(self._give(want))

    def _shed(self) -> int:
        unused, self._unused = self._unused, 0
        return unused

    def _idle(self, averaging: Averaging, *, left: bool = False) -> None:
        """This tower has no batch left: it helps to average until the others have none of this epoch either.

        Args:
            left: its program has left its loop: until those of all others have.
        """
        epoch = self._deal.epoch
        while not self._stop:
            sums = averaging.idle(self._shed(), left=left)
            self._take(sums, None)
            if self.idled is not None and any(sums.gives):
                self.idled()
            size = len(sums.counts)
            if sums.left == size if left else self._deal.epoch != epoch:
                return
            if sums.idle == size and sums.left and self._samples:
                self._stop = "a tower has left its loop"  # with batches that the others wait for
            if sums.idle == size and not left and not self._samples:
                return  # batches have no numbers, and a pass is over when all towers say so

    def _hear(self, script: bytes) -> None:
        if self.heard is not None:
            self.heard(script)

    def _skip(self, counts: Sequence[int]) -> None:
        for lease in self._deal.skip(counts):
            self._ledger.skip(lease, self._state.step, "its script took no step with it")

    def _give(self, want: int) -> list[int]:
        given = self._deal.give(self._rank, max(0, want - self._in_hand))
        self._in_hand += len(given)
        return given

    def _judge_length(self) -> None:
        limit = self._settings.train_steps
        if limit is not None and self._counted >= limit:
            self._stop = self._stop or f"reached step {limit}"

    def _turn(self, leases: Sequence[int], script: bytes = b"") -> Turn:
        return Turn(
            version=self._state.step, lease=-1, leases=leases, stop=self._stop, chief=self._rank == 0, script=script
        )

    # --- its end

    def stop(self, reason: str) -> None:
        if self._averaging is not None:
            self._averaging.asked = reason
        else:
            self._stop = self._stop or reason

    def close(self, reason: str = "", script: bytes = b"") -> None:
        self._script = script or self._script
        try:
            if self._averaging is not None and not reason:
                self._idle(self._averaging, left=True)
            if self._whole and (not reason or self._tally.updates):
                self._save_final()
            if not reason:
                ended = self._stop or "the script has ended"
                self._ledger.end(self._state.step, ended, self._deal.state())
                tally = self._tally
                self._report(
                    Finished(self._state.step, self._first_step, tally.examples, tally.seconds, tally.loss, 0, 0.0, 0,
                             self._saver.newest, ended)
                )  # fmt: skip
        finally:
            self._saver.close()
            self._ledger.close()
            if self._group is not None:
                self._group.close(failed=bool(reason))

    def _progress(self) -> None:
        tally = self._tally
        limit = self._settings.train_steps or 0
        self._report(Progress(self._state.step, limit, tally.examples_window.rate(), tally.steps_window.rate(),
                              tally.loss, 0, "", tally.updates))  # fmt: skip

    def _save_final(self) -> None:
        if not self._logdir_there():
            return
        self._saver.wait_own(timeout=600.0)
        if self._saver.poll():
            self._ledger.complete()
        self._save()
        self._saver.wait_own(timeout=600.0)
        if self._saver.poll():
            self._ledger.complete()
        if self._saver.failure is not None:
            raise CheckpointError(f"the final checkpoint was not saved: {self._saver.failure}")

    def _logdir_there(self) -> bool:
        return isinstance(self._saver, Saver) and bool(self._settings.logdir) and Path(self._settings.logdir).is_dir()

    def _save(self) -> None:
        contents = self._state.contents()
        book = self._deal.state()
        manifest = manifest_of(
            contents, self._state, book=book, seqs={}, examples=self._tally.examples, dropped=0,
            settings=self._settings, samples=self._samples, evener=VERSION,
            script=self._script.decode(), counted=self._counted,
        )  # fmt: skip
        self._ledger.cut(contents.step, book)
        self._saver.start(contents, manifest)
