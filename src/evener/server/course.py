"""How far a run is, when it ends, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from evener import errors
from evener.data.numbered import of_epoch
from evener.data.order import Order
from evener.ledger import Ledger
from evener.report import Finished, Line, Progress, Reporter
from evener.server.batches import named
from evener.settings import ENDLESS, Settings
from evener.state.checkpoint import Manifest
from evener.state.saver import Saver
from evener.tally import Spikes, Tally
from evener.wire.messages import Hello, Push

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
    restored: Manifest | None  # what it says, without its tensors: `Leader` takes these over
    generation: int
    epochs: dict[int, int]
    holders: dict[int, str]
    keep_grants: Callable[[dict[int, int], dict[int, str]], None]  # epochs and holders: durable before it returns
    evener: str
    without: tuple[int, ...] = ()  # leases that a roll-back left out
    latecomers: float = 0.0  # seconds from the first worker on in which others may still come, though the run is over


class Course:
    """The run as the owner of the global step sees it: its length, its counts, its end."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.settings = setup, setup.settings
        self.first_step = setup.restored.step if setup.restored else 0
        #: Updates that count for the length of the run: of a script those of its first optimizer.
        self.counted = self.first_step
        if setup.restored and setup.settings.script:
            self.counted = setup.restored.counted
        #: Workers that have come, and those of them whose loops have ended.
        self.came: set[int] = set()
        self.left: set[int] = set()
        self.tally = Tally(setup.clock)
        self._spikes = Spikes(setup.settings.spike)
        self.train_steps: int | None = None  # known with the first worker, who knows the data
        self.stopping = ""  # why the run ends, once it does
        self.complete = True  # whether it ended by itself, so that it is worth an evaluation
        self.failed = False  # whether it ends because a worker failed
        self._samples, self._batch, self._batches = 0, "", False
        self._training = False  # whether a worker has begun a step
        self._last_move = self._last_report = setup.clock()
        self._stop_time = self._begin_time = 0.0
        self._hurried = False  # whether those who have not come are no longer expected

    def begin(self, hello: Hello) -> bool:
        """A worker tells how much data there is: the first one decides the run's length. True for that one.

        Raises:
            ModelMismatch: another worker has another amount of data.
        """
        self.check(hello)
        if self.train_steps is not None:
            return False
        self._samples, self._batch, self._batches = hello.samples, hello.batch, hello.batches
        if hello.batches:
            self.settings = replace(self.settings, batch_size=1)
        self.train_steps = self.settings.steps(hello.samples)
        self._last_move = self._begin_time = self.setup.clock()
        return True

    def loops_over(self, *, just_now: bool) -> bool:
        """Where nobody is here: whether all loops have ended, or in an elastic run enough of them.

        Args:
            just_now: the last one to leave did so since its loop has ended. If it was lost it may come back.
        """
        if 0 < self.settings.min_workers <= len(self.left):
            return just_now
        return bool(self.left) and self.came <= self.left

    def succeeds(self, worker: int) -> bool:
        """Whether one before it was chief to the end of its loop: it has done at the end of its last pass what a chief
        does, and the next one need not do it again. It does if it trains on."""
        return min(self.left, default=worker) < worker

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

    @property
    def unit(self) -> str:
        """What `samples` counts."""
        return "batches" if self.settings.script or self._batches else "training samples"

    def check(self, hello: Hello) -> str:
        """Whether a worker has the data of the run; a sentence if its first samples are others and may be.

        Raises:
            ModelMismatch: it has another amount of data, or other first samples that nobody has allowed.
        """
        samples, batch = hello.samples, hello.batch
        if samples < 1 and not self.settings.script:
            raise errors.ModelMismatch("this worker has no training samples.", why="every batch needs samples.")
        if hello.batches and self.settings.by_samples:
            raise errors.ModelMismatch(
                "this worker's data are a DataLoader.", why="a batch size per worker shares out single samples."
            )
        if self.train_steps is None:
            return ""
        if samples != self._samples or hello.batches != self._batches:
            raise errors.ModelMismatch(
                f"this worker has {samples} {'batches' if hello.batches else self.unit}, the run has {self._samples}.",
                why=f"leases name {self.unit.split()[-1]} by number, so every worker must have the same data.",
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
        return self.train_steps is not None and (self.counted if self.settings.script else step) >= self.train_steps

    @property
    def length(self) -> int:
        """Global steps of the run as far as that is known; else 0."""
        unknown = self.train_steps in (None, ENDLESS) or self.settings.ends_by_samples
        return 0 if unknown else self.train_steps or 0

    def applied(self, push: Push, staleness: int) -> None:
        """A gradient went into an update."""
        self.tally.applied(push.loss, push.examples, staleness)
        if push.loss is not None and (times := self._spikes.see(push.loss)) is not None:
            worker = f"worker:{push.identity.worker}"
            self.setup.report(Line(worker, (
                f"warning: the loss {push.loss:.6g} of {self.batches_of(push)} "
                f"is {times:.3g} times the running mean"
            )))  # fmt: skip

    def batches_of(self, push: Push, more: str = "") -> str:
        """What a gradient is of, for people: which samples, or which batch of a script's loader; and more of it."""
        leases = named(push)
        if push.count:
            stop = push.lease + push.count
            which = Order(self._samples, self.settings.seed).named(push.lease, stop)
            return f"{push.count} samples from {push.lease} on ({'; '.join(filter(None, (which, more)))})"
        if not leases:
            return "a batch without a number" + (f" ({more})" if more else "")
        if self.settings.script or self._batches:
            which = of_epoch(leases[0], self._samples)
        else:
            size = self.settings.batch_size
            which = Order(self._samples, self.settings.seed).named(leases[0] * size, (leases[0] + 1) * size)
        others = f" and {len(leases) - 1} more" if len(leases) > 1 else ""
        return f"lease {leases[0]}{others} ({'; '.join(filter(None, (which, more)))})"

    def moved(self, group: int) -> None:
        """An update was applied."""
        self.counted += group == 0
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

    def hurry(self) -> None:
        """Nobody else is expected any more."""
        self._hurried = True

    def expected(self) -> list[str]:
        """Workers that are started by hand and may still be on their way to a run that is over: who came when this
        task has ended would wait for it in vain, and a short run is over while a person types the next command."""
        if self._hurried or not self.complete or self.setup.clock() - self._begin_time >= self.setup.latecomers:
            return []
        return [f"worker:{worker}" for worker in range(self.settings.workers) if worker not in self.came]

    def late(self, *, evaluating: bool = False) -> bool:
        """Whether the run ended so long ago that nobody is waited for any more; an evaluation may take its time."""
        return self.setup.clock() - self._stop_time > (self.settings.stall_timeout if evaluating else GRACE)

    def watch(self, step: int, waiting_for: Callable[[], str], *, patient: bool = False) -> None:
        """Report five times a second; raise Stalled when nothing has moved for too long, unless that may be."""
        now = self.setup.clock()
        if not self.stopping and not patient and now - self._last_move > self.settings.stall_timeout:
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
            Progress(step, self.length, tally.examples_window.rate(), tally.steps_window.rate(), tally.loss,
                     tally.dropped, waiting_for, tally.updates)
        )  # fmt: skip

    def finish(self, step: int) -> None:
        """Report the figures of the whole run."""
        tally = self.tally
        self.setup.report(
            Finished(step, self.first_step, tally.examples, tally.seconds, tally.loss, tally.dropped,
                     tally.mean_staleness, tally.max_staleness, self.setup.saver.newest, self.stopping)
        )  # fmt: skip
