"""Exchange with nobody: one process owns all parameters and counts its own leases.

It is also what each of several towers holds (`allreduce.py`): then it counts the leases of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from evener import errors
from evener.data.order import batches_named
from evener.ledger import Ledger
from evener.ledger.lines import Lease
from evener.policy.poison import Answer, Poison
from evener.report import Finished, Line, Progress, Reporter
from evener.settings import Settings
from evener.state.checkpoint import Manifest
from evener.state.contents import Contents
from evener.state.manifest import in_unit
from evener.state.saver import NoSaver, Saver, begin, manifest_of
from evener.state.state import State
from evener.state.tensors import Slot
from evener.tally import Spikes, Tally
from evener.worker.exchange.book import Book
from evener.worker.exchange.exchange import Computed, Turn
from evener.worker.exchange.refusing import wrong_with
from evener.worker.exchange.shared_book import SharedBook


class Local:
    """The owner of the parameters and its only worker.

    Args:
        state: lives in the model's own memory; an update changes the model.
        gradients: the memory that `Towers` fills.
        restored: where to continue, if anywhere.
        tower, towers: which of how many replicas that take the same updates; each update then applies a lease of each.
    """

    def __init__(  # noqa: PLR0913 - what a run needs, each once
        self,
        state: State,
        gradients: Slot,
        *,
        settings: Settings,
        samples: int,
        saver: Saver | NoSaver,
        ledger: Ledger,
        restored: tuple[Manifest, Contents] | None,
        report: Reporter,
        clock: Callable[[], float],
        evener: str,
        tower: int = 0,
        towers: int = 1,
    ) -> None:
        self._tower, self._towers = tower, towers
        self._state, self._gradients = state, gradients
        self._settings, self._saver, self._report, self._clock = settings, saver, report, clock
        self._evener, self._ledger = evener, ledger
        self._train_steps, self._samples = settings.steps(samples), samples
        self._tally = Tally(clock)
        self._stop = ""
        self._complete = True
        self._whole = True  # no update is half done: the state may be saved
        self._shown: Slot | None = None  # where the parameters are, while the model shows what was there
        self._applied = gradients  # the last update's, clipped
        self._last_report = clock()
        for difference in begin(state, restored, settings, samples):
            report(Line("worker:0", f"warning: {difference}"))
        self._first_step = state.step
        self.ahead = 0  # leases of later turns that the loop would know, besides the next turn's
        self.named = batches_named(samples, settings.seed, settings.batch_size)  # a lease's samples, for people
        manifest = restored[0] if restored else None
        self.book: Book | SharedBook = Book(manifest, towers, self._given_up, settings.batches)
        if settings.by_samples:
            self.book = SharedBook(manifest, settings.plan.sizes, self._given_up)
        self._poison, self._spikes = Poison(settings.on_nan), Spikes(settings.spike)
        self._buffers = state.parameters.copied_buffers()
        ledger.begin(self._first_step, samples, self.book.state())

    arrivals = 0

    @property
    def infinite(self) -> frozenset[str]:
        """Buffers that may be."""
        return self._state.infinite

    def _given_up(self, lease: Lease) -> None:
        self._ledger.skip(lease, self._state.step, "not finite")

    def _tell(self, text: str) -> None:
        if self._tower == 0:
            self._report(Line("worker:0", text))

    @property
    def figure(self) -> str:
        """Of validations, what the schedule waits for; empty if it does not."""
        schedule = self._state.schedule
        return schedule.figure if schedule is not None else ""

    def start(self) -> Turn:
        if self._state.step >= self._train_steps:
            self._stop = f"already at step {self._state.step} of {self._train_steps}: nothing to do"
        return self._turn()

    def update(self, computed: Computed, factor: float | None = None) -> Turn:
        """Apply the gradient. `factor`: see `State.clipped`, where this process holds a part of the model."""
        try:
            return self._update(computed, factor)
        except errors.NonFinite as error:
            if self._towers > 1 or factor is not None or not self._whole:
                raise
            return self.refuse(self.of_tower(self._tower), error)

    def _check(self, computed: Computed) -> None:
        """Raises NonFinite for what must not become an update."""
        if wrong := wrong_with(self._gradients, computed.loss, self._state, self._settings.refuse_norm):
            place = self.place_of(self.of_tower(self._tower))
            raise errors.not_finite(f"{wrong}, at global step {self._state.step}, {place} (loss {computed.loss:.6g}).")

    def _update(self, computed: Computed, factor: float | None) -> Turn:
        self._check(computed)
        if not self._tally.updates:  # the first step began so long ago; what was before is no part of a rate
            self._tally.begin(self._clock() - computed.seconds)
        self._whole = False
        self._applied = self._state.apply(self._gradients, computed.unused, factor)
        step = self._state.step
        self._poison.applied()
        self._ledger.update(step, self.book.entries(step))
        self.book.take()
        self._whole = True
        if self._settings.on_nan != "stop":
            self._buffers = self._state.parameters.copied_buffers()
        if (times := self._spikes.see(computed.loss)) is not None:
            self._tell(f"warning: the loss {computed.loss:.6g} of step {step} is {times:.3g} times the running mean")
        self._tally.applied(computed.loss, computed.examples, 0)
        self._tally.updated()
        if self._state.step >= self._train_steps:
            self._stop = self._stop or f"reached step {self._train_steps}"
        self._poll()
        if not self._stop and self._saver.due(self._state.step):
            self._save()
        now = self._clock()
        if now - self._last_report >= 0.2 or self._tally.updates == 1:
            self._last_report = now
            self.progress()
        return self._turn()

    # --- what must not become an update

    def measured(self, error: errors.NonFinite) -> bool:
        """Whether a gradient was refused for its length or its loss."""
        return self._whole and ("--refuse-norm" in error.what or "the loss" in error.what)

    def place_of(self, leases: Sequence[int]) -> str:
        """The leases of a gradient, and the samples of the first, for people."""
        if self._settings.by_samples:
            return f"the samples from {leases[0]} on"
        others = f" and {len(leases) - 1} more" if len(leases) > 1 else ""
        return f"lease {leases[0]}{others} ({self.named(leases[0])})"

    def refuse(self, blamed: Sequence[int], error: errors.NonFinite) -> Turn:
        """Do as --on-nan says with the batches to blame; those of other towers come again.

        Raises:
            NonFinite: the run is to stop.
        """
        answers = self._poison.judge_all(blamed, self._settings.batches)
        if Answer.STOP in answers.values():
            raise error
        if Answer.BACK in answers.values():
            return self._roll_back(blamed, error)
        closed = [lease for lease, answer in answers.items() if answer is Answer.CLOSE]
        self._tell(f"{error.what.rstrip('.')}; {'it is given up' if closed else 'it is tried once more'}")
        self.book.refuse(closed)
        self._state.parameters.put_buffers(self._buffers)  # the model wrote there while it computed
        return replace(self._turn(), rejected=error.what)

    def _roll_back(self, blamed: Sequence[int], error: errors.NonFinite) -> Turn:
        """Everything as in the newest checkpoint, and on without these batches."""
        self._finish_save()
        restored = self._saver.read_newest()
        if restored is None:
            raise errors.NonFinite(
                f"{error.what.rstrip('.')}; there is no checkpoint yet to go back to.",
                why=error.why, fix="save earlier (--save-checkpoint-steps), or use --on-nan skip.",
            )  # fmt: skip
        manifest, contents = in_unit(restored[0], self._settings.batch_size, by_samples=False), restored[1]
        self._tell(f"{error.what.rstrip('.')}; back to step {manifest.step}, and on without it")
        self._state.back(contents)
        self.book.back_to(manifest)
        self._ledger.begin(manifest.step, self._samples, self.book.state())
        self.book.avoid(blamed)
        return replace(self._turn(), rejected=error.what)

    # --- leases

    def of_tower(self, tower: int) -> list[int]:
        """A tower's batches of the next update: so many that follow one another."""
        return self.book.of(tower)

    @property
    def leases(self) -> list[int]:
        """Of the next update, tower by tower, ascending."""
        return self.book.leases

    def progress(self) -> None:
        tally = self._tally
        self._report(Progress(self._state.step, self._train_steps, tally.examples_window.rate(),
                              tally.steps_window.rate(), tally.loss, 0, "", tally.updates))  # fmt: skip

    def _turn(self) -> Turn:
        mine, ahead, left = [-1], list[int](), self._train_steps - self._state.step - 1
        if not self._stop:
            mine, ahead = self.of_tower(self._tower), self.book.ahead(self._tower, self.ahead, left)
        return Turn(version=self._state.step, lease=mine[0], more=mine[1:], ahead=ahead, stop=self._stop,
                    count=0 if self._stop else self.book.counts[self._tower],
                    chief=self._complete, learning_rate=self._state.learning_rate)  # fmt: skip

    def settle(self) -> None:
        """What an update leaves for later is done: for a moment in which this process would wait."""
        self._state.settle()

    def show(self, what: str) -> int:
        """What is shown and the parameters change places, so that nothing is copied."""
        parameters = self._state.parameters
        if self._shown is not None:
            parameters.swap(self._shown)
            self._shown = None
        averages = self._state.averages  # they follow the parameters, not what is shown in their place
        if what != "parameters":
            self._shown = self._applied if what == "gradients" else averages
        if self._shown is not None:
            parameters.swap(self._shown)
        return self._state.step

    def judge(self, figures: Mapping[str, float]) -> None:
        self._state.judged(figures)

    def returned(self) -> Turn | None:
        return None

    def stop(self, reason: str, *, complete: bool = True) -> Turn:
        self._stop = self._stop or reason
        self._complete = self._complete and complete
        return self._turn()

    def conclude(self) -> None:
        """Save the last step before it is validated: that takes long, and may fail or be killed."""
        if self._tally.updates:
            self._save_final()

    def close(self, reason: str = "") -> None:
        """Save what is not saved, also after an error elsewhere; report the figures of a run that ended well."""
        try:
            if self._shown is not None:
                self.show("parameters")
            if self._whole and (not reason or self._tally.updates):
                self._save_final()
            if not reason:
                self._ledger.end(self._state.step, self._stop, self.book.state())
                tally = self._tally
                self._report(
                    Finished(self._state.step, self._first_step, tally.examples, tally.seconds, tally.loss, 0, 0.0, 0,
                             self._saver.newest, self._stop)
                )  # fmt: skip
        finally:
            self._saver.close()
            self._ledger.close()

    def _save_final(self) -> None:
        self._finish_save()
        while not self._saver.saved(self._state.step):
            self._save()
            self._finish_save()
            if self._saver.failure is not None and not self._saver.made_room:
                raise errors.not_saved(self._saver.failure)

    def _finish_save(self) -> None:
        self._saver.wait_own(timeout=600.0)
        self._poll()

    def _poll(self) -> None:
        if self._saver.poll():
            self._ledger.complete()

    def _save(self) -> None:
        contents = self._state.contents()
        manifest = manifest_of(
            contents, self._state, book=self.book.state(), seqs={}, examples=self._tally.examples, dropped=0,
            settings=self._settings, samples=self._samples, evener=self._evener,
        )  # fmt: skip
        self._ledger.cut(contents.step, self.book.state())
        self._saver.start(contents, manifest)
