"""What docs/tensorflow.md says, held against evener and PyTorch."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from evener.errors import SessionError
from evener.recipes.mnist import mnist
from evener.recipes.recipe import from_object
from evener.report import Line
from evener.session.hooks import Hook, LogEvery
from evener.state.checkpoint import Store
from evener.state.tensors import specs_of
from evener.tensorflow import (
    cosine_decay,
    cosine_decay_restarts,
    exponential_decay,
    inverse_time_decay,
    natural_exp_decay,
    piecewise_constant,
    polynomial_decay,
)
from evener.testing import Clock, Cluster, one_process, row_recipe
from evener.wire.layout import Layout

TEXT = (Path(__file__).parents[1] / "docs" / "tensorflow.md").read_text()


def saved(directory):
    return Store(Path(directory) / "checkpoints", writable=False).steps()


def test_the_program_runs(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(program, names)
    session, _, _ = one_process(from_object(names["recipe"]), tmp_path, train_steps=3, batch_size=10)

    assert session.run() == "reached step 3"
    assert session.turn.learning_rate == 0.01


RATE, N = 0.9, 6
PAIRS = {
    "exponential_decay": (
        lambda step: exponential_decay(1.0, step, N, RATE),
        lambda made: lr_scheduler.ExponentialLR(made, gamma=RATE ** (1 / N)),
    ),
    "staircase": (
        lambda step: exponential_decay(1.0, step, N, RATE, staircase=True),
        lambda made: lr_scheduler.StepLR(made, N, gamma=RATE),
    ),
    "natural_exp_decay": (
        lambda step: natural_exp_decay(1.0, step, N, RATE),
        lambda made: lr_scheduler.ExponentialLR(made, gamma=math.exp(-RATE / N)),
    ),
    "inverse_time_decay": (
        lambda step: inverse_time_decay(1.0, step, N, RATE),
        lambda made: lr_scheduler.LambdaLR(made, lambda step: 1 / (1 + RATE * step / N)),
    ),
    "piecewise_constant": (
        lambda step: piecewise_constant(step, [N], [1.0, 0.1]),
        lambda made: lr_scheduler.MultiStepLR(made, [N + 1], gamma=0.1),
    ),
    "polynomial_decay": (
        lambda step: polynomial_decay(1.0, step, N, 0.0, 2.0),
        lambda made: lr_scheduler.PolynomialLR(made, N, 2.0),
    ),
    "cosine_decay": (
        lambda step: cosine_decay(1.0, step, N, 0.1),
        lambda made: lr_scheduler.CosineAnnealingLR(made, N, eta_min=0.1),
    ),
    "cosine_decay_restarts": (
        lambda step: cosine_decay_restarts(1.0, step, N, 2.0),
        lambda made: lr_scheduler.CosineAnnealingWarmRestarts(made, N, 2),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pytorchs_scheduler_has_the_same_numbers(name):
    ours, make = PAIRS[name]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    theirs = make(optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    count = N + 1 if name == "cosine_decay" else 20

    assert rates[:count] == pytest.approx([ours(step) for step in range(count)], abs=1e-12)
    if name == "cosine_decay":  # "then TensorFlow's stays and PyTorch's rises again"
        assert rates[N + 3] > ours(N + 3) + 0.1
    class_name = type(theirs).__name__
    assert f"`{class_name}(" in TEXT


def test_the_two_adams_are_14_percent_apart_after_100_steps_at_001():
    sys.path.append(str(Path(__file__).parent / "recipes"))
    from test_mnist_recipe import parameters_after

    ours, theirs = (
        nn.utils.parameters_to_vector(
            parameters_after(mnist(hidden=100, optimizer=name, learning_rate=0.01), 100)[0].parameters()
        ).detach()
        for name in ("adam", "torch_adam")
    )
    # other processors round otherwise, and 100 steps make more of it
    assert float((ours - theirs).norm() / theirs.norm()) == pytest.approx(0.14, abs=0.05)
    assert "14 % apart after 100 steps" in TEXT


# --- what else differs


def test_the_first_checkpoint_is_written_when_it_is_due_and_at_once_with_no_steps(tmp_path):
    for steps, expected in ((5, [3, 5]), (0, [0])):
        directory = tmp_path / str(steps)
        session, _, _ = one_process(row_recipe(), directory, train_steps=steps, save_checkpoint_steps=3)
        session.run()
        assert saved(directory) == expected
    again, _, _ = one_process(row_recipe(), tmp_path / "0", train_steps=2)
    again.run()
    assert saved(tmp_path / "0") == [0, 2]


def test_step_saves_are_due_at_multiples_also_in_a_run_that_goes_on(tmp_path):
    one_process(row_recipe(), tmp_path, train_steps=10)[0].run()
    one_process(row_recipe(), tmp_path, train_steps=19, save_checkpoint_steps=3)[0].run()

    assert saved(tmp_path) == [10, 12, 15, 18, 19]


class Seconds(Hook):
    def __init__(self, clock):
        self.clock = clock

    def before_step(self, session):
        self.clock.advance(10.0)


@pytest.mark.parametrize(("seconds", "expected"), [(40.0, [4, 5, 9, 10, 12]), (1e9, [5, 10, 12])])
def test_timed_saves_are_done_beside_step_saves(tmp_path, seconds, expected):
    clock = Clock()
    session, _, _ = one_process(
        row_recipe(), tmp_path, [Seconds(clock)], clock=clock,
        train_steps=12, save_checkpoint_steps=5, save_checkpoint_secs=seconds,
    )  # fmt: skip
    session.run()

    assert saved(tmp_path) == expected


def test_a_large_number_keeps_all(tmp_path):
    one_process(row_recipe(), tmp_path, train_steps=12, save_checkpoint_steps=1, keep=1_000_000)[0].run()

    assert saved(tmp_path) == list(range(1, 13))


class Ends(Hook):
    def __init__(self, how):
        self.how = how

    def after_step(self, session, result):
        self.how(session)


def out_of_data(session):
    raise StopIteration


def test_stop_iteration_in_a_hook_is_an_error_and_session_stop_ends_well(tmp_path):
    with pytest.raises(SessionError, match="hook Ends failed in after_step: StopIteration"):
        one_process(row_recipe(), tmp_path / "a", [Ends(out_of_data)], train_steps=5)[0].run()

    session, _, _ = one_process(row_recipe(), tmp_path / "b", [Ends(lambda session: session.stop("why"))])
    assert session.run() == "why"
    assert saved(tmp_path / "b") == [1]


def test_the_first_log_line_is_of_the_nth_step(tmp_path):
    clock = Clock()
    hooks = [Seconds(clock), LogEvery(4, clock, 10)]
    session, _, reports = one_process(row_recipe(), tmp_path, hooks, clock=clock, train_steps=9)
    session.run()

    lines = [report.text for report in reports if isinstance(report, Line)]
    assert [line.partition(":")[0] for line in lines if "local step" in line] == [
        "global step 4, local step 4",
        "global step 8, local step 8",
    ]


def test_round_robin_has_no_turn_for_a_global_step():
    layout = Layout(specs_of(mnist(hidden=20).model()), shards=2, placement="round_robin")
    homes = {piece.spec.name: piece.shard for piece in layout.pieces}

    assert [homes[spec.name] for spec in layout.specs] == [0, 1, 0, 1]


def test_a_row_that_one_of_two_gradients_has_is_divided_by_two(tmp_path):
    with Cluster(row_recipe(), tmp_path, mode="sync", workers=2, train_steps=4) as cluster:
        first, second = cluster.started(0, 1)
        for view in first.views.values():
            view.zero_()
            view[3] = 1.0  # the row that this batch used
        first.push()
        second.push(0.0)
        (row,) = cluster.parameters().values()

    assert row[3] == -0.5


def test_a_parameter_that_a_batch_did_not_use_is_left_alone(tmp_path):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return inputs * self.used.sum()

    seen = {}

    def kept(model):
        seen["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return seen["optimizer"]

    session, _, _ = one_process(row_recipe(model=Halves, optimizer=kept), tmp_path, train_steps=2)
    session.run()
    _, idle = seen["optimizer"].param_groups[0]["params"]

    assert idle not in seen["optimizer"].state
    assert torch.equal(idle.detach(), torch.ones(3))
