"""How far a run is, when it ends, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evener import errors
from evener.data.order import Order
from evener.ledger import Ledger
from evener.report import Finished, Line, Progress, Reporter
from evener.settings import Settings
from evener.state.checkpoint import Manifest
from evener.state.saver import Saver
from evener.state.state import Contents
from evener.tally import Spikes, Tally
from evener.wire.messages import Push

#: Seconds that workers have to say goodbye once the run has ended.
GRACE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a server is given; time, storage and reporting come from outside."""

    settings: Settings
    saver: Saver
    ledger: Ledger
    report: Reporter
    clock: Callable[[], float]
    restored: tuple[Manifest, Contents] | None
    generation: int
    epochs: dict[int, int]
    holders: dict[int, str]
    keep_grants: Callable[[dict[int, int], dict[int, str]], None]  # epochs and holders: durable before it returns
    evener: str
    without: tuple[int, ...] = ()  # leases that a roll-back left out


class Course:
    """The run as the owner of the global step sees it: its length, its counts, its end."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.settings = setup, setup.settings
        self.first_step = setup.restored[0].step if setup.restored else 0
        self.tally = Tally(setup.clock)
        self._spikes = Spikes(setup.settings.spike)
        self.train_steps: int | None = None  # known with the first worker, who knows the data
        self.stopping = ""  # why the run ends, once it does
        self.complete = True  # whether it ended by itself, so that it is worth an evaluation
        self.failed = False  # whether it ends because a worker failed
        self._samples, self._batch = 0, ""
        self._training = False  # whether a worker has begun a step
        self._last_move = self._last_report = setup.clock()
        self._stop_time = 0.0

    def begin(self, samples: int, batch: str = "") -> bool:
        """A worker tells how much data there is: the first one decides the run's length. True for that one.

        Raises:
            ModelMismatch: another worker has another amount of data.
        """
        self.check(samples, batch)
        if self.train_steps is not None:
            return False
        self._samples, self._batch = samples, batch
        self.train_steps = self.settings.steps(samples)
        self._last_move = self.setup.clock()
        return True

    def gave_lease(self) -> None:
        """A worker begins a step. The first one starts the clock of all rates."""
        self._last_move = self.setup.clock()
        if not self._training:
            self._training = True
            self.tally.begin()

    @property
    def samples(self) -> int:
        """Of the training data; known with the first worker."""
        return self._samples

    def check(self, samples: int, batch: str = "") -> str:
        """Whether a worker has the data of the run; a sentence if its first samples are others and may be.

        Raises:
            ModelMismatch: it has another amount of data, or other first samples that nobody has allowed.
        """
        if self.train_steps is None:
            return ""
        if samples != self._samples:
            raise errors.ModelMismatch(
                f"this worker has {samples} training samples, the run has {self._samples}.",
                why="leases name samples by number, so every worker must have the same data.",
            )
        if batch == self._batch:
            return ""
        theirs, ours = batch or "not known", self._batch or "not known"
        what = f"the first samples of this worker are {theirs}, those of the run {ours}."
        if self.settings.allow_difference:
            return what
        raise errors.ModelMismatch(
            what,
            why="a lease must be the same samples, prepared in the same way, on every worker.",
            fix="give all workers the same data and code, and let what is random follow from the global generators of "
            "random, numpy and torch, which are seeded for each batch; or say --allow-difference.",
        )

    def over(self, step: int) -> bool:
        """Is this the last global step, or beyond it?"""
        return self.train_steps is not None and step >= self.train_steps

    def applied(self, push: Push, staleness: int) -> None:
        """A gradient went into an update."""
        self.tally.applied(push.loss, push.examples, staleness)
        if (times := self._spikes.see(push.loss)) is not None:
            worker = f"worker:{push.identity.worker}"
            self.setup.report(Line(worker, (
                f"warning: the loss {push.loss:.6g} of lease {push.lease} ({self.samples_of(push.lease)}) "
                f"is {times:.3g} times the running mean"
            )))  # fmt: skip

    def samples_of(self, lease: int) -> str:
        """Which samples a lease is, for people."""
        size = self.settings.batch_size
        return Order(self._samples, self.settings.seed).named(lease * size, (lease + 1) * size)

    def moved(self) -> None:
        """An update was applied."""
        self.tally.updated()
        self._last_move = self.setup.clock()

    def still(self) -> bool:
        """Whether nothing has moved for so long that somebody may ask why."""
        return self.setup.clock() - self._last_move > 1.0

    def stop(self, reason: str, *, complete: bool, failed: bool) -> None:
        self.stopping, self.complete, self.failed = reason, complete, failed
        self._stop_time = self.setup.clock()

    def wait_anew(self) -> None:
        """Somebody else has to do what the run's end waits for: its time limit counts from now."""
        self._stop_time = self.setup.clock()

    def late(self, *, evaluating: bool = False) -> bool:
        """Whether the run ended so long ago that nobody is waited for any more; an evaluation may take its time."""
        return self.setup.clock() - self._stop_time > (self.settings.stall_timeout if evaluating else GRACE)

    def watch(self, step: int, waiting_for: Callable[[], str]) -> None:
        """Report five times a second; raise Stalled when nothing has moved for too long."""
        now = self.setup.clock()
        if not self.stopping and now - self._last_move > self.settings.stall_timeout:
            raise errors.Stalled(
                f"no update for {self.settings.stall_timeout:g} s at step {step}: waiting for {waiting_for()}.",
                fix="look at the tasks named here, or raise --stall-timeout.",
            )
        if now - self._last_report >= 0.2:
            self.report(step, waiting_for())

    def report(self, step: int, waiting_for: str) -> None:
        self._last_report = self.setup.clock()
        tally = self.tally
        self.setup.report(
            Progress(step, self.train_steps or 0, tally.examples_window.rate(), tally.steps_window.rate(), tally.loss,
                     tally.dropped, waiting_for, tally.updates)
        )  # fmt: skip

    def finish(self, step: int) -> None:
        """Report the figures of the whole run."""
        tally = self.tally
        self.setup.report(
            Finished(step, self.first_step, tally.examples, tally.seconds, tally.loss, tally.dropped,
                     tally.mean_staleness, tally.max_staleness, self.setup.saver.newest, self.stopping)
        )  # fmt: skip
