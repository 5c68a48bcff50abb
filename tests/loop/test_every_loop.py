"""One suite for all who own the parameters of a program's own loop: alone, towers, servers. See docs/own-loop.md."""

import threading

import pytest
import torch
from loops_in_one_process import (
    BATCH,
    BATCHES,
    EVERY_KEPT_WAY,
    EVERY_WAY,
    EXACT,
    IN_FLIGHT,
    IN_LOCKSTEP,
    KEPT,
    Program,
    audited,
    good,
    plain,
    replicas,
    run,
)
from torch import nn
from torch.utils.data import DataLoader

from evener.errors import ConfigError
from evener.report import Finished
from evener.task.script import Over

# --- what is trained


@EVERY_WAY
def test_every_batch_is_applied_once_and_counted(way, tmp_path):
    ran = good(run(way, Program(), tmp_path))
    updates = 3 * BATCHES // replicas(way)
    if way in KEPT:
        found = audited(tmp_path)
        assert (found.updates, found.gradients, found.unapplied) == (updates, 3 * BATCHES, ())
        (finished,) = ran.reported(Finished)
        assert finished.global_step == updates
    assert {loop.step for loop in ran.loops} <= set(range(updates + 1))
    assert max(loop.step for loop in ran.loops) == updates


@pytest.mark.parametrize("way", ["alone", *EXACT])
def test_one_worker_computes_what_the_plain_program_does_bit_for_bit(way, tmp_path):
    ran = good(run(way, Program(), tmp_path))
    assert all(map(torch.equal, ran.values(), plain(Program(), tmp_path)))


class KeepsGradients(Program):
    """One loss, two optimizers that step one after the other, and the gradients of the batch before, as a program that
    looks whether they agree. Its layers are larger than what hooks move (`towers.LARGE`)."""

    def make(self):
        torch.manual_seed(1)
        first, last = nn.Linear(3, 1 << 18).double(), nn.Linear(1 << 18, 1).double()
        optimizers = [torch.optim.SGD(layer.parameters(), lr=1e-6) for layer in (first, last)]
        return [first, last, *optimizers, self.loader()]

    def loop(self, ev, first, last, one, other, loader):
        kept = []
        for _ in range(self.epochs):
            for inputs, target in loader:
                one.zero_grad()
                other.zero_grad()
                nn.functional.mse_loss(last(torch.tanh(first(inputs))), target).backward()
                now = [first.weight.grad, last.weight.grad]
                agrees = sum(float((old * new).sum()) for old, new in zip(kept, now, strict=False)) >= 0
                kept = now  # not cloned: zero_grad lets go of them, and the next backward makes others
                if not agrees:
                    first.weight.grad.mul_(0.5)
                one.step()
                other.step()


@pytest.mark.parametrize("way", ["alone", *EXACT])
def test_gradients_of_large_layers_stay_as_they_are_for_the_next_optimizer_and_after_the_next_backward(way, tmp_path):
    ran = good(run(way, KeepsGradients(epochs=1), tmp_path))
    assert all(map(torch.equal, ran.values(), plain(KeepsGradients(epochs=1), tmp_path)))


class Sums(Program):
    """The gradient of a batch is one whole number in each of many parameters, whatever these are."""

    rate, momentum = 1.0, 0.0

    def make(self):
        model = nn.Linear(1 << 18, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        return [model, torch.optim.SGD(model.parameters(), lr=1.0), self.loader()]

    def step(self, model, optimizer, batch):
        optimizer.zero_grad()
        (model.weight.sum() * (batch[0].sum() * 100).round()).backward()
        optimizer.step()


@pytest.mark.parametrize("way", IN_FLIGHT)
def test_two_gradients_in_flight_are_each_applied_as_they_were_computed(way, tmp_path):
    ran = good(run(way, Sums(), tmp_path))
    (expected,) = plain(Sums(), tmp_path)
    found = torch.cat([server.shard.state.parameters.trained[0] for server in ran.cluster.servers])
    assert found.unique().tolist() == expected.unique().tolist() and len(found) == expected.numel()
    assert max(loop.step for loop in ran.loops) == audited(tmp_path).updates == 3 * BATCHES


def test_the_second_of_two_in_flight_is_computed_on_what_the_first_one_was(tmp_path):
    """Without a loader nobody asks for the newest parameters between two steps, so each gradient is late by one."""

    class Halves(Endless):
        most = 6

        def make(self):
            model = nn.Linear(1, 1, bias=False).double()
            nn.init.ones_(model.weight)
            return [model, torch.optim.SGD(model.parameters(), lr=0.5)]

        def loop(self, ev, model, optimizer):
            seen = []
            while not ev.should_stop():
                seen.append(model.weight.item())
                optimizer.zero_grad()
                (model.weight**2 / 2).sum().backward()
                optimizer.step()
            return [*seen, model.weight.item()]

    (seen,) = good(run("1 ps, 1 worker, in flight", Halves(), tmp_path, train_steps=6)).ends
    expected = [1.0, 1.0]
    while len(expected) < 8:
        expected.append(expected[-1] - 0.5 * expected[-2])
    assert seen == expected


class LooksBack(Program):
    """Its parameters after each pass."""

    def loop(self, ev, *made):
        super().loop(ev, *made)
        return [p.detach().clone() for p in made[0].parameters()]


def test_after_a_pass_the_model_has_what_its_last_step_has_made(tmp_path):
    ran = good(run("1 ps, 1 worker, in flight", LooksBack(epochs=1), tmp_path))
    (server,) = ran.cluster.servers
    assert all(map(torch.equal, ran.ends[0], server.shard.state.parameters.views))


class Watches(Program):
    """Looks whether its parameters change while a gradient is computed: from the first batch of a step to its end."""

    many = 1  # batches of a step

    def loop(self, ev, model, optimizer, loader):
        torn, before = 0, None
        for _ in range(self.epochs):
            for number, batch in enumerate(loader):
                if number % self.many == 0:
                    before = [p.detach().clone() for p in model.parameters()]
                    optimizer.zero_grad()
                nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
                if (number + 1) % self.many == 0:
                    torn += not all(map(torch.equal, before, model.parameters()))
                    optimizer.step()
        return torn


class LooksAhead(Program):
    """Fetches its next batch between forward and backward."""

    def loop(self, ev, model, optimizer, loader):
        torn = 0
        for _ in range(self.epochs):
            rest = iter(loader)
            batch = next(rest, None)
            while batch is not None:
                before = [p.detach().clone() for p in model.parameters()]
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(batch[0]), batch[1])
                if (batch := next(rest, None)) is not None:  # at the end of a pass the newest come, in every mode
                    torn += not all(map(torch.equal, before, model.parameters()))
                loss.backward()
                optimizer.step()
        return torn


@pytest.mark.parametrize("many", [1, 2, 3])
@pytest.mark.parametrize("way", IN_FLIGHT)
def test_parameters_stay_as_they_are_while_a_gradient_is_computed(way, many, tmp_path):
    program = Watches()
    program.many = many
    assert set(good(run(way, program, tmp_path)).ends) == {0}
    audited(tmp_path)


@pytest.mark.parametrize("way", IN_FLIGHT)
def test_also_where_a_program_fetches_its_next_batch_before_the_step(way, tmp_path):
    assert set(good(run(way, LooksAhead(), tmp_path)).ends) == {0}


class Clamps(Program):
    def stepped(self, ev, epoch, number):
        for parameter in self.model.parameters():
            parameter.data.clamp_(-1e-3, 1e-3)

    def make(self):
        made = super().make()
        self.model = made[0]
        return made


@pytest.mark.parametrize("way", ["1 ps, 1 worker", "1 ps, 1 worker, in flight"])
def test_what_a_program_makes_of_parameters_that_are_the_servers_is_refused_by_name(way, tmp_path):
    (end,) = run(way, Clamps(), tmp_path).ends
    assert isinstance(end, ConfigError) and "has changed trained parameters by itself" in str(end)


@pytest.mark.parametrize("way", IN_LOCKSTEP)
def test_two_in_lockstep_compute_what_the_plain_program_does_with_twice_the_batch(way, tmp_path):
    ran = good(run(way, Program(), tmp_path))
    expected = plain(Program(batches=BATCHES // 2, batch=2 * BATCH), tmp_path)
    for found, value in zip(ran.values(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)
    if way == "2 towers":
        assert all(map(torch.equal, ran.values(0), ran.values(1)))


def test_losses_fall_in_async_with_two(tmp_path):
    class Slow(Program):
        rate, momentum = 0.02, 0.0

    program = Slow(epochs=30)
    ran = good(run("1 ps, 2 workers", program, tmp_path))
    model, _, loader = program.make()
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(ran.values(0)), model.parameters())
    with torch.no_grad():
        loss = sum(nn.functional.mse_loss(model(x), y).item() for x, y in loader) / len(loader)
    assert loss < 0.3


# --- its length


@EVERY_KEPT_WAY
def test_train_steps_are_exact(way, tmp_path):
    steps = 4
    ran = good(run(way, Program(), tmp_path, train_steps=steps))
    assert audited(tmp_path).updates == steps
    (finished,) = ran.reported(Finished)
    assert finished.reason == f"reached step {steps}"


class Endless(Program):
    """Without data: as in reinforcement learning."""

    most = 20

    def make(self):
        return super().make()[:2]

    def loop(self, ev, model, optimizer):
        taken = 0
        while not ev.should_stop() and ev.step < self.most:
            optimizer.zero_grad()
            (model(torch.ones(3).double()) ** 2).sum().backward()
            optimizer.step()
            taken += 1
        return taken


@EVERY_WAY
def test_a_loop_without_data_ends_by_the_global_step(way, tmp_path):
    ran = good(run(way, Endless(), tmp_path))
    found = max(loop.step for loop in ran.loops)
    most = 23 if way in IN_FLIGHT else 21  # two of each worker
    assert 20 <= found <= most, "another worker may just take its last one"
    if way in KEPT:
        assert audited(tmp_path).updates == found


@EVERY_KEPT_WAY
def test_and_by_train_steps(way, tmp_path):
    good(run(way, Endless(), tmp_path, train_steps=7))
    assert audited(tmp_path).updates == 7


class ForEver(Endless):
    """Asks nobody."""

    def loop(self, ev, model, optimizer):
        while True:
            optimizer.zero_grad()
            (model(torch.ones(3).double()) ** 2).sum().backward()
            optimizer.step()


@EVERY_KEPT_WAY
def test_a_loop_that_asks_nobody_is_ended(way, tmp_path):
    ran = run(way, ForEver(), tmp_path, train_steps=5)
    assert all(isinstance(end, Over) for end in ran.ends), ran.ends
    assert audited(tmp_path).updates == 5


# --- batches and steps that do not match


class Accumulates(Program):
    """Over four batches; what is left of an epoch is no step, as in many programs."""

    def loop(self, ev, model, optimizer, loader):
        for _ in range(self.epochs):
            for number, (x, y) in enumerate(loader, 1):
                nn.functional.mse_loss(model(x), y).backward()
                if number % 4 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            optimizer.zero_grad()


@EVERY_KEPT_WAY
def test_batches_of_no_step_are_named(way, tmp_path):
    good(run(way, Accumulates(batches=10), tmp_path))
    found = audited(tmp_path)
    assert found.unapplied == ()
    skipped = sum(last - first for first, last in found.skipped)
    assert found.examples + skipped == 30
    if way in ("alone, kept", "launched", "1 ps, 1 worker", "2 ps, 1 worker"):
        assert (found.updates, skipped) == (6, 6)


class LeavesEarly(Program):
    """After three batches, one of which it has not used."""

    def loop(self, ev, model, optimizer, loader):
        taken = []
        for _ in range(self.epochs):
            for number, batch in enumerate(loader):
                if number == 3:
                    break
                self.step(model, optimizer, batch)
                taken.append(batch[0])
        return len(taken)


@EVERY_WAY
@pytest.mark.parametrize("batches", [11, 4])
def test_a_pass_may_be_left_early(way, batches, tmp_path):
    ran = good(run(way, LeavesEarly(batches=batches), tmp_path))
    assert all(end <= 9 for end in ran.ends)
    if way in ("alone", "alone, kept"):
        assert ran.ends == [9]
        assert all(map(torch.equal, ran.values(), plain(LeavesEarly(batches=batches), tmp_path)))
    if way in KEPT:
        audited(tmp_path)


class Glances(Program):
    """Looks at a batch, to draw it say, before it trains. Returns how many batches each pass had."""

    def __init__(self, glance, *, processes=0, stops=False):
        super().__init__()
        self.glance, self.processes, self.stops = glance, processes, stops

    def loader(self):
        made = super().loader()
        return DataLoader(made.dataset, BATCH, num_workers=self.processes)

    def loop(self, ev, model, optimizer, loader):
        if self.glance in ("held", "twice"):  # as PyTorch's tutorials do
            rest = iter(loader)
            next(rest)
        if self.glance in ("let go", "twice"):
            next(iter(loader))
        if self.glance == "left":
            for _ in loader:
                break
        passes = []
        for _ in range(self.epochs):
            passes.append(0)
            for batch in loader:
                self.step(model, optimizer, batch)
                passes[-1] += 1
            if self.stops:
                raise KeyError("this is the end")
        return passes


GLANCES = pytest.mark.parametrize("glance", ["let go", "left", "held", "twice"])


@GLANCES
@EVERY_WAY
def test_a_glance_at_the_first_batch_is_no_pass(way, glance, tmp_path):
    ran = good(run(way, Glances(glance), tmp_path))
    if way in KEPT:
        found = audited(tmp_path)
        assert (found.gradients, found.unapplied) == (3 * BATCHES, ())
    if way in EXACT:
        assert all(map(torch.equal, ran.values(), plain(Program(), tmp_path)))


@GLANCES
@pytest.mark.parametrize("way", ["launched", "1 ps, 1 worker", "2 towers"])
def test_nor_where_the_loader_has_processes(way, glance, tmp_path):
    good(run(way, Glances(glance, processes=1), tmp_path))
    assert audited(tmp_path).gradients == 3 * BATCHES


@GLANCES
@pytest.mark.parametrize("way", ["alone, kept", "launched"])
def test_a_program_that_goes_on_glances_at_what_is_next(way, glance, tmp_path):
    before = run(way, Glances(glance, stops=True), tmp_path, save_checkpoint_steps=1)
    assert isinstance(before.ends[0], KeyError)
    ran = good(run(way, Glances(glance), tmp_path, before))
    assert ran.ends == [[0, BATCHES, BATCHES]]
    assert audited(tmp_path).gradients == 3 * BATCHES


@pytest.mark.parametrize("way", ["alone, kept", "launched"])
def test_a_program_that_glances_no_more_trains_as_many_epochs(way, tmp_path):
    run(way, Glances("let go", stops=True), tmp_path, save_checkpoint_steps=1)
    ran = good(run(way, Glances("none"), tmp_path))
    assert sum(ran.ends[0]) == 2 * BATCHES
    assert audited(tmp_path).gradients == 3 * BATCHES


class TwoAtOnce(Program):
    def loader(self):
        return DataLoader(super().loader().dataset, BATCH, num_workers=1)

    def loop(self, ev, model, optimizer, loader):
        for one, _other in zip(loader, loader, strict=True):
            self.step(model, optimizer, one)


def test_two_passes_at_once_are_refused_where_the_loaders_processes_would_mix_them(tmp_path):
    (end,) = run("launched", TwoAtOnce(), tmp_path).ends
    assert isinstance(end, ConfigError) and "make one pass at a time" in str(end)


class Gathers(Program):
    """Takes each batch by a pass of its own, two for each step. Its loop returns the first two."""

    def loop(self, ev, model, optimizer, loader):
        taken = []
        for _ in range(BATCHES):
            optimizer.zero_grad()
            for _ in range(2):
                inputs, target = next(iter(loader))
                taken.append(inputs)
                torch.nn.functional.mse_loss(model(inputs), target).backward()
            optimizer.step()
        return taken[:2]


@pytest.mark.parametrize("way", [way for way in EXACT if way != "alone, kept"])
def test_a_batch_whose_gradient_is_kept_does_not_come_again(way, tmp_path):
    ((first, second),) = good(run(way, Gathers(), tmp_path)).ends
    assert not torch.equal(first, second)
    assert audited(tmp_path).updates == BATCHES


@EVERY_KEPT_WAY
def test_an_epoch_of_one_batch(way, tmp_path):
    """Most workers have nothing to do; there are not more epochs for it."""
    good(run(way, Program(epochs=4, batches=1), tmp_path))
    found = audited(tmp_path)
    assert (found.updates, found.gradients, found.unapplied) == (4, 4, ())


@EVERY_KEPT_WAY
def test_no_batch_at_all(way, tmp_path):
    class Nothing(Program):
        def loader(self):
            return torch.utils.data.DataLoader(super().loader().dataset, 100, drop_last=True)

    good(run(way, Nothing(), tmp_path))
    assert audited(tmp_path).updates == 0


# --- what is refused


class Grows(Program):
    def loop(self, ev, model, optimizer, loader):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


@EVERY_WAY
def test_a_group_that_comes_later_is_refused(way, tmp_path):
    ran = run(way, Grows(), tmp_path)
    assert all(isinstance(end, ConfigError) for end in ran.ends)
    assert "add_param_group of SGD was called after prepare" in str(ran.ends[0])


# --- one of them


class Chiefs(Program):
    def loop(self, ev, model, optimizer, loader):
        chief = []
        for _ in range(self.epochs):
            for batch in loader:
                self.step(model, optimizer, batch)
            chief.append(ev.chief)
        return chief


@EVERY_WAY
def test_one_is_chief(way, tmp_path):
    ran = good(run(way, Chiefs(), tmp_path))
    assert [sum(chiefs) for chiefs in zip(*ran.ends, strict=True)] == [1, 1, 1]


def test_no_thread_is_left():
    assert [thread.name for thread in threading.enumerate() if not thread.daemon] == ["MainThread"]
