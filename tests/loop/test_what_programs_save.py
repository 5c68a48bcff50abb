"""Files that a program writes by `torch.save` are those of plain PyTorch, and checkpoints have what it has trained."""

import io

import pytest
import torch
from loops_in_one_process import EVERY_KEPT_WAY, EVERY_WAY, IN_FLIGHT, KEPT, WAYS, Centred, Program, good, plain, run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evener.errors import ConfigError
from evener.report import Line
from evener.trained import find


def written(what):
    """The bytes of torch.save, and what torch.load makes of them."""
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return len(file.getbuffer()), torch.load(file)


class Saves(Program):
    """A network that counts its batches in whole numbers, a large second model, and a schedule."""

    def make(self):
        torch.manual_seed(1)
        first, second = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), nn.Linear(100, 100)
        optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
        return [first, second, optimizer, self.loader(), torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    def loader(self):
        return DataLoader(TensorDataset(torch.randn(8, 3)), 4)

    def loop(self, ev, first, second, optimizer, loader, scheduler):
        for _ in range(self.epochs):
            for (inputs,) in loader:
                optimizer.zero_grad()
                (first(inputs).mean() + second.weight.mean()).backward()
                optimizer.step()
            scheduler.step()
        return written({"model": first.state_dict(), "scheduler": scheduler.state_dict()})


@EVERY_WAY
def test_torch_save_writes_one_model_and_its_schedule_as_without_evener(way, tmp_path):
    size, found = good(run(way, Saves(), tmp_path)).ends[0]
    usual, expected = good(run("plain", Saves(), tmp_path)).ends[0]
    assert size < 2 * usual
    assert set(found["model"]) == set(expected["model"])
    assert found["scheduler"].keys() == expected["scheduler"].keys()
    assert found["scheduler"]["last_epoch"] == expected["scheduler"]["last_epoch"]


class Replaces(Program):
    """Puts other tensors in the place of what it trains, as an optimizer or a renormalisation of its own may."""

    momentum = 0.0

    def make(self):
        torch.manual_seed(1)
        model = Centred()
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def step(self, model, optimizer, batch):
        loss = super().step(model, optimizer, batch)
        model.linear.bias.data = model.linear.bias.data.clone()
        return loss


@pytest.mark.parametrize("way", [way for way in KEPT if "2 workers" not in way and way not in IN_FLIGHT])
def test_a_checkpoint_has_the_tensors_that_a_program_put_in_the_place_of_others(way, tmp_path):
    ran = good(run(way, Replaces(), tmp_path))
    saved = find(tmp_path).tensors(ema=False)
    model = ran.made[0][0]
    for name, value in model.state_dict().items():
        assert torch.equal(saved[name], value), name
    if WAYS[way][1] == 2:
        other = ran.made[1][0].state_dict()
        assert all(torch.equal(other[name], value) for name, value in model.state_dict().items() if name != "centre")


# --- optimizers, whose state is the servers'


class SavesItsOptimizer(Program):
    def loop(self, ev, model, optimizer, loader):
        super().loop(ev, model, optimizer, loader)
        return optimizer.state_dict(), optimizer.state_dict()


@EVERY_KEPT_WAY
def test_a_state_dict_without_state_is_told_once(way, tmp_path):
    ran = good(run(way, SavesItsOptimizer(), tmp_path))
    told = [line.text for line in ran.reported(Line) if "holds its settings alone" in line.text]
    for saved, _ in ran.ends:
        assert bool(saved["state"]) != ("ps" in way)
    assert len(told) == (len(ran.ends) if "ps" in way else 0)


class LoadsItsOptimizer(Program):
    def loop(self, ev, model, optimizer, loader):
        optimizer.load_state_dict(optimizer.state_dict())


@EVERY_KEPT_WAY
def test_state_that_comes_too_late_is_refused_where_it_would_be_lost(way, tmp_path):
    ends = run(way, LoadsItsOptimizer(), tmp_path).ends
    if "ps" in way:
        assert any(isinstance(end, ConfigError) and "load checkpoints before prepare" in str(end) for end in ends)
    else:
        assert set(ends) == {None}


class Wraps(Program):
    """`accelerator.prepare` takes an optimizer's state, puts it on its device and loads it again. Then rates change."""

    def loop(self, ev, model, optimizer, loader):
        of_accelerate = {"__name__": "accelerate.optimizer"}
        exec("class Shell:\n def __init__(self, one): one.load_state_dict(one.state_dict())", of_accelerate)
        of_accelerate["Shell"](optimizer)
        optimizer.param_groups[0]["lr"] /= 4
        super().loop(ev, model, optimizer, loader)


@pytest.mark.parametrize("way", ["alone, kept", "1 ps, 1 worker", "2 ps, 1 worker"])
def test_accelerate_may_load_what_is_there(way, tmp_path):
    ran = good(run(way, Wraps(), tmp_path))
    assert all(map(torch.equal, ran.values(), plain(Wraps(), tmp_path)))


class Factored(Program):
    """One of its settings is a pair in which there is nothing at first: eps=(None, 0.001)."""

    def make(self):
        model, _, loader = super().make()
        return [model, torch.optim.Adafactor(model.parameters(), lr=0.01), loader]


@pytest.mark.parametrize("way", ["1 ps, 1 worker", "1 ps, 1 worker, in flight", "2 towers"])
def test_settings_may_be_pairs_with_nothing_in_them(way, tmp_path):
    good(run(way, Factored(), tmp_path))


class SavesBest(Program):
    """Stops early, and saves the best values that it has seen: ones. Or does so between two steps, and goes on."""

    def __init__(self, file, *, goes_on=False):
        super().__init__(epochs=1)
        self.file, self.goes_on = file, goes_on

    def loop(self, ev, model, optimizer, loader):
        for number, batch in enumerate(loader):
            self.step(model, optimizer, batch)
            if number == 1:
                own = {name: value.clone() for name, value in model.state_dict().items()}
                model.load_state_dict({name: torch.ones_like(value) for name, value in own.items()})
                ev.save(self.file)
                if not self.goes_on:
                    break
                model.load_state_dict(own)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("way", [way for way in KEPT if "2 workers" not in way])
def test_what_a_program_saves_is_what_its_model_has_then(way, goes_on, tmp_path):
    file = tmp_path / "best.pt"
    ran = run(way, SavesBest(file, goes_on=goes_on), tmp_path / "logs")
    assert not [end for end in ran.ends if isinstance(end, ConfigError)]
    assert all(value.eq(1).all() for value in torch.load(file).values())
