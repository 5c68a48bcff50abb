"""A batch that does not fit: its worker lets go of it and gets fewer samples; any other error is as ever."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tasks_in_one_process import Tasks
from torch import nn

from evener.report import Line
from evener.session.hooks import Hook
from evener.testing import Cluster, Row, row_recipe
from evener.worker.compute.memory import is_out_of_memory, relieve


class Held:
    """What a batch that did not fit has left behind."""

    last: weakref.ref = lambda: None


class Fits(Row):
    """Raises where more than `most` samples come."""

    most, error = 4, torch.OutOfMemoryError

    def forward(self, inputs):
        if len(inputs) > self.most:
            left_behind = torch.zeros(10)
            Held.last = weakref.ref(left_behind)
            raise self.error(f"no memory for {len(inputs)} samples: out of memory")
        return super().forward(inputs)


class Freed(Hook):
    """At each step nothing of a batch that failed is held any more."""

    seen = 0

    def before_step(self, session):
        gc.collect()
        assert Held.last() is None
        Freed.seen += 1


def run(tmp_path, model=Fits, **options):
    everything = {"mode": "sync", "ps": 2, "workers": 2, "batch_sizes": (10, 2), "train_steps": 5} | options
    recipe = row_recipe(samples=60, model=model)
    with Cluster(recipe, tmp_path, **everything) as cluster:
        ended = Tasks(cluster, [[Freed()] if cluster.settings.by_samples else [], []]).run()
        return ended, cluster.step, [line.text for line in cluster.reported(Line)]


def really(words):
    """What PyTorch itself raises where there is no memory."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    return error.value


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError, really])
def test_the_bound_is_halved_until_it_fits_and_the_run_goes_on(tmp_path, error, monkeypatch):
    relieved = []
    monkeypatch.setattr("evener.session.session.relieve", lambda model: relieved.append(model) or relieve(model))
    model = type("Model", (Fits,), {"error": staticmethod(error)})
    ended, step, told = run(tmp_path, model)
    assert len(relieved) == 2
    assert step == 5 and ended["worker:0"] == ended["worker:1"] == "reached step 5"
    bounds = [line.partition(": ")[2].partition(";")[0] for line in told if "not enough memory" in line]
    assert bounds == ["from now on it gets at most 5", "from now on it gets at most 2"]


def test_another_error_ends_the_run(tmp_path):
    ended, *_ = run(tmp_path, type("Model", (Fits,), {"error": ValueError}))
    assert isinstance(ended["worker:0"], ValueError)


def test_where_not_even_the_least_fits_the_run_ends_with_it(tmp_path):
    ended, *_ = run(tmp_path, type("Model", (Fits,), {"most": 0}))
    assert any(isinstance(error, torch.OutOfMemoryError) for error in ended.values())


def test_a_run_of_one_batch_size_ends_with_it_as_ever(tmp_path):
    ended, *_ = run(tmp_path, batch_sizes=(), batch_size=10)
    assert any(isinstance(error, torch.OutOfMemoryError) for error in ended.values())


def test_nothing_of_the_gradients_is_kept():
    model = nn.Linear(2, 1)
    model(torch.ones(3, 2)).sum().backward()
    relieve(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_subclass_of_runtime_error_is_no_lack_of_memory():
    assert not is_out_of_memory(NotImplementedError("out of memory"))
