"""A model on other devices: separate blocks and copies, here with the CPU in the part of the other device.

The copy path must give the bits of the direct one, where the model lives in the memory that travels.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from evener.recipes.recipe import Recipe
from evener.report import Finished
from evener.settings import Settings
from evener.state.tensors import CPU, spans, specs_of, whole_views
from evener.task import alone, owner, parts
from evener.wire.layout import Layout
from evener.worker.compute.device_memory import DeviceMemory, Fetching, generators_of, runs_of
from evener.worker.compute.towers import Towers
from evener.worker.exchange.exchange import Computed, Turn

META = torch.device("meta")


class Net(nn.Module):
    """Two dtypes that travel (BatchNorm counts), dropout, a frozen parameter, sizes that need padding."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(7, 61)
        self.norm = nn.BatchNorm1d(61)
        self.drop = nn.Dropout(0.3)
        self.second = nn.Linear(61, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.second(self.drop(torch.relu(self.norm(self.first(x))))) * self.scale + self.fixed


def samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, 7, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def recipe_of(**parts):
    return Recipe(
        model=Net, data=lambda: (samples(), samples(1)), ema_decay=0.9,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        penalty=lambda model: 1e-3 * sum(weight.pow(2).sum() for weight in model.parameters()), **parts,
    )  # fmt: skip


def blocks(layout):
    return [torch.zeros(layout.nbytes, dtype=torch.uint8).numpy().data for _ in range(2)]


def layout_of(model, shards=1):
    return Layout(specs_of(model), shards=shards)


# --- where things lie


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_on_one_device_takes_one_copy(shards):
    layout = layout_of(Net(), shards)
    (run,), run_of = runs_of(layout, dict.fromkeys(spans(layout), META))

    assert (run.start, run.there) == (0, 0)
    assert run.stop >= max(stop for _, stop in spans(layout).values())
    assert set(run_of.values()) == {0}


@pytest.mark.parametrize("shards", [1, 3])
def test_runs_of_several_devices_cover_every_tensor_once_and_keep_its_alignment(shards):
    layout = layout_of(Net(), shards)
    devices = {name: META if name.startswith("norm") else CPU for name in spans(layout)}
    runs, run_of = runs_of(layout, devices)

    assert len(runs) > 1
    for name, (start, stop) in spans(layout).items():
        run = runs[run_of[name]]
        assert run.device == devices[name]
        assert run.start <= start <= stop <= run.stop
        assert (start - run.start + run.there) % 512 == start % 512
    for device in (CPU, META):
        mine = [run for run in runs if run.device == device]
        ends = [run.there + run.stop - run.start for run in mine]
        assert all(later.there >= end for later, end in zip(mine[1:], ends, strict=False))


def test_views_have_shapes_and_dtypes_and_hold_what_was_copied():
    model = Net()
    layout = layout_of(model, 2)
    parameters, gradients = blocks(layout)
    memory = DeviceMemory(
        layout, dict.fromkeys(spans(layout), CPU), parameters=parameters, gradients=gradients, direct=False
    )
    here = whole_views(layout, parameters)
    for value, view in enumerate(here.values()):
        view.fill_(value)

    assert all(not view.any() for view in memory.parameters.values())
    memory.fetch()
    for name, view in here.items():
        assert memory.parameters[name].dtype == view.dtype
        assert torch.equal(memory.parameters[name], view), name
    for value, view in enumerate(memory.gradients.values()):
        view.fill_(value)
    memory.deliver()
    for name, view in whole_views(layout, gradients).items():
        assert torch.equal(memory.gradients[name], view), name


def test_tensors_on_the_cpu_beside_others_are_the_memory_that_travels():
    layout = layout_of(Net())
    parameters, gradients = blocks(layout)
    devices = {name: META if name.startswith("first") else CPU for name in spans(layout)}
    memory = DeviceMemory(layout, devices, parameters=parameters, gradients=gradients)
    whole_views(layout, parameters)["second.weight"].fill_(3.0)

    assert memory.devices == [META]
    assert memory.parameters["first.weight"].device == META
    assert float(memory.parameters["second.weight"].sum()) == 3.0 * 61 * 3


# --- one batch


@pytest.mark.parametrize("shards", [1, 3])
def test_a_copied_model_gives_the_gradients_of_a_direct_one(shards):
    found = []
    for copied in (False, True):
        torch.manual_seed(0)
        model = Net()
        layout = layout_of(model, shards)
        parameters, gradients = blocks(layout)
        memory = None
        if copied:
            devices = dict.fromkeys(spans(layout), CPU)
            memory = DeviceMemory(layout, devices, parameters=parameters, gradients=gradients, direct=False)
        towers = Towers(model, recipe_of(), layout, parameters=parameters, gradients=gradients, seed=1, memory=memory)
        losses = []
        for lease in range(3):
            losses.append(towers.begin(samples(), lease))
            towers.collect()
        found.append((losses, {name: view.clone() for name, view in whole_views(layout, gradients).items()}))
    (direct, direct_gradients), (copy, copied_gradients) = found

    assert direct == copy
    assert all(torch.equal(direct_gradients[name], copied_gradients[name]) for name in direct_gradients)
    assert int(copied_gradients["norm.num_batches_tracked"]) == 3


def test_what_is_random_on_the_cpu_is_always_seeded():
    assert generators_of([META]) == [torch.default_generator]


# --- the exchange


class Owner:
    """Overwrites the parameters at each call, as servers do."""

    def __init__(self, view):
        self.view, self.calls = view, []

    def _fill(self, what):
        self.calls.append(what)
        self.view.fill_(len(self.calls))

    def start(self):
        self._fill("start")
        return Turn(version=0, lease=0)

    arrivals = 0

    def update(self, computed):
        self._fill("update")
        return Turn(version=1, lease=1)

    def show(self, what):
        self._fill(what)
        return 1

    def stop(self, reason, *, complete=True):
        self.calls.append(reason)

    def close(self, reason=""):
        self.calls.append("close")


def test_whatever_the_exchange_brings_is_on_the_device_when_it_returns():
    layout = layout_of(nn.Linear(2, 2))
    parameters, gradients = blocks(layout)
    devices = dict.fromkeys(spans(layout), CPU)
    memory = DeviceMemory(layout, devices, parameters=parameters, gradients=gradients, direct=False)
    owner = Owner(whole_views(layout, parameters)["weight"])
    exchange = Fetching(owner, memory)

    for call in (
        exchange.start,
        lambda: exchange.update(Computed(loss=1.0, examples=1, seconds=0.1)),
        lambda: exchange.show("averages"),
        lambda: exchange.show("parameters"),
    ):
        call()
        assert float(memory.parameters["weight"][0, 0]) == len(owner.calls)
    exchange.stop("enough")
    exchange.close()
    assert owner.calls == ["start", "update", "averages", "parameters", "enough", "close"]


def test_the_parameters_are_written_when_no_device_reads_them_any_more_and_then_fetched():
    class Memory:
        def settle(self):
            owner.calls.append("settled")

        def fetch(self):
            owner.calls.append("fetched")

    owner = Owner(torch.zeros(1))
    exchange = Fetching(owner, Memory())
    exchange.start()
    exchange.update(Computed(loss=1.0, examples=1, seconds=0.1))
    exchange.show("averages")

    assert owner.calls == ["start", "fetched", "settled", "update", "fetched", "settled", "averages", "fetched"]


def test_a_newer_answer_is_fetched_and_without_one_nothing_is():
    class Flight(Owner):
        def newest(self, turn):
            return self.calls.append("newest") or (turn if turn.version else Turn(version=1, lease=1))

        def free(self):
            self.calls.append("freed")

    class Memory:
        def settle(self):
            owner.calls.append("settled")

        def fetch(self):
            owner.calls.append("fetched")

    owner = Flight(torch.zeros(1))
    turn = Fetching(owner, Memory()).newest(Turn(version=0, lease=0))
    assert owner.calls == ["settled", "newest", "fetched"] and turn.version == 1
    assert Fetching(owner, Memory()).newest(turn) is turn
    Fetching(owner, Memory()).free()
    assert owner.calls[3:] == ["settled", "newest", "freed"]
    assert Fetching(Owner(torch.zeros(1)), Memory()).newest(turn) is turn, "answers come to update alone"


def test_a_failed_gpu_does_not_hide_the_first_error():
    layout = layout_of(nn.Linear(2, 2))
    parameters, gradients = blocks(layout)
    memory = DeviceMemory(layout, dict.fromkeys(spans(layout), CPU), parameters=parameters, gradients=gradients)
    owner = Owner(torch.zeros(1))

    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    memory.close = fails
    Fetching(owner, memory).close("the first error")
    assert owner.calls == ["close"]
    with pytest.raises(RuntimeError, match="illegal memory"):
        Fetching(owner, memory).close()
    assert owner.calls == ["close", "close"]


# --- a whole run


def trained(directory, monkeypatch, devices=None):
    """One process: its reports, and its final checkpoint as bytes."""
    reports = []
    if devices is not None:
        monkeypatch.setattr(
            owner, "place_model", lambda built, *_, **__: {spec.name: CPU for spec in built.layout.specs}
        )
        monkeypatch.setattr(parts, "DeviceMemory", partial(DeviceMemory, direct=False))
    (directory / "logs").mkdir(parents=True)
    settings = Settings(
        train_steps=12, batch_size=10, eval_every=4, seed=5, logdir=str(directory), save_checkpoint_steps=6
    )
    alone.run_alone(settings, recipe_of(), reports.append)
    monkeypatch.undo()
    (checkpoint,) = directory.glob("checkpoints/step-*12")
    (finished,) = (report for report in reports if isinstance(report, Finished))
    evaluated = [report for report in reports if type(report).__name__ == "Evaluated"]
    return finished.train_loss, evaluated, {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


def test_one_process_gives_the_same_bits_by_copies(tmp_path, monkeypatch):
    direct = trained(tmp_path / "direct", monkeypatch)
    copied = trained(tmp_path / "copied", monkeypatch, devices="copied")

    assert direct == copied
    assert len(direct[1]) == 3
    assert direct[1][0].values["validation_loss"] != direct[1][0].values["validation_loss_ema"]
