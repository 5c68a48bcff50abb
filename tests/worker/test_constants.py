"""What a model changes by itself is either trained, kept and the same everywhere, or refused by its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training import largest_taken
from ways import ALONE, BATCH, EVERY_WAY, SERVERS, STEPS, every, recipe_of, refused, replicas, run, went_well

from evener.state.tensors import PIECE
from evener.worker.compute.constants import checksum

from plain import assert_same, plain  # isort: skip  (ways.py knows where it is)

WITH_SERVERS = pytest.mark.parametrize("way", SERVERS)
WITHOUT_SERVERS = pytest.mark.parametrize("way", ALONE)


def as_plain(way, recipe, ran):
    went_well(ran)
    assert_same(ran.parameters, plain(recipe, replicas(way), steps=STEPS, batch_size=BATCH).parameters, steps=STEPS)


class Counted(nn.Module):
    """Counts its batches outside of all tensors; `change` is called in forward with (module, count)."""

    def __init__(self, change) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(8, 3), nn.Linear(8, 3).requires_grad_(False)
        self.register_buffer("kept", torch.zeros(3))
        self.change, self.count = change, 0

    def forward(self, x):
        if self.training:
            self.count += 1
            self.change(self, self.count)
        return self.student(x) + self.teacher(x)


def counted(change, **parts):
    return recipe_of(lambda: Counted(change), **parts)


def in_place(module, count):
    with torch.no_grad():
        module.teacher.weight.lerp_(module.student.weight, 0.1)


def past_autograd(module, count):
    module.teacher.weight.data.lerp_(module.student.weight.data, 0.1)


# --- frozen parameters


@EVERY_WAY
@pytest.mark.parametrize("how", [in_place, past_autograd])
def test_a_teacher_that_follows_is_refused_at_the_first_step_with_the_way_to_say_it(how, way, tmp_path):
    ran = run(way, counted(how), tmp_path)
    refused(ran, "'teacher.weight'", "changing=['teacher']")
    assert {session.local_step for session in ran.sessions} == {0}


@EVERY_WAY
def test_a_later_change_in_place_is_refused_in_its_step(way, tmp_path):
    ran = run(way, counted(lambda module, count: in_place(module, count) if count == 3 else None), tmp_path)
    refused(ran, "'teacher.weight'")
    assert {session.local_step for session in ran.sessions} == {2}


@EVERY_WAY
@pytest.mark.parametrize("how", [in_place, past_autograd])
def test_with_changing_a_teacher_is_trained_along_and_goes_on_where_it_was(how, way, tmp_path):
    recipe = counted(how, changing=["teacher"])
    before = went_well(run(way, recipe, tmp_path, train_steps=2))
    as_plain(way, recipe, run(way, recipe, tmp_path, before=before))


# --- what is no tensor


class Extra(nn.Linear):
    def __init__(self, counts) -> None:
        super().__init__(8, 3)
        self.counts, self.calls = counts, 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, x):
        self.calls += self.counts
        return super().forward(x)


@EVERY_WAY
def test_extra_state_that_stays_is_nobodys_concern(way, tmp_path):
    recipe = recipe_of(lambda: nn.Sequential(Extra(0)))
    as_plain(way, recipe, run(way, recipe, tmp_path))


@EVERY_WAY
def test_extra_state_that_changes_is_refused(way, tmp_path):
    refused(run(way, recipe_of(lambda: nn.Sequential(Extra(1))), tmp_path), "get_extra_state", "'0'", "buffer")


# --- buffers and parameters that become others


def grows(module, count):
    module.kept = torch.zeros(3 + count)


def vanishes(module, count):
    module.kept = None


def comes(module, count):
    if count == 1:
        module.register_buffer("late", torch.zeros(2))


def is_another(module, count):
    if count == 1:
        module.student.weight = nn.Parameter(torch.zeros(3, 8))


@EVERY_WAY
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (grows, ("'kept'", "[3]", "[4]")),
        (vanishes, ("'kept'", "is None")),
        (comes, ("'late'", "persistent=False")),
        (is_another, ("'student.weight'", "in place")),
    ],
)
def test_what_becomes_another_is_refused_by_name(change, words, way, tmp_path):
    refused(run(way, counted(change), tmp_path), *words)


@EVERY_WAY
def test_a_buffer_that_is_replaced_by_one_of_its_shape_is_kept(way, tmp_path):
    def replaces(module, count):
        module.kept = module.kept + module.student.bias.detach()

    recipe = counted(replaces)
    as_plain(way, recipe, run(way, recipe, tmp_path))


# --- trained parameters that the model or a hook changes


def renorm(module, count):
    module.student.weight.data = torch.renorm(module.student.weight.data, p=2, dim=0, maxnorm=0.3)


@WITHOUT_SERVERS
def test_a_norm_that_forward_limits_is_limited(way, tmp_path):
    recipe = counted(renorm)
    as_plain(way, recipe, run(way, recipe, tmp_path))


@WITH_SERVERS
def test_a_norm_that_forward_limits_is_refused_where_servers_own_the_weight(way, tmp_path):
    refused(run(way, counted(renorm), tmp_path), "trained parameters", "parametrize")


def clamp(model, step):
    for parameter in model.parameters():
        parameter.data.clamp_(-0.2, 0.2)


@WITHOUT_SERVERS
def test_parameters_that_a_hook_clamps_are_clamped(way, tmp_path):
    ran = went_well(run(way, recipe_of(), tmp_path, every(after_step=clamp)))
    assert max(float(tensor.abs().max()) for tensor in ran.parameters.values()) == pytest.approx(0.2)


@WITH_SERVERS
@pytest.mark.parametrize("moment", ["after_create", "before_step", "before_update", "after_step"])
def test_parameters_that_a_hook_clamps_are_refused_where_servers_own_them(moment, way, tmp_path):
    hooks = every(**{moment: lambda model, *step: clamp(model, 0)})
    refused(run(way, recipe_of(), tmp_path, hooks), "trained parameters", "elementwise")


@WITH_SERVERS
def test_a_limit_that_is_never_reached_is_no_change(way, tmp_path):
    """Also when the parameters are written, with what was there: in every step, not in the first ones only."""

    def wide(model, step):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-100, 100)

    recipe = recipe_of()
    as_plain(way, recipe, run(way, recipe, tmp_path, every(before_step=wide)))


def test_to_look_at_all_values_takes_no_memory_of_their_size():
    large = torch.arange(3 * PIECE + 5, dtype=torch.int32).view(torch.float32)
    expected = sum(range(3 * PIECE + 5))

    assert checksum([large, large[:0], large[:7].view(7, 1)]) == expected + 21
    assert 0 < largest_taken(lambda: checksum([large])) <= 8 * PIECE  # as wide integers
