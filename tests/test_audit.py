"""The judge: histories that are clean by construction are found clean, and one planted fault is found."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from random import Random

import msgspec
import pytest
from hypothesis import assume, given, settings, strategies as st

from evener.audit import SavedBook, audit
from evener.audit.ranges import NumberSet, of, without, words
from evener.ledger.lines import Begin, Complete, Cut, Damaged, Dropped, End, Gap, Line, Returned, Update
from evener.policy.leases import Leases, LeaseState

BATCH, SAMPLES = 10, 35


@dataclass
class Training:
    """A model of what servers do: lives of workers take leases, push, die; checkpoints are cut; runs are killed."""

    chance: Random
    workers: int = 3
    lines: list[Line] = field(default_factory=list)
    saved: dict[int, tuple[LeaseState, dict[int, tuple[int, int]]]] = field(default_factory=dict)
    damaged: dict[int, tuple[LeaseState, dict[int, tuple[int, int]]]] = field(default_factory=dict)
    generation: int = 0
    epochs: dict[int, int] = field(default_factory=dict)

    def begin(self) -> None:
        """Go on from one of the checkpoints: the newest, unless it is damaged; then it lies there for ever."""
        usable = sorted(self.saved)[-2:]
        self.step = self.chance.choice(usable) if usable else 0
        self.damaged |= {step: self.saved.pop(step) for step in sorted(self.saved) if step > self.step}
        book, self.seqs = self.saved.get(self.step, (LeaseState(0, ()), {}))
        self.seqs = dict(self.seqs)
        self.leases = Leases(next_lease=book.next_lease, returned=book.unapplied)
        self.generation += 1
        self.held: dict[int, int] = {}  # worker -> its lease
        self.lines.append(
            Begin(generation=self.generation, step=self.step, next_lease=book.next_lease, unapplied=book.unapplied,
                  batch_size=BATCH, samples=SAMPLES)
        )  # fmt: skip
        for worker in range(self.workers):
            self.join(worker)

    def join(self, worker: int) -> None:
        self.epochs[worker] = self.epochs.get(worker, 0) + 1
        self.take(worker)

    def take(self, worker: int) -> None:
        lease = self.leases.take((worker, self.epochs[worker]))
        assert lease is not None
        self.held[worker] = lease

    def push(self, worker: int) -> tuple[int, int, int, int]:
        epoch, seq = self.seqs.get(worker, (0, 0))
        now = self.epochs[worker]
        self.seqs[worker] = (now, seq + 1 if epoch == now else 1)
        return (self.held.pop(worker), worker, *self.seqs[worker])

    def update(self, gradients: int) -> None:
        self.step += 1
        entries = sorted(self.push(worker) for worker in self.chance.sample(range(self.workers), gradients))
        for lease, worker, epoch, _ in entries:
            assert self.leases.finish(lease, (worker, epoch))
        self.lines.append(Update(self.step, entries))
        for _, worker, *_ in entries:
            self.take(worker)

    def drop(self) -> None:
        entry = self.push(worker := self.chance.randrange(self.workers))
        assert self.leases.give_back(entry[0], (worker, entry[2]))
        self.lines.append(Dropped(*entry, f"computed at version {self.step - 1}, now {self.step}", True))
        self.take(worker)

    def die(self) -> None:
        worker = self.chance.randrange(self.workers)
        self.lines.append(Returned(worker, self.epochs[worker], self.leases.leave((worker, self.epochs[worker]))))
        self.join(worker)

    def cut(self) -> None:
        book = self.leases.state()
        self.lines.append(Cut(self.step, book.next_lease, book.unapplied))
        self.damaged.pop(self.step, None)
        self.saved[self.step] = (book, dict(self.seqs))
        self.lines.append(Complete(self.step))

    def end(self) -> None:
        self.cut()
        for worker in range(self.workers):
            self.leases.leave((worker, self.epochs[worker]))
        book = self.leases.state()
        self.lines.append(End(self.step, "reached it", book.next_lease, book.unapplied))

    def run(self, events: int, gradients: int) -> None:
        for _ in range(events):
            kind = self.chance.choices(["update", "drop", "die", "cut"], [12, 2, 1, 1])[0]
            self.update(gradients) if kind == "update" else getattr(self, kind)()

    def manifests(self) -> list[SavedBook]:
        return [
            SavedBook(step, *(book.next_lease, book.unapplied), seqs)
            for step, (book, seqs) in (self.damaged | self.saved).items()
        ]


def history(seed: int) -> Training:
    """One to four runs; each is killed or ends; some go on from an older checkpoint than the newest."""
    chance = Random(seed)
    training = Training(chance, workers=chance.randint(1, 4))
    for _ in range(chance.randint(1, 4)):
        gradients = chance.randint(1, training.workers)
        training.begin()
        training.run(chance.randint(0, 60), gradients)
        if chance.random() < 0.5:
            training.end()
    return training


def judged(lines, manifests=()):
    return audit([line for line in lines if isinstance(line, Begin)], enumerate(lines, 1), manifests)


def survivors(lines: list[Line]) -> list[int]:
    """The positions of the updates that no later beginning undid: by the definition, the slow way."""
    alive: list[int] = []
    for at, line in enumerate(lines):
        if isinstance(line, Begin):
            alive = [other for other in alive if lines[other].step <= line.step]
        elif isinstance(line, Update):
            alive.append(at)
    return alive


seeds = st.integers(0, 2**32)


@settings(max_examples=60)
@given(seeds)
def test_a_clean_history_is_found_clean_and_counted_right(seed):
    training = history(seed)
    account = judged(training.lines, training.manifests())

    assert account.clean, account
    alive = [training.lines[at] for at in survivors(training.lines)]
    applied = [lease for update in alive for lease, *_ in update.entries]
    assert (account.updates, account.gradients) == (len(alive), len(applied))
    assert account.updates + account.lost == sum(isinstance(line, Update) for line in training.lines)
    assert sum(stop - start for start, stop in account.rollbacks) == account.lost
    assert account.examples == BATCH * len(applied)
    assert account.compared == len(training.saved)
    assert account.generations == training.generation
    check_samples(account, set(applied))


def check_samples(account, applied):
    """Count every sample of every epoch, one by one."""
    times: dict[int, int] = {}
    for lease in applied:
        for position in range(lease * BATCH, (lease + 1) * BATCH):
            times[position] = times.get(position, 0) + 1
    for epoch in range(account.epochs):
        whole = all(times.get(position) == 1 for position in range(epoch * SAMPLES, (epoch + 1) * SAMPLES))
        assert whole == (epoch not in NumberSet(account.broken)), epoch


def doubled_lease(lines, at, other):
    lines[at] = Update(
        lines[at].step, [(lines[other].entries[0][0], *lines[at].entries[0][1:]), *lines[at].entries[1:]]
    )


def doubled_push(lines, at, other):
    lease, *_ = lines[at].entries[0]
    lines[at] = Update(lines[at].step, [(lease, *lines[other].entries[0][1:]), *lines[at].entries[1:]])


def doubled_update(lines, at, _):
    lines.insert(at, lines[at])


def skipped_step(lines, at, _):
    lines[at] = Update(lines[at].step + 1, lines[at].entries)


def removed_line(lines, at, _):
    del lines[at]


def lost_gradient(lines, at, _):
    lines[at] = Update(lines[at].step, lines[at].entries[1:])


def damaged_line(lines, at, _):
    lines[at] = Damaged(torn=False)


@pytest.mark.parametrize(
    "plant",
    [doubled_lease, doubled_push, doubled_update, skipped_step, removed_line, lost_gradient, damaged_line],
    ids=lambda plant: plant.__name__,
)
@settings(max_examples=25)
@given(seed=seeds, where=st.integers(0, 10_000), which=st.integers(0, 10_000))
def test_one_planted_fault_is_found(plant, seed, where, which):
    training = history(seed)
    if not isinstance(training.lines[-1], End):
        training.end()  # what a killed run does not say, nobody can miss
    alive = survivors(training.lines)
    assume(len(alive) > 1)
    at, other = sorted((alive[where % len(alive)], alive[which % len(alive)]), reverse=True)
    assume(at != other)
    plant(training.lines, at, other)

    account = judged(training.lines, training.manifests())
    assert account.wrong > 0
    assert "NOT clean" in str(account)


@settings(max_examples=25)
@given(seed=seeds, where=st.integers(0, 10_000))
def test_a_manifest_that_differs_is_found(seed, where):
    training = history(seed)
    assume(training.saved)
    saved = [one for one in training.manifests() if one.step in training.saved]
    one = saved[where % len(saved)]
    for wrong in (
        SavedBook(one.step, one.next_lease + 1, one.unapplied, one.seqs),
        SavedBook(one.step, one.next_lease, [*one.unapplied, 10**6], one.seqs),
        SavedBook(one.step + 10**6, one.next_lease, one.unapplied, one.seqs),
    ):
        assert not judged(training.lines, [wrong]).clean


# --- told one by one


def line(text: str) -> Line:
    return msgspec.json.decode(text, type=Line)


def story(*texts: str) -> list[Line]:
    return [line(text) for text in texts]


FIRST = '["b",1,0,1,"r","async",0,0,[],10,35,0,""]'


def said(*texts, saved=()):
    return [str(violation) for violation in judged(story(*texts), saved).violations]


@pytest.mark.parametrize(
    ("lines", "complaints"),
    [
        (['["u",1,[[0,0,1,1]]]', '["u",2,[[0,1,1,1]]]'], ["line 3: lease 0 was applied before"]),
        (
            ['["u",1,[[0,0,1,1]]]', '["u",2,[[1,0,1,1]]]'],
            ["line 3: push 1 of worker 0, epoch 1, was applied before, or comes after a later one"],
        ),
        (['["u",1,[[0,0,1,1]]]', '["u",3,[[1,0,1,2]]]'], ["line 3: step 3 comes after step 1"]),
        (
            ['["u",1,[[0,0,2,1]]]', '["u",2,[[1,0,1,7]]]'],
            ["line 3: worker 0 pushed in epoch 1, its epoch 2 had begun",
             "line 3: push 7 of worker 0, epoch 1, was applied before, or comes after a later one"],
        ),
        (
            ['["u",1,[[1,0,1,1]]]', '["e",1,"over",3,[2]]'],
            ["line 3: lease 0: neither applied nor listed as unapplied"],
        ),
        (
            ['["u",1,[[0,0,1,1]]]', '["e",1,"over",2,[0,1]]'],
            ["line 3: lease 0: listed as unapplied, but applied or never given out"],
        ),
        (
            ['["u",1,[[0,0,1,1]]]', '["e",1,"over",3,[1,2,2]]'],
            ["line 3: a lease is listed as unapplied twice"],
        ),
        (
            ['["u",1,[[3,0,1,1]]]', '["e",1,"over",3,[0,1,2]]'],
            ["line 3: lease 3 was applied, though the next to be given out is 3"],
        ),
        (
            ['["u",1,[[1,0,1,1]]]', '["e",1,"over",2,[]]', '["b",1,0,2,"r","async",1,2,[],10,35,0,""]'],
            ["line 3: lease 0: neither applied nor listed as unapplied"],
        ),
        (['["u",1,[[0,0,1,1]]]', '["r",0,1,[0]]'], ["line 3: lease 0 went back to the pool, but was applied"]),
        (
            ['["u",1,[[0,0,1,1]]]', '["d",1,0,1,1,"late",true]'],
            ["line 3: push 1 of worker 0, epoch 1, was dropped, after it or a later one was applied"],
        ),
        (['["e",0,"over",0,[]]', '["u",1,[[0,0,1,1]]]'], ["line 3: the run had ended before"]),
        (
            ['["b",1,0,1,"r","async",0,0,[],10,35,0,""]'],
            ["line 2: generation 1 comes after 1"],
        ),
        (
            ['["u",1,[[0,0,1,1]]]', '["b",1,0,2,"r","async",1,1,[],20,35,0,""]'],
            ["line 3: batch_size was 10 and is 20: leases mean other samples from here on"],
        ),
        (
            ['["u",1,[[0,0,1,1]]]', '["b",1,0,2,"r","async",4,4,[],10,35,0,""]'],
            ["line 3: the run goes on from step 4, the last update is of step 1"],
        ),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line(lines, complaints):
    assert said(FIRST, *lines) == complaints


def test_a_run_that_begins_anew_may_have_other_batches():
    account = judged(story(FIRST, '["u",1,[[0,0,1,1]]]', '["b",1,0,2,"r","async",0,0,[],20,70,1,""]'))
    assert account.clean, account
    assert (account.batch_size, account.samples) == (20, 70)


@pytest.mark.parametrize(
    ("applied", "unapplied", "said"),
    [
        # a batch is 10 samples, an epoch 20: two leases each
        ([0, 2, 3], [1], "2 whole epochs of 20: each sample exactly once in 1; epoch 0 lacks some"),
        ([0, 1, 3], [2], "2 whole epochs of 20: each sample exactly once in 1; epoch 1 lacks some"),
        ([0, 3], [1, 2], "2 whole epochs of 20: each sample exactly once in 0; epochs 0..1 lack some"),
        ([0, 1, 2, 3], [4], "2 whole epochs of 20: each sample exactly once"),  # the third was not over
    ],
)
def test_an_epoch_that_was_given_out_whole_lacks_what_was_not_applied(applied, unapplied, said):
    begin = Begin(generation=1, batch_size=10, samples=20)
    updates = [Update(step, [(lease, 0, 1, step)]) for step, lease in enumerate(applied, 1)]
    end = End(len(applied), "over", len(applied) + len(unapplied), unapplied)
    lines = str(judged([begin, *updates, end])).splitlines()
    assert f"{10 * len(applied)} samples applied; {said}" in lines


def test_a_long_story_is_cut_and_says_how_much_is_left_out():
    lines: list[Line] = [line(FIRST)]
    for generation in range(2, 11):
        lines += [Update(1, [(0, 0, generation - 1, 1)]), Begin(generation=generation, batch_size=10, samples=35)]
    steps = ", ".join(["1..1"] * 8)
    assert f"9 updates lost in 9 roll-backs (steps {steps}, 1 more)" in str(judged(lines)).splitlines()
    assert words("lease", [(3 * n, 3 * n + 1) for n in range(10)]) == "leases 0, 3, 6, 9, 12, 15, 18, 21, 2 more ranges"


def test_one_process_goes_on_from_a_cluster_and_a_cluster_from_it():
    texts = [
        FIRST, '["u",1,[[0,0,1,1]]]', '["s",1,2,[1]]',
        '["b",1,0,0,"","single",1,2,[1],10,35,0,""]', '["u",2,[[1,0,0,2]]]', '["u",3,[[2,0,0,3]]]', '["s",3,3,[]]',
        '["b",1,0,2,"r","sync",3,3,[],10,35,0,""]', '["u",4,[[3,0,2,1],[4,1,1,1]]]', '["e",4,"over",5,[]]',
    ]  # fmt: skip
    saved = [SavedBook(1, 2, [1], {0: (1, 1)}), SavedBook(3, 3, [], {})]
    account = judged(story(*texts), saved)
    assert account.clean, account
    assert str(account).splitlines() == [
        "4 updates of 3 runs, up to step 4",
        "50 samples applied; 1 whole epoch of 35: each sample exactly once",
        "the last run ended: over",
        "2 checkpoints in the logdir agree with the ledger",
        "ledger clean",
    ]


def test_the_story_names_what_was_undone_dropped_and_never_applied():
    texts = [
        FIRST, '["u",1,[[0,0,1,1]]]', '["s",1,1,[]]', '["u",2,[[1,0,1,2]]]', '["u",3,[[2,0,1,3]]]',
        '["b",1,0,2,"r","sync",1,1,[],10,35,0,""]', '["u",2,[[1,0,2,1]]]', '["d",3,1,1,1,"at version 1, now 2",true]',
        '["r",1,1,[2]]', '["u",3,[[3,0,2,2]]]', '["e",3,"over",4,[2]]',
    ]  # fmt: skip
    assert str(judged(story(*texts))).splitlines() == [
        "3 updates of 2 runs, up to step 3",
        "2 updates lost in 1 roll-back (steps 2..3)",
        "1 gradient dropped (1 x at version N, now N)",
        "1 lease went back to the pool when a worker left",
        "30 samples applied; 1 whole epoch of 35: each sample exactly once in 0; epoch 0 lacks some",
        "1 lease of 10 samples each not applied when the run ended: lease 2",
        "the last run ended: over",
        "0 checkpoints in the logdir agree with the ledger",
        "ledger clean",
    ]


def test_lines_that_could_not_be_written_are_a_gap_and_not_clean():
    account = judged([line(FIRST), Gap(3), *story('["u",4,[[3,0,1,4]]]', '["e",4,"over",5,[4]]')])
    assert (account.clean, account.wrong) == (False, 0)
    assert str(account).splitlines()[-2:] == [
        "the ledger has a gap: line 2: 3 lines could not be written",
        "ledger not complete: no violation in what is there",
    ]


def test_a_run_that_ended_before_it_began_is_forgiven_and_what_follows_is_judged():
    ended = line('["e",0,"worker:0 failed",0,[]]')
    assert judged([ended]).wrong == 0
    assert judged([ended, line(FIRST), *story('["u",1,[[0,0,1,1]]]', '["e",1,"over",1,[]]')]).clean
    assert not judged([line('["e",3,"over",3,[]]'), line(FIRST)]).clean


def test_an_epoch_of_which_lines_are_missing_is_not_said_to_be_whole():
    account = judged([line(FIRST), Gap(3), *story('["u",4,[[3,0,1,4]]]', '["e",4,"over",4,[]]')])
    assert (account.epochs, account.examples) == (1, 10)
    assert "10 samples applied, of 1 whole epoch of 35, as far as there are lines" in str(account).splitlines()
    assert "exactly once" not in str(account)


def test_a_ledger_that_begins_later_than_the_training_is_a_gap():
    texts = ['["b",1,0,2,"r","async",7,9,[8],10,35,0,""]', '["u",8,[[8,0,2,1]]]', '["e",8,"over",9,[]]']
    account = judged(story(*texts), [SavedBook(7, 9, [8], {})])  # the checkpoint that it went on from is older, too
    assert (account.clean, account.wrong) == (False, 0)
    assert not judged([]).clean


@pytest.mark.parametrize(("after", "clean"), [("begin", True), ("update", False), ("nothing", False)])
def test_half_a_line_is_forgiven_where_a_killed_writer_can_have_left_it(after, clean):
    follows = {
        "begin": ['["b",1,0,2,"r","async",0,0,[],10,35,0,""]'], "update": ['["u",1,[[0,0,1,1]]]'], "nothing": [],
    }  # fmt: skip
    account = judged([line(FIRST), Damaged(torn=False), *story(*follows[after])])
    assert account.clean == clean
    assert judged([line(FIRST), Damaged(torn=True)]).clean


def test_a_thousand_faults_are_counted_and_a_hundred_are_told():
    account = judged([line(FIRST), *(Update(1, [(0, 0, 1, 1)]) for _ in range(1001))])
    assert len(account.violations) == 100
    assert re.search(r"\.\.\. and 2,900 more\nledger NOT clean: 3,000 violations$", str(account))
    assert json.loads(json.dumps(account.as_dict()))["wrong"] == 3000


@given(st.lists(st.integers(0, 30)), st.integers(0, 35), st.sets(st.integers(0, 30)))
def test_ranges_are_sets_of_numbers(numbers, stop, others):
    ranges = NumberSet()
    assert [ranges.add(number) for number in numbers] == [n not in numbers[:at] for at, n in enumerate(numbers)]

    def members(pairs):
        return [number for start, end in pairs for number in range(start, end)]

    assert members(ranges) == sorted(set(numbers))
    assert members(ranges.holes(stop)) == sorted(set(range(stop)) - set(numbers))
    assert members(without(of(numbers), of(others))) == sorted(set(numbers) - others)
    assert [number in ranges for number in range(35)] == [number in numbers for number in range(35)]
    assert all(left[1] < right[0] for left, right in zip(list(ranges), list(ranges)[1:], strict=False))


def test_numbers_without_end_are_judged_at_once():
    """A ledger from elsewhere may say anything."""
    far = 2**62
    account = audit([Begin(step=0, batch_size=far, samples=3)], [
        (1, Begin(step=0, batch_size=far, samples=3)), (2, Update(1, [(far, 0, 1, 1)])), (3, End(1, "", far * 2, [5])),
    ], [])  # fmt: skip

    assert not account.clean
    assert len(account.broken) < 5
    assert str(account)


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_what_is_without_others_is_the_difference_of_sets(these, others):
    assert without(of(these), of(others)) == of(these - others)


# --- a script with a loop of its own


def of_script(*lines, samples=4):
    begin = Begin(generation=1, mode="async/script", batch_size=1, samples=samples)
    return audit([begin], list(enumerate([begin, *lines], 1)), [])


def test_a_gradient_of_several_batches_is_one_and_one_of_no_batch_is_never_missing():
    account = of_script(
        Update(1, [(0, 0, 1, 1), (2, 0, 1, 1)]),
        Update(2, [(-1, 0, 1, 2)]),
        Update(3, [(-1, 0, 1, 3), (1, 1, 1, 1), (3, 1, 1, 1)]),
        Dropped(4, 0, 1, 4, "late", True),
        Dropped(5, 0, 1, 4, "late", True),
        Dropped(-1, 1, 1, 2, "late", False),
        End(3, "every worker has left its loop", 6, [4, 5]),
    )
    assert account.clean, str(account)
    assert (account.updates, account.gradients, account.examples, account.epochs) == (3, 4, 4, 1)
    assert account.dropped == {"late": 2}
    assert "4 batches applied; 1 whole epoch of 4: each batch exactly once" in str(account)
    assert "2 batches not applied when the run ended: leases 4..5" in str(account)
    assert account.as_dict()["script"] is True


def test_batches_without_numbers_are_told_as_such():
    account = of_script(Update(1, [(-1, 0, 1, 1)]), Update(2, [(-1, 1, 1, 1)]), End(2, "over", 0, []), samples=0)
    assert account.clean
    assert "2 updates, batches without numbers" in str(account)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([Update(1, [(0, 0, 1, 1), (0, 0, 1, 1)])], "lease 0 was applied before"),
        ([Update(1, [(0, 0, 1, 1)]), Update(2, [(1, 0, 1, 1)])], "push 1 of worker 0, epoch 1, was applied before"),
        ([Update(1, [(-1, 0, 1, 1)]), Update(2, [(-1, 0, 1, 1)])], "push 1 of worker 0, epoch 1, was applied before"),
    ],
)
def test_of_a_script_too_nothing_is_applied_twice(lines, what):
    assert what in str(of_script(*lines))


def test_a_recipe_has_no_gradient_of_several_batches_or_of_none():
    begin = Begin(generation=1, mode="async", batch_size=1, samples=4)
    for entries in ([(0, 0, 1, 1), (1, 0, 1, 1)], [(-1, 0, 1, 1)]):
        assert not audit([begin], list(enumerate([begin, Update(1, entries)], 1)), []).clean
    assert "script" not in audit([begin], [(1, begin)], []).as_dict()


@pytest.mark.parametrize("mode", ["async/several", "sync/several/loader"])
def test_a_recipes_gradient_of_several_batches_is_one(mode):
    begin = Begin(generation=1, mode=mode, batch_size=1, samples=4)
    lines = [begin, Update(1, [(0, 0, 1, 1), (1, 0, 1, 1), (2, 1, 1, 1), (3, 1, 1, 1)]), End(1, "over", 4, [])]
    account = audit([begin], list(enumerate(lines, 1)), [])
    assert account.clean, str(account)
    assert (account.updates, account.gradients, account.examples, account.epochs) == (1, 2, 4, 1)
    each = "batch" if mode.endswith("loader") else "sample"
    assert f"1 whole epoch of 4: each {each} exactly once" in str(account)


def test_but_none_is_without_a_batch():
    begin = Begin(generation=1, mode="async/several/loader", batch_size=1, samples=4)
    assert not audit([begin], list(enumerate([begin, Update(1, [(-1, 0, 1, 1)])], 1)), []).clean
