"""What changes in a model beside its parameters and buffers is told once: no update, checkpoint or task knows of it."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from evener.report import Line
from evener.state.tensors import specs_of
from evener.wire.layout import Layout
from evener.worker.compute.constants import Constants, attributes_of

sys.path.append(str(Path(__file__).parents[1] / "system"))
import towers_in_one_process as in_threads
from running import evener

from evener.testing import Cluster, Trainer, one_process, row_recipe, train


class Part(nn.Module):
    """A layer with something beside its tensors; `each` changes it in each batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs):
        self.each(inputs)
        return self.linear(inputs.reshape(-1, 1).float())


class Counter(Part):
    def __init__(self):
        super().__init__()
        self.batches = 0

    def each(self, inputs):
        self.batches += 1


class Teacher(Part):
    """Hidden in a list, so that it is no module of the model."""

    def __init__(self):
        super().__init__()
        self.teachers = [copy.deepcopy(self.linear)]

    def each(self, inputs):
        with torch.no_grad():
            self.teachers[0].weight += 1.0


class Baseline(Part):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(())

    def each(self, inputs):
        self.mean = self.mean + inputs.float().mean()


class History(Part):
    def __init__(self):
        super().__init__()
        self.seen = {}

    def each(self, inputs):
        self.seen[len(self.seen)] = len(inputs)


class Cache(Part):
    """A table that the first batch makes."""

    def __init__(self):
        super().__init__()
        self.table, self.size = None, None

    def each(self, inputs):
        if self.table is None:
            self.table, self.size = torch.arange(3), len(inputs)


class LateCache(Cache):
    """One that a later batch makes, since the first has no use for it."""

    def __init__(self):
        super().__init__()
        self.calls = "x"

    def each(self, inputs):
        self.calls += "x"
        if len(self.calls) > 3:
            super().each(inputs)


class Buffer(Part):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def each(self, inputs):
        self.count += 1


class Words(Part):
    """What is no number, tensor or module is nobody's state."""

    def __init__(self):
        super().__init__()
        self.last, self.done = "", False

    def each(self, inputs):
        self.last, self.done = f"{self.last}x", not self.done


CHANGES = {Counter: "part.batches", Teacher: "part.teachers", Baseline: "part.mean", History: "part.seen"}


def recipe_of(kind):
    def model():
        made = nn.Sequential()
        made.part = kind()
        return made

    return row_recipe(model=model, loss=lambda output, target: output.mean())


def told(reports):
    return [line.text for line in reports if isinstance(line, Line) and "changes while the model trains" in line.text]


# --- by themselves


def notes_after(kind, batches):
    model = recipe_of(kind).model()
    constants = Constants(model, Layout(specs_of(model)))
    for _ in range(batches):
        model(torch.ones(4))
        constants.look(0)
    return constants.notes


@pytest.mark.parametrize("kind", CHANGES)
def test_what_goes_on_changing_is_told_by_its_name_with_a_way_out(kind):
    assert notes_after(kind, 1) == [], "the first batch may fill a cache"
    (note,) = notes_after(kind, 2)
    assert note.startswith(f"warning: {CHANGES[kind]} changes while the model trains and is no parameter or buffer")
    assert "register_buffer" in note
    assert "changing=[...]" in note


@pytest.mark.parametrize("kind", [Cache, LateCache, Buffer, Words])
def test_a_cache_of_the_first_batch_or_a_later_one_a_buffer_and_words_are_not_told(kind):
    assert notes_after(kind, 17) == []


def test_attributes_are_named_by_their_module():
    assert attributes_of(recipe_of(Counter).model()).keys() >= {"part.batches", "part.linear.in_features"}


# --- in every way of running


@pytest.mark.parametrize("kind", CHANGES)
def test_one_process_tells_it_once(kind, tmp_path):
    session, _, reports = one_process(recipe_of(kind), tmp_path, batch_size=4, train_steps=20)
    session.run()
    (text,) = told(reports)
    assert CHANGES[kind] in text


@pytest.mark.parametrize("kind", CHANGES)
def test_towers_tell_it_once(kind, tmp_path):
    reports = []
    sessions = in_threads.towers(recipe_of(kind), tmp_path, 2, reports=reports, batch_size=4, train_steps=20)
    assert in_threads.run(sessions) == ["reached step 20"] * 2
    assert len(told(reports)) == 1


def test_a_worker_of_ps_tasks_notes_it(tmp_path):
    with Cluster(recipe_of(Counter), tmp_path, mode="sync", batch_size=4, train_steps=8) as cluster:
        workers = [Trainer(cluster, index) for index in range(2)]
        train(workers)
        assert all("part.batches" in worker.towers.notes[0] for worker in workers)


RECIPE = """
import evener, torch
from torch import nn


class Net(nn.Linear):
    def __init__(self, counts):
        super().__init__(8, 3)
        self.counts, self.batches, self.table = counts, 0, None

    def forward(self, inputs):
        self.batches += self.counts
        self.table = torch.ones(8) if self.table is None else self.table
        return super().forward(inputs * self.table)


def recipe(counts: int = 1):
    data = torch.zeros(60, 8), torch.arange(60) % 3
    return evener.Recipe(model=lambda: Net(counts), data=lambda: (data, data),
                         optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--ps", 1, "--workers", 2, "--mode", "sync"], ["--towers", 2]], ids=["ps", "towers"])
@pytest.mark.parametrize("counts", [1, 0])
def test_real_tasks_tell_it_once_and_of_a_cache_nothing(counts, way, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    done = evener(tmp_path, "train", "mine.py:recipe", *way, "--set", f"counts={counts}", "--train-steps", 40,
                  "--batch-size", 10, "--eval-every", 5)  # fmt: skip
    assert done.code == 0, done.text
    assert done.text.count("batches changes while the model trains") == counts
    assert "table changes" not in done.text
