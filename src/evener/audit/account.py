"""What an audit found: figures, what is wrong, and the words for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evener.audit.ranges import Range, size, words


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be, and the line of the ledger where it was seen; 0: nowhere in it."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}" if self.line else self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The whole story of one logdir's training. `str()` of it is for people.

    All figures but `lost` are of what the parameters contain: updates that a roll-back undid do not count.
    """

    step: int  # of the newest update
    updates: int
    gradients: int
    generations: int  # beginnings: the first run, restarts, resumed runs
    lost: int  # updates undone by roll-backs
    rollbacks: tuple[Range, ...]  # the steps that each one undid: first, last + 1
    dropped: Mapping[str, int]  # reason, with numbers as "N" -> gradients
    returned: int  # leases that went back to the pool because a worker left
    checkpoints: int  # cut since the first line
    compared: int  # manifests in the logdir that agree with the ledger
    examples: int  # samples whose gradients were applied
    samples: int  # of one epoch; 0: it changed, or is not known
    epochs: int  # that were given out whole, up to the newest lease
    broken: tuple[Range, ...]  # those of them that lack a sample
    unapplied: tuple[Range, ...]  # leases given out but not applied, in the end
    skipped: tuple[Range, ...]  # leases that were given up, since what they gave was not finite
    batch_size: int
    ended: str  # why the last run ended; empty: it was killed, failed, or still trains
    gaps: tuple[Violation, ...]  # where lines are missing, so that nobody can tell
    violations: tuple[Violation, ...]  # the first hundred
    wrong: int  # all violations
    remarks: tuple[Violation, ...]
    #: Samples are the batches of a loader, one a lease: of a script with a loop of its own, or of a recipe.
    script: bool = False
    #: Batches are stretches of samples, which are counted one by one.
    by_samples: bool = False

    @property
    def clean(self) -> bool:
        """Every sample was applied exactly once, or is named as not applied, and every line was there to show it."""
        return not self.violations and not self.gaps

    def as_dict(self) -> dict[str, Any]:
        said = {"clean": self.clean, **asdict(self)}
        for name in ("script", "by_samples"):
            if not said[name]:
                del said[name]
        return said

    def __str__(self) -> str:
        return "\n".join([*self._story(), *self._verdict()])

    def _story(self) -> list[str]:
        lines = [f"{many(self.updates, 'update')} of {many(self.generations, 'run')}, up to step {self.step:,}"]
        if self.rollbacks:
            steps = ", ".join(f"{first}..{stop - 1}" for first, stop in self.rollbacks[:8])
            more = f", {len(self.rollbacks) - 8} more" if len(self.rollbacks) > 8 else ""
            lines.append(
                f"{many(self.lost, 'update')} lost in {many(len(self.rollbacks), 'roll-back')} (steps {steps}{more})"
            )
        if self.dropped:
            reasons = ", ".join(f"{count:,} x {reason}" for reason, count in sorted(self.dropped.items()))
            lines.append(f"{many(sum(self.dropped.values()), 'gradient')} dropped ({reasons})")
        if self.returned:
            lines.append(f"{many(self.returned, 'lease')} went back to the pool when a worker left")
        lines.append(self._samples())
        noun = "sample" if self.by_samples else "lease"
        if self.unapplied:
            when = "when the run ended" if self.ended else "when the last line was written"
            lines.append(f"{self._leases(self.unapplied)} not applied {when}: {words(noun, self.unapplied)}")
        if self.skipped:
            lines.append(f"{self._leases(self.skipped)} given up, with no update: {words(noun, self.skipped)}")
        lines.append(f"the last run ended: {self.ended}" if self.ended else "the last run has no end: it still trains, "
                     "was killed, or failed")  # fmt: skip
        lines.append(f"{many(self.compared, 'checkpoint')} in the logdir agree with the ledger"
                     if self.compared != 1 else "1 checkpoint in the logdir agrees with the ledger")  # fmt: skip
        return lines + [f"note: {remark}" for remark in self.remarks]

    def _leases(self, ranges: Sequence[Range]) -> str:
        if self.script:
            return many(size(ranges), "batch", "batches")
        if self.by_samples:
            return many(size(ranges), "sample")
        return f"{many(size(ranges), 'lease')} of {many(self.batch_size, 'sample')} each"

    def _samples(self) -> str:
        if self.script and not self.samples and not self.examples:
            return f"{many(self.updates, 'update')}, batches without numbers"
        text = f"{many(self.examples, 'sample')} applied"
        if self.script:
            text = f"{many(self.examples, 'batch', 'batches')} applied"
        if not self.samples:
            return text
        if not self.epochs:
            return f"{text}; the first epoch of {self.samples:,} is not over"
        whole = self.epochs - size(self.broken)
        each = "batch" if self.script else "sample"
        epochs = f"{many(self.epochs, 'whole epoch')} of {self.samples:,}"
        if self.gaps:  # what the missing lines would show nobody can tell
            return f"{text}, of {epochs}, as far as there are lines"
        text += f"; {epochs}: each {each} exactly once"
        if self.broken:
            text += f" in {whole:,}; {words('epoch', self.broken)} {'lacks' if size(self.broken) == 1 else 'lack'} some"
        return text

    def _verdict(self) -> list[str]:
        if self.clean:
            return ["ledger clean"]
        lines = [f"the ledger has a gap: {gap}" for gap in self.gaps]
        lines += [str(violation) for violation in self.violations]
        if self.wrong > len(self.violations):
            lines.append(f"... and {self.wrong - len(self.violations):,} more")
        wrong = many(self.wrong, "violation")
        return [
            *lines,
            f"ledger NOT clean: {wrong}" if self.wrong else "ledger not complete: no violation in what is there",
        ]


def many(count: int, noun: str, nouns: str = "") -> str:
    """
    >>> many(1, "update"), many(20000, "update")
    ('1 update', '20,000 updates')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
