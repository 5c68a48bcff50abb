"""Judge a ledger: was every sample of every epoch applied exactly once, or named as not applied?

Pure: lines in, an `Account` out. Memory follows from the number of workers and of gaps between applied leases.

A ledger is a tree written down in order: a beginning at step s goes on from a checkpoint of s, so that what stands
above it beyond s was undone. What is left is the *lineage*, the updates that the parameters contain. An update of a run
is in it if no later beginning goes on from a lower step; so the beginnings are read before all else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from evener.audit.account import Account, Violation
from evener.audit.lineage import Lineage, SavedBook
from evener.audit.ranges import Range, size, span
from evener.ledger.lines import (
    LOADER,
    SAMPLES,
    SCRIPT,
    Begin,
    Complete,
    Cut,
    Damaged,
    Dropped,
    End,
    Gap,
    Line,
    Returned,
    Skipped,
    Update,
)

#: Violations that are kept word for word.
MOST = 100


def audit(
    beginnings: Iterable[Begin], lines: Iterable[tuple[int, Line | Damaged]], saved: Iterable[SavedBook]
) -> Account:
    """Judge one logdir.

    Args:
        beginnings: those of the ledger, in order.
        lines: all of the ledger, with their numbers.
        saved: the manifests that lie in the logdir.
    """
    judge = _Judge([begin.step for begin in beginnings], {manifest.step: manifest for manifest in saved})
    for number, line in lines:
        judge.line(number, line)
    return judge.account()


@dataclass(slots=True)
class _Figures:
    updates: int = 0
    gradients: int = 0
    generations: int = 0
    lost: int = 0
    returned: int = 0
    checkpoints: int = 0
    examples: int = 0
    rollbacks: list[Range] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


class _Judge:
    def __init__(self, starts: Sequence[int], saved: Mapping[int, SavedBook]) -> None:
        self._keeps = _kept_up_to(starts)  # per run: the last step of it that no later run undid
        self._keep = min(starts, default=float("inf"))
        self._saved = saved
        self._agrees: set[int] = set()  # steps of manifests that were compared
        self._undone: set[int] = set()  # steps of cuts that were rolled back, of those that have a manifest
        self._figures = _Figures()
        self._violations: list[Violation] = []
        self._gaps: list[Violation] = []
        self._remarks: list[Violation] = []
        self._wrong = 0
        self._number = 0
        self._known = 0  # the step before the first update that the ledger knows
        self._tip = 0  # step of the last update read, be it undone later or not
        self._damaged = 0  # number of a damaged line that the next line may explain
        self._run: Begin | None = None
        self._constant = True  # leases mean the same samples in all runs
        self._end: End | None = None
        self._generation = 0
        self._epochs: dict[int, int] = {}  # worker -> its newest epoch, in the order of the file
        self._lineage = Lineage()
        self._dropped = (-1, 0, 0)  # the push of the last drop

    @property
    def _script(self) -> bool:
        """Whether batches are those of a script."""
        return self._run is not None and self._run.mode.endswith(SCRIPT)

    @property
    def _several(self) -> bool:
        """Whether a gradient may be of several batches."""
        return self._run is not None and "/" in self._run.mode and not self._run.mode.endswith(SAMPLES)

    def line(self, number: int, line: Line | Damaged) -> None:
        self._number = number
        self._check_place(line)
        match line:
            case Update():
                self._update(line)
            case Begin():
                self._begin(line)
            case Cut():
                self._cut(line)
            case End():
                self._at(line.step)
                self._end = line
                if line.step <= self._keep:
                    self._violate(*self._lineage.book(line.next_lease, line.unapplied))
            case Gap(lines):
                self._gaps.append(Violation(number, f"{lines} lines could not be written"))
                self._lineage.blind = True
            case Skipped(lease, step) if step <= self._keep:
                self._violate(*self._lineage.skip(lease))
            case Dropped() | Returned() if self._tip <= self._keep:
                self._back(line)
            case Damaged(torn=True):
                self._remarks.append(Violation(number, "it is torn: whoever wrote it was killed, or still writes"))
            case Damaged():
                self._damaged = number

    def _check_place(self, line: Line | Damaged) -> None:
        """A killed writer may leave half a line above the next beginning, and nothing follows an end."""
        if self._damaged and not isinstance(line, Begin | Gap):
            self._violate("it is damaged", line=self._damaged)
        elif self._damaged:
            self._remarks.append(Violation(self._damaged, "it is torn: whoever wrote it was killed"))
        self._damaged = 0
        if isinstance(line, Begin | Damaged):
            return
        if self._end is not None and not isinstance(line, Complete):
            self._violate("the run had ended before")
            self._end = None
        if self._run is None and isinstance(line, End) and not line.step and not line.next_lease:
            return  # evener 0.1 wrote it where the tasks could not begin
        if self._run is None:
            self._violate("the ledger does not begin with a beginning")
            self._run, self._lineage.blind = Begin(), False

    # --- lines

    def _begin(self, begin: Begin) -> None:
        self._keep = self._keeps[min(self._figures.generations, len(self._keeps) - 1)]
        self._figures.generations += 1
        if begin.generation == 0:
            self._lineage.one_process()
        elif begin.generation <= self._generation:
            self._violate(f"generation {begin.generation} comes after {self._generation}")
        self._generation = max(self._generation, begin.generation)
        first, self._end = self._run is None, None
        if first and begin.mode.endswith(SAMPLES):
            self._lineage.noun = "sample"
        if self._run is not None and begin.step:
            self._compare(self._run, begin)
        self._run = begin
        if first:
            if begin.step:
                self._gaps.append(Violation(self._number, f"the ledger begins at step {begin.step}"))
            self._known, self._lineage.blind = begin.step, begin.step > 0
        elif begin.step > self._tip and not self._lineage.blind:
            self._violate(f"the run goes on from step {begin.step}, the last update is of step {self._tip}")
            self._lineage.blind = True
        elif begin.step < self._tip:
            self._figures.rollbacks.append((begin.step + 1, self._tip + 1))
        self._tip = begin.step
        if begin.step <= self._keep:
            self._violate(*self._lineage.book(begin.next_lease, begin.unapplied))

    def _compare(self, old: Begin, new: Begin) -> None:
        """A lease is a stretch of a shuffled stream: of another length or stream it means other samples."""
        samples = new.mode.endswith(SAMPLES)
        if samples or old.mode.endswith(SAMPLES):  # a batch is a stretch of samples: one can be counted in the other
            exact = self._lineage.counted_in("sample" if samples else "lease", old.batch_size, new.batch_size)
        else:
            exact = old.batch_size == new.batch_size
        for name, same in (("batch_size", exact), ("samples", None), ("seed", None)):
            before, now = getattr(old, name), getattr(new, name)
            if not (before == now if same is None else same):
                self._constant = False
                self._violate(f"{name} was {before} and is {now}: leases mean other samples from here on")

    def _update(self, update: Update) -> None:
        if update.step != self._tip + 1 and not (self._lineage.blind and update.step > self._tip):
            self._violate(f"step {update.step} comes after step {self._tip}")
        self._tip = update.step
        for _, worker, epoch, _ in update.entries:
            if epoch and epoch < (newest := self._epochs.get(worker, 0)):
                self._violate(f"worker {worker} pushed in epoch {epoch}, its epoch {newest} had begun")
            elif epoch:
                self._epochs[worker] = epoch
        if not update.entries:
            self._violate(f"the update to step {update.step} has no gradient")
        elif update.step > self._keep:
            self._figures.lost += 1
        else:
            self._figures.updates += 1
            script, several = self._script, self._several
            counted = [entry for entry in update.entries if entry[0] != -1 or not script]
            self._figures.gradients += len({entry[1:] for entry in update.entries}) if several else len(counted)
            self._figures.examples += size(span(entry[0]) for entry in counted) * (
                self._run.batch_size if self._run else 0
            )
            self._violate(*self._lineage.update(update.entries, script=script, several=several))

    def _back(self, line: Dropped | Returned) -> None:
        if isinstance(line, Dropped):
            push = (line.worker, line.epoch, line.seq)
            if push != self._dropped or not self._several:  # else another batch of the same gradient
                self._figures.dropped[re.sub(r"\d+", "N", line.reason)] += 1
            self._dropped = push
            self._violate(*self._lineage.drop(line))
        else:
            self._figures.returned += len(line.leases)
            self._violate(*self._lineage.back(line.leases))

    def _cut(self, cut: Cut) -> None:
        self._at(cut.step)
        if cut.step > self._keep:
            self._undone.add(cut.step)
            return
        self._figures.checkpoints += 1
        self._violate(*self._lineage.book(cut.next_lease, cut.unapplied))
        if saved := self._saved.get(cut.step):
            self._agrees.add(cut.step)
            self._violate(*self._lineage.manifest(saved, cut))

    def _at(self, step: int) -> None:
        if step != self._tip and not self._lineage.blind:
            self._violate(f"it is of step {step}, the last update is of step {self._tip}")
        self._tip = step

    def _violate(self, *complaints: str, line: int | None = None) -> None:
        for what in complaints:
            self._wrong += 1
            if len(self._violations) < MOST:
                self._violations.append(Violation(self._number if line is None else line, what))

    # --- the result

    def account(self) -> Account:
        if self._damaged:
            self._violate("it is damaged", line=self._damaged)
        if self._run is None:
            self._gaps.append(Violation(0, "the ledger is empty"))
        for step in sorted(self._saved.keys() - self._agrees - self._undone):
            if step > self._known:
                self._violate(f"the logdir has a checkpoint of step {step} that the ledger knows nothing of", line=0)
        run, figures = self._run or Begin(), self._figures
        next_lease = self._end.next_lease if self._end else self._lineage.applied.stop
        unapplied = self._lineage.missing(next_lease)
        lacking = self._lineage.applied.holes(next_lease)
        samples = run.samples if self._constant else 0
        epochs = next_lease * run.batch_size // samples if samples else 0
        return Account(
            step=self._tip, updates=figures.updates, gradients=figures.gradients, generations=figures.generations,
            lost=figures.lost, rollbacks=tuple(figures.rollbacks), dropped=dict(figures.dropped),
            returned=figures.returned, checkpoints=figures.checkpoints, compared=len(self._agrees),
            examples=figures.examples, samples=samples, epochs=epochs,
            broken=tuple(_broken(lacking, run.batch_size, samples, epochs)), unapplied=tuple(unapplied),
            skipped=tuple(self._lineage.skipped),
            batch_size=run.batch_size, script=run.mode.endswith((SCRIPT, LOADER)),
            by_samples=run.mode.endswith(SAMPLES),
            ended=self._end.reason if self._end else "",
            gaps=tuple(self._gaps), violations=tuple(self._violations), wrong=self._wrong, remarks=tuple(self._remarks),
        )  # fmt: skip


def _kept_up_to(starts: Sequence[int]) -> list[float]:
    kept: list[float] = []
    lowest = float("inf")
    for start in reversed(starts):
        kept.append(lowest)
        lowest = min(lowest, start)
    return kept[::-1] or [lowest]


def _broken(unapplied: Iterable[Range], batch_size: int, samples: int, epochs: int) -> list[Range]:
    """The epochs that lack a sample: lease k is the positions kB to (k+1)B - 1 of the stream (`data/order.py`)."""
    broken: list[Range] = []
    for start, stop in unapplied if samples else ():
        first, end = start * batch_size // samples, min((stop * batch_size - 1) // samples + 1, epochs)
        if broken and first <= broken[-1][1]:
            broken[-1] = (broken[-1][0], max(broken[-1][1], end))
        elif first < end:
            broken.append((first, end))
    return broken
