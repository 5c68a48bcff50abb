"""What programs do with their tensors, alone with checkpoints, in towers and on ps tasks: as in plain PyTorch."""

import pytest
import torch
from loops_in_one_process import KEPT, Centred, Program, good, plain, run
from torch import nn

from evener.report import Line
from evener.trained import find

ALONE = [way for way in KEPT if "ps" not in way and "towers" not in way]
HERE = [way for way in KEPT if "ps" not in way]


def saved(directory):
    return find(directory).tensors(ema=False)


class Shares(Program):
    """Sends its model to another process after its first epoch, as `torch.multiprocessing` does."""

    def loop(self, ev, model, optimizer, loader):
        for epoch in range(self.epochs):
            for batch in loader:
                self.step(model, optimizer, batch)
            if not epoch:
                model.share_memory()
        return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("way", [*ALONE, "1 ps, 1 worker", "1 ps, 1 worker, in flight"])
def test_a_model_that_is_sent_to_another_process_goes_on_training(way, tmp_path):
    ran = good(run(way, Shares(), tmp_path))
    expected = plain(Shares(), tmp_path)
    if "in flight" not in way:
        assert all(map(torch.equal, ran.ends[0], expected))
    for value, (name, _) in zip(ran.ends[0], ran.made[0][0].named_parameters(), strict=True):
        assert torch.equal(saved(tmp_path)[name], value), name


def test_it_stays_shared_where_the_program_holds_it(tmp_path):
    ran = good(run(ALONE[0], Shares(), tmp_path))
    assert all(p.is_shared() for p in ran.made[0][0].parameters())


ENDS = {
    "half": lambda model: model.half(),
    "rounded": lambda model: [setattr(p, "data", p.data.round()) for p in model.parameters()],
    "emptied": lambda model: [setattr(p, "data", torch.empty(0)) for p in model.parameters()],
    "deleted": lambda model: delattr(model, "centre"),
    "nothing": lambda model: setattr(model, "centre", None),
    "meta": lambda model: model.to("meta"),
}


class Ends(Program):
    """Does something with its model when it is trained."""

    momentum = 0.0

    def __init__(self, end=None):
        super().__init__(epochs=1)
        self.end = end

    def make(self):
        torch.manual_seed(1)
        model = Centred()
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def loop(self, ev, model, optimizer, loader):
        super().loop(ev, model, optimizer, loader)
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        if self.end is not None:
            ENDS[self.end](model)
        return trained


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", HERE)
def test_at_its_end_a_program_may_do_with_its_model_as_it_likes(way, end, tmp_path):
    trained = good(run(way, Ends(end), tmp_path)).ends[0]
    for name, value in trained.items():
        assert torch.equal(saved(tmp_path)[name], value), name


class Exchanges(Program):
    """Two networks that change places after each epoch."""

    def make(self):
        torch.manual_seed(1)
        model = nn.ModuleDict({"one": nn.Linear(3, 1).double(), "other": nn.Linear(3, 1).double()})
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def loop(self, ev, model, optimizer, loader):
        one, other = model["one"].weight, model["other"].weight
        for _ in range(self.epochs):
            for inputs, target in loader:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model["one"](inputs), target) + model["other"](inputs).square().mean()
                loss.backward()
                optimizer.step()
            one.data, other.data = other.data, one.data
        return [p.detach().clone() for p in model.parameters()]


class Turns(Program):
    """A square weight that is turned about between two epochs."""

    def make(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def loop(self, ev, model, optimizer, loader):
        for epoch in range(self.epochs):
            for batch in loader:
                self.step(model, optimizer, batch)
            if not epoch:
                model[0].weight.data = model[0].weight.data.t()
        return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("program", [Exchanges, Turns])
@pytest.mark.parametrize("way", ALONE)
def test_tensors_that_change_places_or_are_turned_about_stay_what_they_are(way, program, tmp_path):
    ran = good(run(way, program(), tmp_path))
    assert all(map(torch.equal, ran.ends[0], plain(program(), tmp_path)))


@pytest.mark.parametrize("way", HERE)
def test_a_weight_that_was_turned_about_is_saved_so(way, tmp_path):
    ran = good(run(way, Turns(), tmp_path))
    for value, (name, _) in zip(ran.ends[0], ran.made[0][0].named_parameters(), strict=True):
        assert torch.equal(saved(tmp_path)[name], value), name


class Images(Turns):
    """Its kernels are laid out by channels once it is prepared."""

    def make(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 1)).double()
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def loop(self, ev, model, optimizer, loader):
        model.to(memory_format=torch.channels_last)
        super(Turns, self).loop(ev, model, optimizer, loader)
        return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("way", HERE)
def test_kernels_in_another_order_are_saved_as_they_are(way, tmp_path):
    ran = good(run(way, Images(), tmp_path))
    for value, (name, _) in zip(ran.ends[0], ran.made[0][0].named_parameters(), strict=True):
        assert torch.equal(saved(tmp_path)[name], value), name


class Scaled(nn.Module):
    """Two layers with an optimizer each, over a scale that is another tensor after each forward."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3).double(), nn.Linear(3, 1).double()
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

    def forward(self, inputs):
        hidden = self.first(inputs)
        self.scale = 0.9 * self.scale + 0.1 * hidden.detach().abs().mean()
        return self.last(hidden * self.scale)


class StepsBetween(Program):
    """Its second backward comes after the first optimizer's step, and it compares what the step has changed."""

    def make(self):
        torch.manual_seed(1)
        model = Scaled()
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.05) for part in (model.first, model.last)]
        return [model, *optimizers, self.loader()]

    def loop(self, ev, model, one, other, loader):
        moved = []
        for _ in range(self.epochs):
            for inputs, target in loader:
                before = model.scale
                one.zero_grad()
                other.zero_grad()
                hidden = model.first(inputs) * model.scale
                loss = nn.functional.mse_loss(model(inputs), target)
                loss.backward()
                made, its_value = model.scale, model.scale.clone()
                other.step()
                assert torch.equal(made, its_value)  # a tensor that the program holds is not written
                hidden.square().mean().backward()
                one.step()
                moved.append(not torch.equal(before, model.scale))
        return moved


@pytest.mark.parametrize("way", HERE)
def test_buffers_that_a_model_replaces_are_left_to_autograd_and_to_the_program(way, tmp_path):
    ran = good(run(way, StepsBetween(), tmp_path))
    assert all(all(moved) for moved in ran.ends)
    if way in ALONE:
        assert all(map(torch.equal, ran.values(), plain(StepsBetween(), tmp_path)))
    assert torch.equal(saved(tmp_path)["scale"], ran.made[0][0].scale)


class Grows(Program):
    """A buffer gets its size in the first forward, another one is resized, as observers of quantization are."""

    def make(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 1)).double()
        model.register_buffer("seen", torch.empty(0))
        model.register_buffer("least", torch.zeros(1))
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def step(self, model, optimizer, batch):
        model.seen = torch.ones(3)
        model.least.resize_(3).fill_(1.0)
        return super().step(model, optimizer, batch)


@pytest.mark.parametrize("way", HERE)
def test_a_buffer_of_another_size_is_the_models_own_and_told_once(way, tmp_path):
    ran = good(run(way, Grows(), tmp_path))
    if way in ALONE:
        assert all(map(torch.equal, ran.values(), plain(Grows(), tmp_path)))
    told = [line.text for line in ran.reported(Line) if "checkpoints keep the last" in line.text]
    assert len(told) == 2 and "seen was float32 [0] at prepare and is float32 [3] now" in told[0]


class Norms(Program):
    """Returns what its buffers are when it begins, and when it ends."""

    def make(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
        return [model, torch.optim.SGD(model.parameters(), lr=0.01), self.loader()]

    def loop(self, ev, model, optimizer, loader):
        begun = [buffer.clone() for buffer in model.buffers()]
        super().loop(ev, model, optimizer, loader)
        return begun, [buffer.clone() for buffer in model.buffers()]


@pytest.mark.parametrize("way", HERE)
def test_a_run_that_goes_on_has_the_buffers_of_its_checkpoint(way, tmp_path):
    _, ended = good(run(way, Norms(), tmp_path)).ends[0]
    for begun, _ in good(run(way, Norms(epochs=4), tmp_path)).ends:
        assert len(begun) == 3 and all(map(torch.equal, begun, ended))
    assert int(ended[2]) > 0
