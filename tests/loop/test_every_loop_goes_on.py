"""More of the suite for all who own the parameters of a program's own loop: going on, learning rates, faults."""

import math

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
    ONE_BY_ONE,
    Program,
    audited,
    good,
    plain,
    replicas,
    run,
)
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau

from evener.report import Finished
from evener.task.script import Over

# --- going on


class Interrupted(Program):
    """Somebody asks for the end after so many global steps."""

    def __init__(self, at, **options):
        super().__init__(**options)
        self.at = at

    def stepped(self, ev, epoch, number):
        if self.at and ev.step >= self.at and hasattr(ev, "_joining"):  # of two workers none may see that very step
            self.at = 0
            ev._joining.stop("interrupted")


@EVERY_KEPT_WAY
@pytest.mark.parametrize("at", [2, 7])
def test_a_run_goes_on_in_the_middle_of_an_epoch(way, at, tmp_path):
    before = run(way, Interrupted(at), tmp_path)
    assert all(isinstance(end, Over | None) for end in before.ends), before.ends
    cut = audited(tmp_path).updates
    assert cut < 3 * BATCHES // replicas(way)
    ran = good(run(way, Program(), tmp_path, before=before))
    found = audited(tmp_path)
    assert (found.gradients, found.unapplied, found.skipped) == (3 * BATCHES, (), ())
    if way in EXACT:
        assert all(map(torch.equal, ran.values(), plain(Program(), tmp_path)))


class Remembers(Interrupted):
    def stepped(self, ev, epoch, number):
        if ev.chief:
            ev.state["seen"] = [*ev.state.get("seen", []), ev.step]
            ev.state["tensor"] = torch.tensor([float(ev.step)])
        super().stepped(ev, epoch, number)

    def loop(self, ev, *made):
        first = dict(ev.state)
        super().loop(ev, *made)
        return first


@pytest.mark.parametrize("way", ["alone, kept", "launched"])
def test_what_the_program_keeps_comes_back(way, tmp_path):
    before = run(way, Remembers(4), tmp_path)
    after = good(run(way, Remembers(0), tmp_path, before=before)).ends[0]
    assert after["seen"][:3] == [1, 2, 3]
    assert after["tensor"].item() == after["seen"][-1]


# --- learning rates


class Scheduled(Interrupted):
    """`inside`: after each step; else after each epoch."""

    def __init__(self, inside, at=0, **options):
        super().__init__(at, **options)
        self.inside = inside

    def make(self):
        model, optimizer, loader = super().make()
        kind = LambdaLR(optimizer, lambda step: 0.9**step) if self.inside else ExponentialLR(optimizer, 0.5)
        return [model, optimizer, loader, kind]

    def loop(self, ev, model, optimizer, loader, scheduler):
        for epoch in range(self.epochs):
            for number, batch in enumerate(loader):
                self.step(model, optimizer, batch)
                if self.inside:
                    scheduler.step()
                self.stepped(ev, epoch, number)
            if not self.inside:
                scheduler.step()
        return optimizer.param_groups[0]["lr"]


@ONE_BY_ONE
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("at", [0, 4, 8])
def test_schedules_are_those_of_the_plain_program_also_where_it_goes_on(way, inside, at, tmp_path):
    before = run(way, Scheduled(inside, at), tmp_path) if at else None
    ran = good(run(way, Scheduled(inside), tmp_path, before=before))
    expected = run("plain", Scheduled(inside), tmp_path)
    assert ran.ends[0] == pytest.approx(expected.ends[0], rel=1e-12)
    for found, value in zip(ran.values(), expected.values(), strict=True) if way in EXACT else ():
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", IN_LOCKSTEP)
def test_a_schedule_between_epochs_counts_each_once(way, tmp_path):
    ran = good(run(way, Scheduled(False), tmp_path))
    expected = plain(Scheduled(False, batches=BATCHES // 2, batch=2 * BATCH), tmp_path)
    assert ran.ends == [pytest.approx(0.1 * 0.5**3)] * 2
    for found, value in zip(ran.values(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", IN_LOCKSTEP)
def test_a_schedule_inside_the_loop_follows_the_global_step(way, tmp_path):
    ran = good(run(way, Scheduled(True), tmp_path))
    expected = plain(Scheduled(True, batches=BATCHES // 2, batch=2 * BATCH), tmp_path)
    for found, value in zip(ran.values(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["1 ps, 2 workers", "1 ps, 2 workers, bounded"])
def test_a_schedule_counts_the_updates_of_other_workers_too(way, tmp_path):
    ran = good(run(way, Scheduled(True, epochs=6), tmp_path))
    assert min(ran.ends) == pytest.approx(0.1 * 0.9**36), "of the worker that made the last one"


class Plateau(Program):
    def make(self):
        made = super().make()
        return [*made, ReduceLROnPlateau(made[1], patience=0, factor=0.5)]

    def loop(self, ev, model, optimizer, loader, scheduler):
        for _ in range(self.epochs):
            for batch in loader:
                self.step(model, optimizer, batch)
            if ev.chief:
                scheduler.step(1.0)  # never better
        for batch in loader:
            self.step(model, optimizer, batch)
        return optimizer.param_groups[0]["lr"]


@EVERY_WAY
def test_a_plateau_that_the_chief_has_seen_lowers_all_learning_rates(way, tmp_path):
    ran = good(run(way, Plateau(), tmp_path))
    assert ran.ends[0] == 0.1 * 0.25
    if replicas(way) == 2:
        assert ran.ends[1] == 0.1 * 0.25
        expected = plain(Plateau(batches=BATCHES // 2, batch=2 * BATCH), tmp_path)
        for found, value in zip(ran.values(), expected, strict=True):
            assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)


# --- several optimizers


class Rivals(Program):
    """Two models with an optimizer each, as in a GAN: they take turns."""

    def make(self):
        torch.manual_seed(3)
        models = [nn.Linear(3, 1).double(), nn.Linear(3, 1).double()]
        optimizers = [
            torch.optim.SGD(models[0].parameters(), lr=0.05),
            torch.optim.Adam(models[1].parameters(), lr=0.01),
        ]
        return [*models, *optimizers, self.loader()]

    def loop(self, ev, one, two, opt_one, opt_two, loader):
        for _ in range(self.epochs):
            for x, y in loader:
                opt_one.zero_grad()
                ((one(x) - y) ** 2).mean().backward()
                opt_one.step()
                opt_two.zero_grad()
                ((two(x) - one(x).detach()) ** 2).mean().backward()
                opt_two.step()


@pytest.mark.parametrize("way", ["alone", *EXACT, *IN_LOCKSTEP])
def test_several_optimizers_are_as_in_the_plain_program(way, tmp_path):
    ran = good(run(way, Rivals(), tmp_path))
    many = replicas(way)
    expected = plain(Rivals(batches=BATCHES // many, batch=many * BATCH), tmp_path)
    for found, value in zip(ran.values(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)
    assert max(loop.step for loop in ran.loops) == 6 * BATCHES // many
    if way in KEPT:
        assert audited(tmp_path).unapplied == ()


@pytest.mark.parametrize("way", [way for way in KEPT if way not in IN_FLIGHT])
def test_train_steps_are_those_of_the_first_optimizer(way, tmp_path):
    ran = good(run(way, Rivals(), tmp_path, train_steps=4))
    (finished,) = ran.reported(Finished)
    assert finished.reason == "reached step 4"
    assert 4 <= finished.global_step <= 8
    audited(tmp_path)


# --- what goes wrong


class Fails(Program):
    def stepped(self, ev, epoch, number):
        if ev.worker == 0 and ev.step >= 4:
            raise ValueError("the program is wrong")


@EVERY_WAY
def test_an_error_of_the_program_is_its_own_and_others_hear_of_it(way, tmp_path):
    ran = run(way, Fails(), tmp_path)
    assert isinstance(ran.ends[0], ValueError)
    if len(ran.ends) > 1:
        assert isinstance(ran.ends[1], Exception)
        if "ps" in way:
            assert "the program is wrong" in str(ran.ends[1])
    if way in KEPT:
        audited(tmp_path)


class Poisons(Program):
    def step(self, model, optimizer, batch):
        optimizer.zero_grad()
        (model(batch[0]).sum() * math.nan).backward()
        optimizer.step()


@EVERY_KEPT_WAY
def test_nan_is_named(way, tmp_path):
    ran = run(way, Poisons(), tmp_path)
    ends = [end for end in ran.ends if end is not None]
    assert ends
    assert any("NaN" in str(end) or "not finite" in str(end) for end in ends), ends


class Unfreezes(Program):
    """After the first epoch."""

    def make(self):
        made = super().make()
        made[0][0].requires_grad_(False)
        return made

    def loop(self, ev, model, optimizer, loader):
        for _ in range(2):
            for batch in loader:
                self.step(model, optimizer, batch)
            model[0].requires_grad_(True)


@EVERY_WAY
def test_what_is_unfrozen_later_is_refused_where_others_would_not_know_of_it(way, tmp_path):
    ran = run(way, Unfreezes(), tmp_path)
    if way == "alone":
        assert good(ran)
        return
    assert any("'0.weight' was frozen when prepare was called" in str(end) for end in ran.ends), ran.ends


class Freezes(Unfreezes):
    """The first layer is its turn in the second epoch, as the refusal advises."""

    def make(self):
        return Program.make(self)

    def loop(self, ev, model, optimizer, loader):
        model[0].requires_grad_(False)
        super().loop(ev, model, optimizer, loader)


@EVERY_WAY
def test_and_what_is_frozen_after_prepare_stays_until_it_is_its_turn(way, tmp_path):
    ran = good(run(way, Freezes(), tmp_path))
    if way in IN_FLIGHT or ("2 workers" in way and way not in IN_LOCKSTEP):
        return
    many = replicas(way)
    expected = plain(Freezes(batches=BATCHES // many, batch=many * BATCH), tmp_path)
    for found, value in zip(ran.values(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)
