"""With ps tasks parameters are theirs: what a program does to them itself is refused, unless it puts them back."""

import copy

import pytest
import torch
from loops_in_one_process import EXACT, IN_FLIGHT, Program, audited, good, plain, run
from torch import nn

from evener.errors import ConfigError
from evener.loop import serving
from evener.loop.parts import sorted_out
from evener.loop.serving import _watch_hooks
from evener.report import Line
from evener.settings import Settings
from evener.task.script import Joining, Over

WITH_SERVERS = pytest.mark.parametrize("way", ["1 ps, 1 worker", "2 ps, 1 worker", "1 ps, 1 worker, in flight"])


class Averages(Program):
    """Validates its moving averages after each pass, in the model itself: the usual recipe for them."""

    def loop(self, ev, model, optimizer, loader):
        average = copy.deepcopy(model.state_dict())
        for _ in range(self.epochs):
            for batch in loader:
                self.step(model, optimizer, batch)
                for name, value in model.state_dict().items():
                    average[name].mul_(0.9).add_(value, alpha=0.1)
            own = copy.deepcopy(model.state_dict())
            model.load_state_dict(average)
            model(batch[0])
            model.load_state_dict(own)


@pytest.mark.parametrize("way", EXACT)
def test_other_values_may_be_looked_at_between_two_passes(way, tmp_path):
    ran = good(run(way, Averages(), tmp_path))
    assert all(map(torch.equal, ran.values(), plain(Averages(), tmp_path)))
    audited(tmp_path)


@pytest.mark.parametrize("way", IN_FLIGHT)
def test_also_with_two_gradients_in_flight(way, tmp_path):
    good(run(way, Averages(), tmp_path))


class Glances(Program):
    """Looks at its averages after some steps of a pass, from the so-many-th on."""

    def __init__(self, every: int, back: float = 0.0) -> None:
        super().__init__()
        self.every, self.steps, self.back = every, 0, back

    def stepped(self, ev, epoch, number):
        self.steps += 1
        if self.steps % self.every == 0:
            self.glance(ev)

    def glance(self, ev):
        (model,) = ev._prepared().models
        own = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter, mine in zip(model.parameters(), own, strict=True):
                parameter.zero_()
                parameter.copy_(mine + self.back)


@pytest.mark.parametrize("every", [1, 3, 4, 6])
@WITH_SERVERS
def test_other_values_may_be_looked_at_between_any_two_steps(way, every, tmp_path):
    good(run(way, Glances(every), tmp_path))


@WITH_SERVERS
def test_what_is_put_back_must_be_every_bit(way, tmp_path):
    (end,) = run(way, Glances(5, back=1e-9), tmp_path).ends
    assert isinstance(end, ConfigError) and "has changed trained parameters by itself" in str(end)


class Phases(Program):
    """Its second optimizer came too late for `prepare`."""

    def loop(self, ev, model, optimizer, loader):
        for batch in loader:
            self.step(model, optimizer, batch)
        late = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in loader:
            self.step(model, late, batch)


@WITH_SERVERS
def test_an_optimizer_that_was_not_prepared_is_refused_at_the_end_of_its_pass(way, tmp_path):
    (end,) = run(way, Phases(), tmp_path).ends
    assert isinstance(end, ConfigError) and "has changed trained parameters by itself" in str(end)
    assert "give every optimizer to prepare" in str(end)


@pytest.mark.parametrize(("program", "differ"), [(Program, False), (Averages, False), (Phases, True)])
def test_towers_whose_parameters_are_not_the_same_any_more_are_told(program, differ, tmp_path):
    ran = good(run("2 towers", program(), tmp_path))
    told = [line.text for line in ran.reported(Line) if "the towers' parameters differ" in line.text]
    assert len(told) == differ
    assert differ != all(map(torch.equal, ran.values(0), ran.values(1)))


class LoadsBest(Program):
    """Reads its training data with the best values that it has seen."""

    def loop(self, ev, model, optimizer, loader):
        best = copy.deepcopy(model.state_dict())
        for batch in loader:
            self.step(model, optimizer, batch)
        model.load_state_dict(best)
        for batch in loader:
            model(batch[0])


@WITH_SERVERS
def test_values_that_an_answer_would_undo_are_refused(way, tmp_path):
    (end,) = run(way, LoadsBest(), tmp_path).ends
    assert isinstance(end, ConfigError) and "has changed trained parameters by itself" in str(end)


class KeepsBest(Program):
    """Ends with the best values that it has seen."""

    def loop(self, ev, model, optimizer, loader):
        super().loop(ev, model, optimizer, loader)
        model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})


@WITH_SERVERS
def test_at_its_end_a_program_may_do_as_it_likes(way, tmp_path):
    assert all(value.eq(0).all() for value in good(run(way, KeepsBest(), tmp_path)).values())


class StopsEarly(Program):
    """The same, in the middle of a pass: the answer to its last gradient is still to come."""

    def loop(self, ev, model, optimizer, loader):
        for number, batch in enumerate(loader):
            self.step(model, optimizer, batch)
            if number == 3:
                break
        model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})


@WITH_SERVERS
def test_at_its_end_it_may_also_where_it_stops_early(way, tmp_path):
    assert all(value.eq(0).all() for value in good(run(way, StopsEarly(), tmp_path)).values())


class Clamps(Program):
    """Keeps its parameters small by a hook of its optimizer."""

    past = False  # whether the hook goes to the model, past the optimizer

    def make(self):
        model, optimizer, loader = super().make()

        def clamp(taking, _args, _kwargs):
            mine = model.parameters() if self.past else [p for group in taking.param_groups for p in group["params"]]
            with torch.no_grad():
                for parameter in mine:
                    parameter.clamp_(-0.2, 0.2)

        optimizer.register_step_post_hook(clamp)
        return [model, optimizer, loader]


class ClampsTheModel(Clamps):
    past = True


@pytest.mark.parametrize("way", EXACT)
def test_a_hook_of_the_optimizer_changes_what_it_updates(way, tmp_path):
    assert all(map(torch.equal, good(run(way, Clamps(), tmp_path)).values(), plain(Clamps(), tmp_path)))


def in_a_ps_task(model, *optimizers):
    """An optimizer has other parameters there, whose gradients come from workers."""
    _watch_hooks(optimizers, model)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
    return optimizers[0]


def test_one_that_goes_past_the_optimizer_is_refused_in_a_ps_task():
    model, optimizer, _ = ClampsTheModel().make()
    with pytest.raises(ConfigError, match="a step hook of SGD has changed parameters of the model by itself"):
        in_a_ps_task(model, optimizer).step()


def test_also_where_no_version_counter_tells_of_it():
    model, optimizer, _ = Program().make()

    def clamp(*_):
        model[0].weight.data.clamp_(-0.2, 0.2)

    optimizer.register_step_post_hook(clamp)
    with pytest.raises(ConfigError, match="has changed parameters of the model by itself"):
        in_a_ps_task(model, optimizer).step()


def clips_norm(model):
    nn.utils.clip_grad_norm_(model.parameters(), 1e6)


def clips_values(model):
    for parameter in model.parameters():
        parameter.grad.data.clamp_(-1, 1)


def replaces(model):
    for parameter in model.parameters():
        parameter.grad = parameter.grad / 2


@pytest.mark.parametrize("change", [clips_norm, clips_values, replaces])
def test_nor_may_one_change_the_gradients_of_the_model_which_are_none(change):
    model, optimizer, _ = Program().make()
    optimizer.register_step_pre_hook(lambda *_: change(model))
    with pytest.raises(ConfigError, match="a step hook of SGD has changed gradients of the model by itself"):
        in_a_ps_task(model, optimizer).step()


def test_hooks_of_the_optimizer_s_own_parameters_may_do_as_they_like():
    model, optimizer, _ = Clamps().make()

    def clip(taking, _args, _kwargs):
        for group in taking.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 0.1)

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(lambda *_: model.zero_grad())
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    in_a_ps_task(model, optimizer, other)
    for _ in range(4):
        optimizer.step()
        other.step()


class Follows(Program):
    """A target network: prepared, but in no optimizer."""

    def make(self):
        model, optimizer, loader = super().make()
        return [model, optimizer, loader, copy.deepcopy(model)]

    def loop(self, ev, model, optimizer, loader, target):
        for batch in loader:
            self.step(model, optimizer, batch)
            for mine, its in zip(target.parameters(), model.parameters(), strict=True):
                mine.data.lerp_(its.data, 0.1)


@pytest.mark.parametrize(("program", "way", "told"), [
    (Follows, "alone, kept", 1), (Follows, "2 towers", 1), (Program, "alone, kept", 0), (Program, "2 towers", 0),
])  # fmt: skip
def test_what_checkpoints_do_not_hold_is_told_when_a_program_changes_it(program, way, told, tmp_path):
    ran = good(run(way, program(), tmp_path))
    lines = [line.text for line in ran.reported(Line) if "which no optimizer trains" in line.text]
    assert len(lines) == told
    assert all("'model1." in line and "not in the checkpoints" in line for line in lines)


@WITH_SERVERS
def test_ps_tasks_refuse_it_with_words_for_a_loop_of_ones_own(way, tmp_path):
    (end,) = run(way, Follows(), tmp_path).ends
    assert isinstance(end, ConfigError) and "'model1." in str(end)
    assert "In a loop of your own leave its model out of prepare" in str(end)


class Schedules(Program):
    """Its scheduler was made too late for `prepare`."""

    def loop(self, ev, model, optimizer, loader):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
        for batch in loader:
            self.step(model, optimizer, batch)
            scheduler.step()


@pytest.mark.parametrize(("way", "told"), [("1 ps, 1 worker", 0), ("1 ps, 2 workers", 1)])
def test_a_scheduler_that_counts_the_steps_of_one_of_several_workers_is_told(way, told, tmp_path):
    ran = good(run(way, Schedules(), tmp_path))
    found = [line.task for line in ran.reported(Line) if "has a scheduler that prepare was not given" in line.text]
    assert len(set(found)) == len(found)  # the chief tells it, which may be one after the other
    assert bool(found) == bool(told)


def test_a_ps_task_says_that_hooks_run_there(monkeypatch):
    reports = []
    joining = Joining(job="ps", index=0, settings=Settings(script="train.py", ps=1), report=reports.append)
    monkeypatch.setattr(serving, "run_server", lambda *_, **__: None)
    for program in (Program(), Clamps()):
        parts = sorted_out(program.make())
        with pytest.raises(Over):
            serving.serve(joining, parts, None)
    (line,) = reports
    assert "the step hooks of SGD run here" in line.text


class HooksLate(Program):
    after = False

    def loop(self, ev, model, optimizer, loader):
        register = optimizer.register_step_post_hook if self.after else optimizer.register_step_pre_hook
        register(lambda *_: None)


class HooksLateAfter(HooksLate):
    after = True


@WITH_SERVERS
@pytest.mark.parametrize("program", [HooksLate, HooksLateAfter])
def test_a_hook_that_nobody_would_call_is_refused(program, way, tmp_path):
    (end,) = run(way, program(), tmp_path).ends
    assert isinstance(end, ConfigError) and "a step hook of SGD was registered after prepare" in str(end)
    assert "register it before prepare" in str(end)


@pytest.mark.parametrize("way", ["alone", "alone, kept", "2 towers"])
def test_where_steps_are_taken_here_hooks_are_the_program_s_own(way, tmp_path):
    good(run(way, HooksLate(), tmp_path))
