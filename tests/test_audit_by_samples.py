"""The judge, where batches are stretches of samples: the same promises, counted one by one."""

from __future__ import annotations

from random import Random

import pytest

from evener.audit import SavedBook, audit
from evener.ledger.lines import Begin, Cut, Dropped, End, Returned, Skipped, Update
from evener.policy.stretches import Stretches

FIRST = Begin(format=2, generation=1, mode="sync/samples", batch_size=1, samples=30)


def judged(*lines, saved=()):
    starts = [line for line in lines if isinstance(line, Begin)]
    return audit(starts, list(enumerate(lines, 1)), saved)


def entry(start, stop, worker=0, seq=1):
    return ((start, stop), worker, 1, seq)


CLEAN = (
    FIRST,
    Update(1, [entry(0, 12), entry(12, 18, 1), entry(18, 21, 2)]),
    Returned(1, 1, [(33, 39)]),
    Update(2, [entry(21, 33, 0, 2), entry(33, 36, 2, 2), entry(36, 42, 0, 3)]),
    Cut(2, 42, []),
    End(2, "reached step 2", 42, []),
)


def test_a_clean_story_is_found_clean_and_counted_in_samples():
    account = judged(*CLEAN, saved=[SavedBook(2, 42, [], {0: (1, 3), 1: (1, 1), 2: (1, 2)})])
    assert account.clean, str(account)
    assert (account.examples, account.gradients, account.epochs, account.updates) == (42, 6, 1, 2)
    assert account.compared == 1 and account.as_dict()["by_samples"] is True


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([FIRST, Update(1, [entry(0, 12), entry(11, 18, 1)])], "samples 11..17 was applied before"),
        ([FIRST, Update(1, [entry(0, 12)]), Update(2, [entry(3, 4, 1)])], "sample 3 was applied before"),
        ([FIRST, Update(1, [entry(5, 5)])], "was applied, which cannot be"),
        ([FIRST, Update(1, [entry(0, 12)]), Returned(0, 1, [(6, 20)])], "went back to the pool, but was applied"),
        ([FIRST, Update(1, [entry(0, 12)]), Skipped((11, 14), 1, "x")], "was given up, but was applied"),
        ([FIRST, Update(1, [entry(0, 12)]), Dropped((0, 12), 0, 1, 2, "x", True)], "went back to the pool"),
        ([FIRST, Update(1, [entry(0, 12)]), End(1, "x", 20, [(12, 19)])], "sample 19: neither applied nor listed"),
        ([FIRST, Update(1, [entry(0, 12)]), End(1, "x", 20, [(11, 20)])], "sample 11: listed as unapplied, but"),
        ([FIRST, Update(1, [entry(0, 12)]), End(1, "x", 20, [(12, 20), (15, 16)])], "a sample is listed as unapplied "),
        ([FIRST, Update(1, [entry(0, 12)]), End(1, "x", 9, [])], "sample 11 was applied, though the next"),
    ],
)
def test_a_planted_fault_is_found(lines, what):
    account = judged(*lines)
    assert any(what in violation.what for violation in account.violations), str(account)


def test_a_manifest_that_says_otherwise_is_found():
    account = judged(*CLEAN, saved=[SavedBook(2, 42, [(41, 42)], {0: (1, 3), 1: (1, 1), 2: (1, 2)})])
    assert "has other leases" in account.violations[0].what


def uniform(generation, step, following, unapplied=()):
    return Begin(generation=generation, mode="sync", batch_size=7, samples=30, step=step, next_lease=following,
                 unapplied=unapplied)  # fmt: skip


def test_a_run_may_change_between_batches_of_one_size_and_of_many():
    account = judged(
        uniform(1, 0, 0), Update(1, [(0, 0, 1, 1), (2, 1, 1, 1)]), Cut(1, 3, [1]),
        Begin(format=2, generation=2, mode="sync/samples", batch_size=1, samples=30, step=1, next_lease=21,
              unapplied=((7, 14),)),
        Update(2, [((7, 9), 0, 2, 1), ((9, 14), 1, 2, 1)]), Cut(2, 21, []),
        uniform(3, 2, 3), Update(3, [(3, 0, 3, 1)]), End(3, "x", 4, []),
    )  # fmt: skip
    assert account.clean, str(account)
    assert account.examples == 28


def test_batches_of_one_size_cannot_begin_in_the_middle_of_one():
    account = judged(
        FIRST, Update(1, [entry(0, 12)]), Cut(1, 12, []),
        Begin(generation=2, mode="sync", batch_size=7, samples=30, step=1, next_lease=1), End(1, "x", 1, []),
    )  # fmt: skip
    assert any("batch_size was 1 and is 7" in violation.what for violation in account.violations), str(account)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_book_does_is_clean_and_one_sample_less_is_not(seed):
    chance, book, lines, seqs = Random(seed), Stretches(), [FIRST], {}
    held = {}
    for step in range(1, 30):
        entries = []
        for worker in chance.sample(range(4), 3):
            held.setdefault(worker, book.take((worker, 1), chance.randint(1, 9)))
            if chance.random() < 0.3:
                lines.append(Returned(worker, 1, [held.pop(worker)]))
                assert book.leave((worker, 1))
                continue
            seqs[worker] = seqs.get(worker, 0) + 1
            entries.append((held.pop(worker), worker, 1, seqs[worker]))
        for (start, _), worker, *_ in entries:
            assert book.finish(start, (worker, 1))
        if not entries:
            break
        lines.append(Update(step, sorted(entries)))
        state = book.state()
        lines.append(Cut(step, state.next_lease, state.unapplied))
    assert judged(*lines).clean, str(judged(*lines))

    at = next(number for number, line in enumerate(lines) if isinstance(line, Update))
    (start, stop), *rest = lines[at].entries[0]
    lines[at] = Update(lines[at].step, [((start, stop - 1), *rest), *lines[at].entries[1:]] if stop - start > 1
                       else lines[at].entries[1:])  # fmt: skip
    assert not judged(*lines).clean
