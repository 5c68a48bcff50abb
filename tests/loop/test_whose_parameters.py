"""With ps tasks parameters are theirs: what a program does to them itself is refused, unless it puts them back."""

import copy

import pytest
import torch
from loops_in_one_process import EXACT, IN_FLIGHT, Program, audited, good, plain, run

from evener.errors import ConfigError
from evener.loop.serving import _watch_hooks
from evener.report import Line

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


def test_one_that_goes_past_the_optimizer_is_refused_in_a_ps_task():
    model, optimizer, _ = ClampsTheModel().make()
    _watch_hooks(optimizer, model)
    with pytest.raises(ConfigError, match="a step hook of SGD has changed parameters of the model by itself"):
        optimizer.step()


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
