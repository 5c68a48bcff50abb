"""Towers that each run the program: where its gradients travel changes nothing but memory."""

import pytest
import torch
from loops_in_one_process import Program, good, run
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from evener.loop import averaging
from evener.report import Line

#: Numbers of a layer that is large: 1 MB and more of float32.
MANY = 1 << 18


class Large(Program):
    """Two optimizers, of which one steps with every second batch; layers of 1 MB, one of them seldom used, one whose
    gradients are laid out in another order, and two with one gradient that the program has set."""

    def make(self):
        torch.manual_seed(1)
        layers = nn.ModuleDict({
            "first": nn.Linear(3, MANY), "last": nn.Linear(MANY, 1), "seldom": nn.Linear(3, MANY),
            "image": nn.Conv2d(512, 64, 3),
            "one": nn.Linear(MANY, 1, bias=False), "same": nn.Linear(MANY, 1, bias=False),
        })  # fmt: skip
        often = [p for name in ("first", "seldom", "one", "same") for p in layers[name].parameters()]
        others = [p for p in layers.parameters() if all(p is not mine for mine in often)]
        return [layers, *(torch.optim.SGD(some, lr=1e-6, momentum=0.9) for some in (often, others)), self.loader()]

    def loop(self, ev, layers, often, others, loader):
        images = torch.ones(1, 512, 3, 3)
        for number, batch in enumerate(loader):
            often.zero_grad()
            others.zero_grad()
            inputs, target = (one.float() for one in batch)
            loss = nn.functional.mse_loss(layers["last"](torch.tanh(layers["first"](inputs))), target)
            if (number + ev.worker) % 3 == 0:
                loss = loss + layers["seldom"](inputs).square().mean()
            (loss + (layers["image"](images) * inputs.mean()).square().mean()).backward()
            image = layers["image"].weight
            image.grad = image.grad.to(memory_format=torch.channels_last)
            layers["one"].weight.grad = layers["same"].weight.grad = torch.full((1, MANY), inputs.sum().item())
            often.step()
            if number % 2:
                others.step()


@pytest.mark.parametrize("towers", [2, 3])
def test_large_gradients_are_summed_where_they_are_with_the_bits_of_those_that_are_copied(
    towers, tmp_path, monkeypatch
):
    program = Large(epochs=1, batches=4 * towers)
    found = {}
    for large in (averaging.LARGE, 1 << 40):
        monkeypatch.setattr(averaging, "LARGE", large)
        ran = good(run("2 towers", program, tmp_path / str(large), towers=towers))
        found[large] = [ran.values(tower) for tower in range(towers)]
    one, other = found.values()
    for tower in range(towers):
        assert all(map(torch.equal, one[tower], other[tower])) and all(map(torch.equal, one[tower], one[0]))
    begun = program.make()[0].parameters()
    assert not any(map(torch.equal, one[0], begun))


class Holds(Large):
    """Looks where its large gradients are after a step."""

    def loop(self, ev, layers, often, others, loader):
        moved = []
        for inputs, _ in loader:
            layers["last"](torch.tanh(layers["first"](inputs.float()))).square().mean().backward()
            before = layers["last"].weight.grad.data_ptr(), layers["first"].weight.grad.data_ptr()
            often.step()
            moved.append(before != (layers["last"].weight.grad.data_ptr(), layers["first"].weight.grad.data_ptr()))
        return moved


def test_a_gradient_stays_where_autograd_has_put_it(tmp_path):
    for moved in good(run("2 towers", Holds(epochs=1, batches=4), tmp_path)).ends:
        assert moved == [False, False]


class LeavesOut(Program):
    """Two optimizers. One tower leaves out a step of the first, as a GradScaler does, and so meets the other towers
    where they are at the other optimizer from then on. Looks at its gradients before each step."""

    def make(self):
        torch.manual_seed(1)
        critic, maker = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (critic, maker)]
        return [nn.ModuleDict({"critic": critic, "maker": maker}), *optimizers, self.loader()]

    def loop(self, ev, models, criticizes, makes, loader):
        for number, (inputs, _) in enumerate(loader):
            criticizes.zero_grad()
            makes.zero_grad()
            for name, optimizer in (("critic", criticizes), ("maker", makes)):
                loss = models[name](inputs).square().mean()
                own = torch.autograd.grad(loss, list(models[name].parameters()), retain_graph=True)
                loss.backward()
                assert all(map(torch.allclose, [p.grad for p in models[name].parameters()], own)), (number, name)
                if name == "maker" or (ev.worker, number) != (0, 0):
                    optimizer.step()
                    others = models["maker" if name == "critic" else "critic"]
                    assert all(p.grad is None for p in others.parameters()) == (name == "critic")


@pytest.mark.parametrize("large", [1, averaging.LARGE])
def test_a_step_of_another_optimizer_leaves_the_gradients_of_a_tower_that_has_not_come_to_it(
    large, tmp_path, monkeypatch
):
    monkeypatch.setattr(averaging, "LARGE", large)
    ran = good(run("2 towers", LeavesOut(epochs=2, batches=8), tmp_path))
    assert all(map(torch.equal, ran.values(0), ran.values(1)))


class Shares(LeavesOut):
    """Gives the parameters of both optimizers one and the same gradient, and takes steps of the first alone."""

    def loop(self, ev, models, criticizes, makes, loader):
        pairs = list(zip(models["critic"].parameters(), models["maker"].parameters(), strict=True))
        for _ in loader:
            for one, other in pairs:
                one.grad = other.grad = torch.full_like(one, 1.0 + ev.worker)
            criticizes.step()
            assert all(one.grad.eq(1.5).all() and other.grad.eq(1.0 + ev.worker).all() for one, other in pairs)


@pytest.mark.parametrize("large", [1, averaging.LARGE])
def test_a_gradient_that_is_another_parameter_s_too_stays_there_as_it_is(large, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "LARGE", large)
    good(run("2 towers", Shares(epochs=1, batches=4), tmp_path))


class Streams(Program):
    """A stream, of which one tower uses fewer batches. `late`: it gives one of the others to an optimizer that was not
    prepared."""

    def __init__(self, late: bool = False) -> None:
        super().__init__(epochs=1 if late else 2)
        self.late = late

    def loader(self):
        return DataLoader(Stream(), 1)

    def loop(self, ev, model, optimizer, loader):
        late = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(self.epochs):
            for number, batch in enumerate(loader):
                if ev.worker == 0 or number < 9:
                    self.step(model, optimizer, batch)
                elif self.late and number == 9:
                    self.step(model, late, batch)


class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.full((3,), n / 22, dtype=torch.float64), torch.ones(1, dtype=torch.float64)) for n in range(22))


def test_parameters_of_towers_are_compared_at_steps_1_2_4_8_and_where_a_pass_ends(tmp_path, monkeypatch):
    """And not at each step for which one of them has no batch."""
    made, checksum = [], averaging.checksum
    monkeypatch.setattr(averaging, "checksum", lambda tensors: made.append(1) or checksum(tensors))
    ran = good(run("2 towers", Streams(), tmp_path))
    assert ran.loops[0].step == 22
    assert len(made) == 2 * (len((1, 2, 4, 8, 16)) + 2)


@pytest.mark.parametrize("late", [False, True])
def test_a_change_by_one_tower_is_told_where_the_pass_ends(late, tmp_path):
    ran = good(run("2 towers", Streams(late), tmp_path))
    assert any("the towers' parameters differ" in line.text for line in ran.reported(Line)) == late


class Normed(Program):
    def make(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4), nn.Linear(4, 1)).double()
        return [model, torch.optim.SGD(model.parameters(), lr=0.1), self.loader()]

    def loop(self, ev, *made):
        """It runs on GPUs alone."""


@pytest.mark.parametrize(("program", "hidden"), [(Program(epochs=1), True), (Normed(), False)])
def test_who_looks_for_other_processes_finds_none_but_where_the_model_is_made_to(program, hidden, tmp_path):
    """`torchmetrics` would wait for all towers in what the chief computes."""
    ran = good(run("2 towers", program, tmp_path))
    assert [member.hidden for member in ran.members] == [hidden] * 2
