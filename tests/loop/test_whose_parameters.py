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


def test_one_that_goes_past_the_optimizer_is_refused_in_a_ps_task():
    model, optimizer, _ = ClampsTheModel().make()
    _watch_hooks(optimizer, model)
    with pytest.raises(ConfigError, match="a step hook of SGD has changed parameters of the model by itself"):
        optimizer.step()
