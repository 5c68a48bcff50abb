"""A step without what nobody looks at, and with it as soon as somebody does."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from evener.state.stepping import step


class Written(torch.optim.SGD):
    """One of a user's own, over PyTorch's."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.5)


def made(kind=torch.optim.SGD):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), None
    return layer, kind(layer.parameters(), lr=0.1)


def moved(stepped, kind=torch.optim.SGD, times=3):
    layer, optimizer = made(kind)
    for _ in range(times):
        stepped(optimizer)
    return layer.weight.detach()


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, Written]
)
def test_it_is_the_step_of_the_optimizer(kind):
    assert torch.equal(moved(step, kind), moved(lambda optimizer: optimizer.step(), kind))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("which", ["before", "after", "of all"])
def test_hooks_are_called(which):
    _, optimizer = made()
    called = []
    hook = lambda *_: called.append(which)  # noqa: E731
    register = {
        "before": optimizer.register_step_pre_hook, "after": optimizer.register_step_post_hook,
        "of all": register_optimizer_step_post_hook,
    }[which]  # fmt: skip
    handle = register(hook)
    step(optimizer)
    handle.remove()
    step(optimizer)
    assert called == [which]


def test_a_profiler_sees_it():
    _, optimizer = made()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(optimizer)
    assert "Optimizer.step#SGD.step" in {event.name for event in profile.events()}


def test_a_schedule_knows_that_it_was_taken():
    _, optimizer = made()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns where the schedule is stepped first
        step(optimizer)
        schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.01)]


@pytest.mark.parametrize("scheduled", [False, True])
def test_what_a_user_has_put_in_its_place_is_called(scheduled):
    layer, optimizer = made()
    called = []
    really = optimizer.step
    optimizer.step = type(really)(lambda _self: called.append(really()), optimizer)
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = layer.weight.detach().clone()
    step(optimizer)
    assert called == [None] and not torch.equal(layer.weight, before)


def test_nothing_of_a_record_is_made_where_nobody_looks(monkeypatch):
    _, optimizer = made()
    monkeypatch.setattr(torch.autograd.profiler, "record_function", None)
    step(optimizer)
