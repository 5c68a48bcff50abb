"""Exchange with nobody: one process owns all parameters and counts its own leases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evener import errors
from evener.checkpoint import Manifest
from evener.policy.leases import LeaseState
from evener.report import Finished, Progress, Reporter
from evener.saver import Saver, manifest_of
from evener.settings import Settings
from evener.state import Contents, State
from evener.tally import Tally
from evener.tensors import Slot
from evener.worker.exchange import Turn


class Local:
    """The owner of the parameters and its only worker.

    Args:
        state: lives in the model's own memory; an update changes the model.
        gradients: the memory that `Towers` fills.
        restored: where to continue, if anywhere.
    """

    def __init__(  # noqa: PLR0913 - what a run needs, each once
        self,
        state: State,
        gradients: Slot,
        *,
        settings: Settings,
        samples: int,
        saver: Saver,
        restored: tuple[Manifest, Contents] | None,
        report: Reporter,
        clock: Callable[[], float],
        evener: str,
    ) -> None:
        self._state, self._gradients = state, gradients
        self._settings, self._saver, self._report, self._clock = settings, saver, report, clock
        self._evener = evener
        self._train_steps = settings.steps(samples)
        self._tally = Tally(clock)
        self._stop = ""
        self._complete = True
        self._whole = True  # no update is half done: the state may be saved
        self._kept: Sequence[bytes] | None = None  # the parameters, while the model shows something else
        self._last_report = clock()
        state.schedule(settings.steps_per_epoch(samples))
        if restored is not None:
            state.restore(restored[1])
        self._first_step = state.step
        self._lease = restored[0].next_lease if restored else 0

    def start(self) -> Turn:
        self._tally.started = self._clock()
        if self._state.step >= self._train_steps:
            self._stop = f"already at step {self._state.step} of {self._train_steps}: nothing to do"
        return self._turn()

    def update(self, *, loss: float, examples: int, seconds: float) -> Turn:
        if bad := self._gradients.first_non_finite():
            raise errors.NonFinite(
                f"the gradient of {bad!r} is not finite, at global step {self._state.step}, lease {self._lease} "
                f"(loss {loss:.6g}).",
                why="one such gradient would make every parameter NaN; it was not applied.",
                fix="lower the learning rate, clip the gradient, or look at that batch.",
            )
        self._whole = False
        self._state.apply(self._gradients)
        self._lease += 1
        self._whole = True
        self._tally.applied(loss, examples, 0)
        self._tally.updated()
        if self._state.step >= self._train_steps:
            self._stop = self._stop or f"reached step {self._train_steps}"
        self._saver.poll()
        if not self._stop and self._saver.due(self._state.step):
            self._save()
        now = self._clock()
        if now - self._last_report >= 0.2 or self._tally.updates == 1:
            self._last_report = now
            self.progress()
        return self._turn()

    def progress(self) -> None:
        tally = self._tally
        self._report(Progress(self._state.step, self._train_steps, tally.examples_window.rate(),
                              tally.steps_window.rate(), tally.loss, 0, "", tally.updates))  # fmt: skip

    def _turn(self) -> Turn:
        lease = -1 if self._stop else self._lease
        return Turn(version=self._state.step, lease=lease, stop=self._stop, chief=self._complete,
                    learning_rate=self._state.learning_rate)  # fmt: skip

    def show(self, what: str) -> int:
        parameters = self._state.parameters
        if self._kept is None:
            self._state.settle()  # the averages follow the parameters, not what is shown in their place
            self._kept = [bytes(part) for part in parameters.parts]
        source: Sequence[bytes | memoryview] = self._kept
        if what == "averages" and self._state.averages is not None:
            source = self._state.averages.parts
        elif what == "gradients":
            source = self._gradients.parts
        for part, bytes_ in zip(parameters.parts, source, strict=True):
            part[:] = bytes_
        if what == "parameters":
            self._kept = None
        return self._state.step

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        self._stop = self._stop or reason
        self._complete = self._complete and complete
        return self._turn()

    def close(self, reason: str = "") -> None:
        """Save what is not saved, also after an error elsewhere; report the figures of a run that ended well."""
        try:
            if self._kept is not None:
                self.show("parameters")
            if self._whole and (not reason or self._tally.updates):
                self._save_final()
            if not reason:
                tally = self._tally
                self._report(
                    Finished(self._state.step, self._first_step, tally.examples, tally.seconds, tally.loss, 0, 0.0, 0,
                             self._saver.newest, self._stop)
                )  # fmt: skip
        finally:
            self._saver.close()

    def _save_final(self) -> None:
        self._finish_save()
        if not self._saver.saved(self._state.step):
            self._save()
            self._finish_save()
            if self._saver.failure is not None:
                raise errors.CheckpointError(f"the final checkpoint was not saved: {self._saver.failure}")

    def _finish_save(self) -> None:
        self._saver.wait_own(timeout=600.0)
        self._saver.poll()

    def _save(self) -> None:
        contents = self._state.contents()
        manifest = manifest_of(
            contents, self._state, book=LeaseState(self._lease, ()), seqs={}, examples=self._tally.examples, dropped=0,
            settings=self._settings, evener=self._evener,
        )  # fmt: skip
        self._saver.start(contents, manifest)
