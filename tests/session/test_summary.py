"""What the chief writes is what TensorBoard reads, and writing changes nothing of the training."""

import itertools
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.summary.writer import event_file_writer
from torch import nn

from evener.data.batches import Batches
from evener.data.dataset import Tensors
from evener.errors import SessionError
from evener.modes import Bounded, Sync
from evener.recipes.recipe import Recipe
from evener.report import Evaluated, Line
from evener.session.hooks import Hook
from evener.session.session import Session
from evener.session.summary import Summaries
from evener.settings import Settings
from evener.state.tensors import specs_of
from evener.wire.layout import Layout
from evener.worker.compute.towers import Towers
from evener.worker.exchange.exchange import Turn

CURVES = ["loss", "learning_rate", "examples_per_second", "global_steps_per_second", "staleness", "dropped_gradients",
          "waiting_for_data"]  # fmt: skip
#: One step of this worker takes so long, and moves the global step so far: there are others.
SECONDS, JUMP = 0.25, 3


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@dataclass
class Owner:
    """An exchange whose every update is what a test wants; gradients are averaged with zeros of a second worker."""

    towers: Towers
    clock: Clock
    steps: int
    first: int = 0
    chief: object = lambda step: True  # whether this worker is chief at a global step
    local_step: int = 0
    shown: list = field(default_factory=list)

    def turn(self):
        version = self.first + self.local_step * JUMP
        return Turn(
            version=version, lease=self.local_step, stop="done" if self.local_step >= self.steps else "",
            chief=self.chief(version), staleness=self.local_step % 4 or 40, dropped=2 * self.local_step,
            rejected="" if self.local_step % 4 else "too old", learning_rate=0.5 / (1 + self.local_step),
        )  # fmt: skip

    def start(self):
        return self.turn()

    arrivals = 0

    def conclude(self):
        pass

    def update(self, computed):
        self.averaged = {name: g / 2 for name, g in self.towers.copy_of_gradients().items()}
        with torch.no_grad():
            for name, parameter in self.towers.model.named_parameters():
                if name in self.averaged:
                    parameter.sub_(self.averaged[name], alpha=0.1)
        self.parameters = {name: p.detach().clone() for name, p in self.towers.model.named_parameters()}
        self.clock.now += SECONDS
        self.local_step += 1
        return self.turn()

    def show(self, what):
        self.shown.append(what)
        source = self.averaged if what == "gradients" else self.parameters
        with torch.no_grad():
            for name, parameter in self.towers.model.named_parameters():
                if name in source:
                    parameter.copy_(source[name])
        return self.turn().version

    def returned(self):
        return None

    def stop(self, reason, *, complete=True):
        self.steps = self.local_step
        return self.turn()

    def close(self, reason=""):
        pass


class Watch(Hook):
    """Comes after the summaries and remembers what they left behind."""

    def __init__(self):
        self.results, self.parameters, self.alive = [], [], []

    def after_step(self, session, result):
        self.results.append(result)
        self.parameters.append({name: p.detach().clone() for name, p in session.towers.model.named_parameters()})
        self.alive.append(writers())


class Late(Hook):
    """Takes its time before the first step."""

    def begin(self, session):
        session.exchange.clock.now += 100

    after_create = begin


class EvaluateEvery(Hook):
    """Stands for `Evaluate`: figures that are easily recognised."""

    def __init__(self, steps):
        self.steps = steps

    def after_step(self, session, result):
        if result.local_step % self.steps == 0 and not session.turn.stop:
            self.note(session, final=False)

    def end(self, session):
        self.note(session, final=True)

    def note(self, session, *, final):
        step = session.turn.version
        values = {"validation_loss": 1 / (1 + step), "validation_accuracy": 0.5, "validation_accuracy_ema": 0.75}
        session.evaluations.append(Evaluated(step, values, final))


class Branching(nn.Module):
    """A model that a tracer cannot follow, and one parameter of which does not train."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, inputs):
        if torch.jit.is_tracing():
            raise NotImplementedError("not for tracers")
        return self.layer(inputs) + self.frozen


def writers():
    """Threads that write event files just now."""
    return [thread for thread in threading.enumerate() if type(thread).__name__ == "_AsyncWriterThread"]


def train(logdir, *, steps=12, seconds=1.0, before=(), after=(), model=None, settings=None, **owner):
    """One worker's session; returns what the hook behind the summaries saw, the exchange and the lines reported."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    inputs = torch.randn(40, 3)
    recipe = Recipe(
        model=lambda: model, data=lambda: (inputs, inputs), optimizer=lambda m: torch.optim.SGD(m.parameters()),
        ema_decay=0.9, name="tiny",
    )  # fmt: skip
    settings = settings or Settings(batch_size=8, recipe_options={"hidden": "4", "staircase": True, "data": "digits"})
    layout = Layout(specs_of(model), shards=1, placement="even")
    clock, watch, reports = Clock(), Watch(), []
    towers = Towers(
        model, recipe, layout, parameters=bytearray(layout.nbytes), gradients=bytearray(layout.nbytes), seed=1
    )
    exchange = Owner(towers, clock, steps, **owner)
    data = Tensors(inputs, (inputs.sum(1) > 0).long())
    Session(
        "worker:0", exchange, towers, Batches(data, batch_size=8, seed=1),
        [*before, Summaries(logdir, seconds, clock, settings), watch, *after],
        recipe=recipe, settings=settings, report=reports.append, clock=clock,
    ).run()  # fmt: skip
    return watch, exchange, [report.text for report in reports if isinstance(report, Line)]


def read(logdir):
    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return events


def curve(events, name):
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def hyperparameters(events):
    """What the HParams plugin reads: values, metrics, and whether the end was told."""
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)
    parsed = {tag: plugin_data_pb2.HParamsPluginData.FromString(data) for tag, data in content.items()}
    started = parsed[metadata.SESSION_START_INFO_TAG].session_start_info
    values = {name: v.string_value or v.number_value for name, v in started.hparams.items()}
    experiment = parsed[metadata.EXPERIMENT_TAG].experiment
    return values, {metric.name.tag for metric in experiment.metric_infos}, metadata.SESSION_END_INFO_TAG in parsed


@pytest.fixture(autouse=True)
def no_writer_is_left():
    yield
    assert writers() == []


def test_curves_stand_under_the_global_step_every_so_many_seconds_and_at_the_end(tmp_path):
    watch, _, _ = train(tmp_path, steps=10, seconds=1.0)  # a step takes 0.25 s: after 4, 8 and at the end
    events = read(tmp_path)
    steps, results = [12, 24, 30], [watch.results[at - 1] for at in (4, 8, 10)]
    assert [r.global_step for r in results] == steps
    assert set(events.Tags()["scalars"]) == set(CURVES)
    assert curve(events, "loss") == [(r.global_step, r.loss) for r in results]
    assert curve(events, "learning_rate") == [(12, 0.1), (24, 0.5 / 9), (30, 0.5 / 11)]
    assert curve(events, "dropped_gradients") == [(12, 8), (24, 16), (30, 20)]
    # the mean of the gradients applied since the summary before: 1 2 3, 1 2 3, 1 2; those of staleness 40 were dropped
    assert curve(events, "staleness") == [(12, 2), (24, 2), (30, 1.5)]
    # the whole cluster: 3 updates of 8 examples while this worker takes 0.25 s
    assert curve(events, "global_steps_per_second") == [(step, 12) for step in steps]
    assert curve(events, "examples_per_second") == [(step, 96) for step in steps]


def test_rates_begin_with_the_first_step(tmp_path):
    train(tmp_path, steps=4, seconds=1.0, before=[Late()], after=[Late()])
    events = read(tmp_path)
    assert curve(events, "global_steps_per_second") == [(12, 12)]
    assert curve(events, "examples_per_second") == [(12, 96)]


def test_an_update_of_several_gradients_counts_the_examples_of_all(tmp_path):
    train(tmp_path, settings=Settings(mode=Sync(replicas_to_aggregate=3), ps=1, workers=4, batch_size=8))
    assert {event.value for event in read(tmp_path).Scalars("examples_per_second")} == {96 * 3}


def test_evaluations_stand_under_their_own_step_and_are_written_at_once(tmp_path):
    watch, _, _ = train(tmp_path, steps=5, seconds=1000, before=[EvaluateEvery(2)])
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [15]  # only at the end
    for name, values in {
        "validation_loss": [1 / 7, 1 / 13, 1 / 16],
        "validation_accuracy": [0.5] * 3,
        "validation_accuracy_ema": [0.75] * 3,
    }.items():
        assert curve(events, name) == list(zip([6, 12, 15], values, strict=True))
    assert [len(alive) for alive in watch.alive] == [
        0,
        1,
        1,
        1,
        1,
    ]  # nothing is opened before there is something to say


def test_histograms_hold_the_parameters_and_the_averaged_gradients(tmp_path):
    _, exchange, _ = train(tmp_path, steps=7)
    events = read(tmp_path)
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    groups = {"parameters": exchange.parameters, "gradients_on_average": exchange.averaged}
    assert set(events.Tags()["histograms"]) == {f"{group}/{name}" for group in groups for name in names}
    for group, name in itertools.product(groups, names):
        assert [event.step for event in events.Histograms(f"{group}/{name}")] == [12, 21]
        last, tensor = events.Histograms(f"{group}/{name}")[-1].histogram_value, groups[group][name]
        assert (last.num, sum(last.bucket)) == (tensor.numel(), tensor.numel())
        assert [last.min, last.max, last.sum] == pytest.approx(
            [float(tensor.min()), float(tensor.max()), float(tensor.sum())]
        )
        assert last.sum_squares == pytest.approx(float(tensor.square().sum()))


def test_writing_changes_no_parameter(tmp_path):
    watch, exchange, _ = train(tmp_path / "often", seconds=0.01)
    silent, _, _ = train(tmp_path / "never", seconds=1000, chief=lambda step: False)
    assert exchange.shown == ["gradients", "parameters"] * 12
    for after, expected in zip(watch.parameters, silent.parameters, strict=True):
        assert all(torch.equal(after[name], expected[name]) for name in expected)


def test_parameters_come_back_when_a_histogram_fails(tmp_path, monkeypatch):
    def fail(name, *arguments):
        if name.startswith("gradients"):
            raise ValueError("planted")
        return original(name, *arguments)

    from torch.utils.tensorboard import summary

    original = summary.histogram_raw
    monkeypatch.setattr(summary, "histogram_raw", fail)
    with pytest.raises(ValueError, match="planted"):
        train(tmp_path, before=[Keep(kept := [])])
    owner = kept[0].exchange
    assert owner.shown[-1] == "parameters"
    assert all(torch.equal(p, owner.parameters[name]) for name, p in kept[0].towers.model.named_parameters())


class Keep(Hook):
    """Takes the session out of a run that fails."""

    def __init__(self, kept):
        self.kept = kept

    def begin(self, session):
        self.kept.append(session)


def test_numbers_that_no_histogram_can_hold_do_not_end_the_run(tmp_path):
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([math.inf, 1e300]))
        model.weight[0, 0] = math.nan
    train(tmp_path, steps=1, model=DoubleInput(model))
    tags = read(tmp_path).Tags()["histograms"]
    assert "parameters/model.bias" not in tags


class DoubleInput(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs.double())


def test_the_graph_shows_the_layers(tmp_path):
    _, _, lines = train(tmp_path, steps=2)
    nodes = [node.name for node in read(tmp_path).Graph().node]
    assert any("Linear[0]" in name for name in nodes), nodes
    assert any("Linear[2]" in name for name in nodes), nodes
    assert lines == []


def test_the_graph_is_traced_with_the_models_own_parameters(tmp_path, monkeypatch):
    """A copy of them may be large; buffers are its own, since a trace may change them."""
    traced, trace = [], torch.jit.trace
    monkeypatch.setattr(
        torch.jit, "trace", lambda model, *rest, **more: traced.append(model) or trace(model, *rest, **more)
    )
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    train(tmp_path, model=model, steps=2)

    other = traced[0]  # then its layers
    assert other is not model
    assert all(one is mine for one, mine in zip(other.parameters(), model.parameters(), strict=True))
    assert all(one is not mine for one, mine in zip(other.buffers(), model.buffers(), strict=True))


def test_a_model_that_cannot_be_traced_costs_one_line_and_no_run(tmp_path):
    _, _, lines = train(tmp_path, model=Branching())
    assert lines == ["TensorBoard gets no graph: the model cannot be traced (NotImplementedError: not for tracers)"]
    events = read(tmp_path)
    assert not events.Tags()["graph"]
    assert [event.step for event in events.Scalars("loss")] == [12, 24, 36]
    assert "parameters/frozen" not in events.Tags()["histograms"]  # it does not train


def test_hyperparameters_are_numbers_and_texts_beside_the_metrics_of_the_end(tmp_path):
    train(tmp_path, steps=2, before=[EvaluateEvery(100)])
    values, metrics, ended = hyperparameters(read(tmp_path))
    assert values == {
        "recipe": "tiny", "mode": "one process", "ps": 0, "workers": 1, "replicas_to_aggregate": 1, "batch_size": 8,
        "seed": 0, "hidden": 4, "staircase": "True", "data": "digits",
    }  # fmt: skip
    assert metrics == {"validation_loss", "validation_accuracy", "validation_loss_ema", "validation_accuracy_ema"}
    assert ended
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]  # one file, no run beside it


def test_the_recipes_defaults_are_hyperparameters_too(tmp_path):
    settings = Settings(recipe="mnist", mode=Bounded(staleness=7), ps=1, workers=2, recipe_options={"hidden": 20})
    train(tmp_path, steps=1, settings=settings)
    values, _, _ = hyperparameters(read(tmp_path))
    assert (values["hidden"], values["decay"], values["optimizer"]) == (20, 0.99, "sgd")
    assert (values["mode"], values["staleness"]) == ("bounded", 7)


def test_who_is_not_the_chief_writes_nothing(tmp_path):
    train(tmp_path / "logs", chief=lambda step: False)
    assert not (tmp_path / "logs").exists()


def test_the_chief_of_the_end_alone_writes_the_last_steps(tmp_path):
    train(tmp_path, steps=10, before=[EvaluateEvery(100)], chief=lambda step: step == 30)
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("validation_loss")] == [30]
    assert curve(events, "global_steps_per_second") == [(30, 12)]


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """TensorBoard reads files in the order of their names: second, host, process, number.

    Of one second and one process, which no two real runs are, file 10 would come before file 9.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10))


def test_a_worker_that_takes_over_continues_the_curves_and_hides_nothing(tmp_path):
    train(
        tmp_path, steps=6, chief=lambda step: step <= 15
    )  # summaries at 12; its last step shows that another is chief
    assert writers() == []
    train(tmp_path, steps=12, chief=lambda step: step > 15)
    assert len(list(tmp_path.iterdir())) == 2
    assert [event.step for event in read(tmp_path).Scalars("loss")] == [12, 24, 36]


def test_a_run_that_resumes_hides_what_was_rolled_back(tmp_path):
    train(tmp_path, steps=12)  # 12, 24, 36
    loss = read(tmp_path).Scalars("loss")[1].value
    train(tmp_path, steps=5, first=24, seconds=0.5)  # 30, 36, and 39 at the end
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [12, 24, 30, 36, 39]
    assert events.Scalars("loss")[1].value == loss  # that step was not rolled back
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failing_step_closes_the_writer_and_keeps_what_was_written(tmp_path):
    class Fail(Hook):
        def before_step(self, session):
            if session.local_step == 5:
                raise RuntimeError("planted")

    with pytest.raises(SessionError, match="planted"):
        train(tmp_path, after=[Fail()])
    assert writers() == []
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [12]
    assert not hyperparameters(events)[2]  # it did not end well


def test_a_directory_that_cannot_be_written_ends_the_summaries_and_not_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    watch, exchange, lines = train(tmp_path / "file")
    assert len(watch.results) == 12
    [line] = lines
    assert "training goes on" in line and str(tmp_path / "file") in line
    assert exchange.shown == ["gradients", "parameters"]  # it does not go on measuring


@pytest.mark.parametrize("room", [0, 12], ids=["for ever", "for a while"])
def test_a_disk_that_is_full_costs_summaries_and_not_the_run(tmp_path, monkeypatch, room):
    """The writer fails at step 24; then there is room for a probe, or there is none."""
    from torch.utils.tensorboard import FileWriter

    def full(self, summary, step=None, walltime=None):
        if step == 24:
            if not room:
                monkeypatch.setattr(Path, "write_bytes", no_room)
            raise OSError(28, "No space left on device")
        original(self, summary, step, walltime)

    def no_room(path, data):
        raise OSError(28, "No space left on device")

    original = FileWriter.add_summary
    monkeypatch.setattr(FileWriter, "add_summary", full)
    watch, _, lines = train(tmp_path)
    assert len(watch.results) == 12
    told = ["TensorBoard gets nothing for now, training goes on", "TensorBoard gets figures again"]
    assert [line.partition(":")[0] for line in lines] == (told if room else told[:1])
    assert [event.step for event in read(tmp_path).Scalars("loss")] == ([12, 36] if room else [12])
    assert not list(tmp_path.glob(".summary-probe*"))


@pytest.mark.slow
def test_tensorboard_is_imported_at_the_first_write_only():
    import subprocess
    import sys

    code = "import sys, evener.session.summary; print([m for m in sys.modules if 'tensorboard' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
