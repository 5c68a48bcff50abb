"""What an update costs a program of its own beside its model, and its ps tasks, as in `worker/test_costs.py`."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "worker"))
import loops_in_one_process
import pytest
import torch
from loops_in_one_process import Program, good, replicas, run
from near_towers import NearMember
from passes import Passes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH = 1 << 16
SIZE = 4 * WIDTH  # bytes of the model
#: What may not change unseen is compared after steps 1, 2, 4, 8, 16: none of them is counted.
WARM, COUNTED = 8, 4


@dataclass
class Cost:
    """Of one update: passes, sizes of the model read and written, blocks made."""

    passes: dict[str, float]
    moved: tuple[float, float]
    blocks: float = 0


class Wide(Program):
    """Counts, from one batch to the next, all that happens in its own thread."""

    def __init__(self, workers: int = 1, updates: int = WARM + COUNTED + 1) -> None:
        super().__init__(epochs=1, batches=updates * workers, batch=4)
        self.passes: list[Passes] = []

    def make(self):
        model = nn.Linear(WIDTH // 16, 16, bias=False)
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def loader(self):
        inputs = torch.ones(self.batches * self.batch, WIDTH // 16)
        return DataLoader(TensorDataset(inputs, torch.ones(len(inputs), 16)), self.batch)

    def loop(self, ev, model, optimizer, loader):
        passes = Passes(WIDTH)
        self.passes.append(passes)
        with ExitStack() as counting:
            for number, batch in enumerate(loader):
                if number == WARM:
                    counting.enter_context(passes)
                if number == WARM + COUNTED:
                    counting.close()
                self.step(model, optimizer, batch)


def difference(more, less):
    """Of one update of those that only the first has counted."""
    passes = Counter(more.seen)
    passes.subtract(less.seen)
    moved = (more.read - less.read) / SIZE / COUNTED, (more.written - less.written) / SIZE / COUNTED
    found = {name: count / COUNTED for name, count in passes.items() if count}
    return Cost(found, moved, (more.blocks - less.blocks) / COUNTED)


def workers(way, directory):
    """What each worker's update costs more than one of the same program without evener."""
    plain, program = Wide(), Wide(replicas(way))
    run("plain", plain, directory)
    good(run(way, program, directory))
    assert len(program.passes) == replicas(way)
    return [difference(passes, plain.passes[0]) for passes in program.passes]


def servers(way, directory, monkeypatch):
    """What an update costs all ps tasks together: that of a longer run less that of a shorter one."""
    found = []

    def counted(server):
        with Passes(WIDTH // 2) as passes:
            served(server)
        found[-1].append(passes)

    served = loops_in_one_process._serve
    monkeypatch.setattr(loops_in_one_process, "_serve", counted)
    for updates in (WARM, WARM + COUNTED):
        found.append([])
        good(run(way, Wide(replicas(way), updates), directory / str(updates)))
    return [_all(passes) for passes in found]


def _all(found):
    total = Passes(0)
    for passes in found:
        total.seen += passes.seen
        total.read, total.written = total.read + passes.read, total.written + passes.written
        total.blocks += passes.blocks
    return total


def test_a_program_that_nobody_launched_costs_what_it_costs_without_evener(tmp_path):
    assert workers("alone", tmp_path) == [Cost({}, (0, 0))]


@pytest.mark.parametrize("way", ["alone, kept", "launched"])
def test_one_process_whose_state_is_kept_looks_at_the_outcome_of_each_update(way, tmp_path):
    """Its optimizer has changed the parameters: what is not finite must not be saved."""
    assert workers(way, tmp_path) == [Cost({"sum": 1}, (1, 0))]


def test_a_tower_copies_its_gradients_to_where_they_travel_and_the_mean_back(tmp_path, monkeypatch):
    """And from there to where the others read them: a program's gradients lie where autograd has made them."""
    monkeypatch.setattr(loops_in_one_process, "Member", NearMember)

    costs = workers("2 towers", tmp_path)

    moved = pytest.approx((7, 5), abs=0.01)  # a few numbers travel too
    assert costs == [Cost({"copy_": 2, "memmove": 1, "add": 1, "div_": 1, "sum": 1}, moved)] * 2


@pytest.mark.parametrize("way", ["1 ps, 1 worker", "2 ps, 1 worker"])
def test_a_worker_copies_its_gradients_to_where_they_travel_and_leaves_the_step_to_ps_tasks(way, tmp_path):
    """And looks at what it sends, where all workers do so at once."""
    step = {"add_": -1}

    assert workers(way, tmp_path) == [Cost(step | {"memmove": 1, "sum": 1}, (2 - 2, 1 - 1))]


@pytest.mark.parametrize(("way", "shards"), [("1 ps, 1 worker", 1), ("2 ps, 1 worker", 2)])
def test_ps_tasks_do_for_a_program_what_they_do_for_a_recipe(way, shards, tmp_path, monkeypatch):
    """As `worker/test_costs.py` has it, less the copy of the answer, which PyTorch does not see."""
    short, long = servers(way, tmp_path, monkeypatch)

    assert difference(long, short) == Cost({"sum": shards, "add_": shards}, (3, 1))
