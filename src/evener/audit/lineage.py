"""What the parameters contain: which leases, and which push of each worker came last. Complaints come back as words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evener.audit.ranges import NumberSet, Range, of, size, span, without, words
from evener.ledger.lines import Cut, Dropped, Entry, Lease

Life = tuple[int, int]  # epoch, seq of a worker's push; without ps tasks: step, tower


@dataclass(frozen=True, slots=True)
class SavedBook:
    """What a checkpoint's manifest says of batches. `seqs`: worker -> its last push taken up, perhaps not applied."""

    step: int
    next_lease: int
    unapplied: Sequence[Lease]
    seqs: Mapping[int, Life]


class Lineage:
    """The updates that no roll-back undid, one after the other."""

    def __init__(self) -> None:
        self.noun = "lease"  # what is counted: or "sample"
        self.applied = NumberSet()  # leases
        self.skipped = NumberSet()  # leases that were given up
        self.blind = True  # lines are missing: the next book is believed instead of checked
        self._last: dict[int, Life] = {}  # worker -> its newest push
        self._due: set[int] = set()  # workers that a manifest must know

    def one_process(self) -> None:
        """A run without ps tasks goes on from here; its manifests know no workers."""
        self._due.clear()

    def counted_in(self, noun: str, before: int, now: int) -> bool:
        """What was counted in batches of so many samples is counted in others now; False where that cannot be."""
        stretches = [[(a * before, b * before) for a, b in ranges] for ranges in (self.applied, self.skipped)]
        self.noun = noun
        if any(bound % now for ranges in stretches for stretch in ranges for bound in stretch):
            return False
        self.applied, self.skipped = (NumberSet((a // now, b // now) for a, b in ranges) for ranges in stretches)
        return True

    def update(self, entries: Sequence[Entry], *, script: bool = False, several: bool = False) -> Iterator[str]:
        """Each lease once, and each push of a worker's life once.

        Args:
            script: there may be entries without a lease.
            several: a push may be of several leases.
        """
        for lease, *_ in entries:
            start, stop = span(lease)
            if start < 0 and script:  # a batch without a number, or of which another gradient was, too
                continue
            if start < 0 or stop <= start:
                yield f"{self._named(lease)} was applied, which cannot be"
            elif not self.applied.add(start, stop):
                yield f"{self._named(lease)} was applied before"
        # Within one update the order is that of the leases, so a worker's pushes are put in theirs.
        pushes = [entry[1:] for entry in entries]
        for worker, epoch, seq in sorted(set(pushes) if several else pushes) if len(entries) > 1 else pushes:
            # One process and towers push in epoch 0, and their seq is the step.
            key, life = (worker, (epoch, seq)) if epoch else (-1, (seq, worker))
            if life <= self._last.get(key, (0, 0)):
                yield f"{_push(key, life)} was applied before, or comes after a later one"
            else:
                self._last[key] = life
            if epoch:
                self._due.add(worker)

    def drop(self, drop: Dropped) -> Iterator[str]:
        """A gradient that was dropped was not applied, nor was its lease if it went back to the pool."""
        life = (drop.epoch, drop.seq)
        if life <= self._last.get(drop.worker, (0, 0)):
            yield f"{_push(drop.worker, life)} was dropped, after it or a later one was applied"
        if drop.back and drop.lease != -1:
            yield from self.back([drop.lease])

    def back(self, leases: Sequence[Lease]) -> Iterator[str]:
        """These leases went back to the pool."""
        for lease in leases:
            if self.applied.meets(*span(lease)):
                yield f"{self._named(lease)} went back to the pool, but was applied"

    def skip(self, lease: Lease) -> Iterator[str]:
        """This lease was given up."""
        if self.applied.meets(*span(lease)):
            yield f"{self._named(lease)} was given up, but was applied"
        self.skipped.add(*span(lease))

    def missing(self, next_lease: int) -> list[Range]:
        """Leases below this one that are neither applied nor given up."""
        return without(self.applied.holes(next_lease), list(self.skipped))

    def book(self, next_lease: int, unapplied: Sequence[Lease]) -> Iterator[str]:
        """All leases below `next_lease` are applied or given up, but for those listed; none beyond is."""
        listed, stop = of(unapplied), self.applied.stop
        # What was given up after the checkpoint that a run goes on from is to be given out again.
        self.skipped = NumberSet(without(without(list(self.skipped), listed), [(next_lease, self.skipped.stop)]))
        missing = self.missing(next_lease)
        faults = []
        if lacking := without(missing, listed):
            faults.append(f"{words(self.noun, lacking)}: neither applied nor listed as unapplied")
        if others := without(listed, missing):
            faults.append(f"{words(self.noun, others)}: listed as unapplied, but applied or never given out")
        if size(listed) < sum(stop - start for start, stop in map(span, unapplied)):
            faults.append(f"a {self.noun} is listed as unapplied twice")
        if stop > next_lease:
            faults.append(f"{self.noun} {stop - 1} was applied, though the next to be given out is {next_lease}")
        if faults:  # go on from what the book says: one fault, one complaint
            self.applied = NumberSet(without([(0, next_lease)], listed))
        if not self.blind:
            yield from faults
        self.blind = False

    def manifest(self, saved: SavedBook, cut: Cut) -> Iterator[str]:
        """The checkpoint of this step says the same."""
        if (saved.next_lease, sorted(map(span, saved.unapplied))) != (cut.next_lease, sorted(map(span, cut.unapplied))):
            yield (
                f"the manifest of step {cut.step} has other leases: next {saved.next_lease}, "
                f"unapplied {list(saved.unapplied)[:8]}"
            )
        for worker in sorted(self._due):
            if saved.seqs.get(worker, (0, 0)) < self._last[worker]:
                yield f"the manifest of step {cut.step} lacks {_push(worker, self._last[worker])}"

    def _named(self, lease: Lease) -> str:
        return f"lease {lease}" if isinstance(lease, int) else words("sample", [lease])


def _push(worker: int, life: Life) -> str:
    return f"push {life[1]} of worker {worker}, epoch {life[0]}," if worker >= 0 else f"the update of step {life[0]}"
