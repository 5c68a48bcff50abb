"""Each shipped hook does its one thing; the loop around it is a stand-in for `Session` where that is enough."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from evener import errors
from evener.data.batches import Batches
from evener.data.dataset import Data, Tensors
from evener.recipes.recipe import Recipe
from evener.report import Evaluated, Line, Status
from evener.session.evaluate import Evaluate, evaluate
from evener.session.hooks import Hook, LogEvery, StepResult, StopAtStep, StopOnNaN
from evener.testing import Clock, one_process, row_recipe
from evener.worker.exchange.exchange import Turn


@dataclass
class Loop:
    """What a hook sees of a session."""

    task: str = "worker:1"
    batches: object = field(
        default_factory=lambda: Batches(Tensors(torch.arange(9.0), torch.zeros(9)), batch_size=2, seed=0)
    )
    turn: Turn = field(default_factory=lambda: Turn(version=0, lease=0))
    local_step: int = 0
    stopped: list = field(default_factory=list)
    reports: list = field(default_factory=list)

    def report(self, report):
        self.reports.append(report)

    def stop(self, reason):
        self.stopped.append(reason)


def result(**changes):
    everything = {
        "global_step": 1, "local_step": 1, "loss": 0.5, "examples": 10, "lease": 0, "seconds": 0.1, "chief": False,
        "rejected": "", "staleness": 0, "dropped": 0, "learning_rate": 0.1,
    } | changes  # fmt: skip
    return StepResult(**everything)


# --- StopAtStep


def test_stop_at_step_is_exact_in_one_process(tmp_path):
    session, *_ = one_process(row_recipe(), tmp_path, [StopAtStep(4)], batch_size=10, train_steps=99)

    assert session.run() == "reached step 4"
    assert session.exchange._state.step == 4


def test_stop_at_step_that_lies_behind_takes_no_step(tmp_path):
    one_process(row_recipe(), tmp_path, batch_size=10, train_steps=5)[0].run()
    session, *_ = one_process(row_recipe(), tmp_path, [StopAtStep(4)], batch_size=10, train_steps=99)

    assert session.run() == "already at step 5 of 4"
    assert (session.local_step, session.exchange._state.step) == (0, 5)


def test_stop_at_step_asks_once_the_step_is_reached():
    loop, hook = Loop(), StopAtStep(4)
    hook.after_create(loop)
    for step in (2, 3, 5):  # others train too: it may be passed without being seen
        hook.after_step(loop, result(global_step=step))

    assert loop.stopped == ["reached step 4"]


# --- StopOnNaN


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_stop_on_nan_names_worker_step_and_lease(loss):
    loop = Loop(turn=Turn(version=812, lease=811), local_step=405)

    with pytest.raises(errors.NonFinite) as ended:
        StopOnNaN().before_update(loop, loss)
    assert (
        ended.value.what
        == f"the loss of worker:1 is {loss} at global step 812 (local step 406), lease 811 (samples 7, 5)."
    )
    StopOnNaN().before_update(loop, 1e30)


def test_stop_on_nan_comes_before_the_update_and_nothing_of_it_is_applied_or_saved(tmp_path):
    recipe = row_recipe(loss=lambda output, target: output.sum() * (math.nan if output.sum() else 1.0))
    session, *_ = one_process(recipe, tmp_path, [StopOnNaN()], batch_size=10, train_steps=9)

    with pytest.raises(errors.NonFinite, match="the loss of worker:0 is nan at global step 1"):
        session.run()
    assert session.exchange._state.step == 1
    assert torch.isfinite(session.towers.model.row).all()
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000001"]


# --- LogEvery


def test_log_every_tells_cluster_and_worker_over_a_sliding_window():
    clock, loop = Clock(), Loop()
    hook = LogEvery(10, clock, examples_per_step=20)
    loop.turn = Turn(version=100, lease=0)
    hook.after_create(loop)
    for step in range(1, 21):  # 4 steps a second, and the cluster 12
        clock.advance(0.25)
        hook.after_step(loop, result(local_step=step, global_step=100 + 3 * step, loss=1 / step))

    assert [report for report in loop.reports if isinstance(report, Line)] == [
        Line("worker:1", "global step 130, local step 10: loss 0.1000; "
                         "cluster 240 examples/s; worker:1 40 examples/s, 0.2500 s/batch"),
        Line("worker:1", "global step 160, local step 20: loss 0.0500; "
                         "cluster 240 examples/s; worker:1 40 examples/s, 0.2500 s/batch"),
    ]  # fmt: skip


def test_a_late_worker_has_its_own_speed_from_its_first_step_on():
    clock, loop = Clock(), Loop()
    hook = LogEvery(2, clock, examples_per_step=20)
    clock.advance(60.0)  # its imports, its data, its wait for the others
    loop.turn = Turn(version=100, lease=0)
    hook.after_create(loop)
    clock.advance(5.0)  # the hooks after this one
    for step in (1, 2):
        hook.before_step(loop)
        clock.advance(0.25)
        loop.local_step = step
        hook.after_step(loop, result(local_step=step, global_step=100 + 3 * step))

    (line,) = [report.text for report in loop.reports if isinstance(report, Line)]
    assert line.endswith("cluster 240 examples/s; worker:1 40 examples/s, 0.2500 s/batch")


def test_log_every_forgets_what_is_long_ago():
    clock, loop = Clock(), Loop()
    hook = LogEvery(100, clock, examples_per_step=10)
    hook.after_create(loop)
    for step in range(1, 101):
        clock.advance(10.0 if step <= 50 else 0.1)  # it was slow once
        hook.after_step(loop, result(local_step=step, global_step=step))

    (line,) = [report.text for report in loop.reports if isinstance(report, Line)]
    assert line.endswith("cluster 100 examples/s; worker:1 100 examples/s, 0.1000 s/batch")


def test_log_every_reports_its_state_five_times_a_second():
    clock, loop = Clock(), Loop()
    hook = LogEvery(1000, clock, examples_per_step=10)
    hook.after_create(loop)
    for step in range(1, 17):
        clock.advance(0.0625)
        hook.after_step(loop, result(local_step=step, global_step=step, staleness=3))

    told = [report for report in loop.reports if isinstance(report, Status)]
    assert [report.step for report in told] == [4, 8, 12, 16]
    assert told[-1] == Status("worker:1", "training", 16, 160.0, 3)


# --- Evaluate


def classes(count):
    """`count` samples, and a model that is right on the even ones; its loss on sample k is k."""
    return Tensors(torch.arange(float(count)), torch.arange(count) % 2)


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes = []

    def forward(self, inputs):
        self.modes.append((self.training, torch.is_inference_mode_enabled(), len(inputs)))
        return inputs * self.scale


def judged(**parts):
    everything = {
        "model": Judge, "data": lambda: Data(classes(40), classes(7)), "loss": lambda output, target: output.mean(),
        "metrics": {"accuracy": lambda output, target: (target == 0).float().mean()},
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
        "penalty": lambda model: 100 * model.scale,
    } | parts  # fmt: skip
    return Recipe(**everything)


def test_evaluate_weighs_batches_by_their_samples():
    model = Judge()
    values = evaluate(model, judged(), {"": classes(7)}, batch_size=4, suffix="_ema")

    # means of batches would give (1.5 + 5) / 2 and (2/4 + 2/3) / 2; the penalty is not part of it
    assert values == {"validation_loss_ema": pytest.approx(3.0), "validation_accuracy_ema": pytest.approx(4 / 7)}
    assert model.modes == [(False, False, 4), (False, False, 3)]
    assert model.training


def test_evaluate_leaves_a_model_as_it_found_it_also_after_an_error():
    model = Judge()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, judged(metrics={"bad": lambda output, target: 1 / 0}), {"": classes(7)}, batch_size=4)
    assert model.training
    model.eval()
    evaluate(model, judged(), {"": classes(7)}, batch_size=4)
    assert not model.training


def test_every_n_steps_and_at_the_end(tmp_path):
    recipe = judged()
    hook = Evaluate(recipe.data().validations, 3, 10)
    session, _, reports = one_process(recipe, tmp_path, [hook], batch_size=10, train_steps=8)
    session.run()

    told = [report for report in reports if isinstance(report, Evaluated)]
    assert [(report.global_step, report.final) for report in told] == [(3, False), (6, False), (8, True)]
    assert session.evaluations == told


def test_the_last_step_is_evaluated_once_though_it_is_due(tmp_path):
    recipe = judged()
    session, *_ = one_process(
        recipe, tmp_path, [Evaluate(recipe.data().validations, 3, 10)], batch_size=10, train_steps=6
    )
    session.run()

    assert [(report.global_step, report.final) for report in session.evaluations] == [(3, False), (6, True)]


def test_a_resumed_run_counts_evaluations_from_where_it_is(tmp_path):
    recipe = judged()
    one_process(recipe, tmp_path, batch_size=10, train_steps=5)[0].run()
    session, *_ = one_process(
        recipe, tmp_path, [Evaluate(recipe.data().validations, 3, 10)], batch_size=10, train_steps=7
    )
    session.run()

    assert [report.global_step for report in session.evaluations] == [6, 7]


def test_without_a_validation_set_nothing_is_evaluated(tmp_path):
    session, _, reports = one_process(judged(), tmp_path, [Evaluate({}, 1, 10)], batch_size=10, train_steps=3)
    session.run()

    assert not [report for report in reports if isinstance(report, Evaluated)]


def test_an_interrupted_run_is_not_evaluated(tmp_path):
    class Interrupt(Hook):
        def after_step(self, session, result):
            session.stop("interrupted", complete=False)

    recipe = judged()
    hooks = [Interrupt(), Evaluate(recipe.data().validations, 1, 10)]
    session, _, reports = one_process(recipe, tmp_path, hooks, batch_size=10, train_steps=9)

    assert session.run() == "interrupted"
    assert not [report for report in reports if isinstance(report, Evaluated)]


def test_only_the_chief_evaluates_and_who_becomes_chief_goes_on():
    loop, hook, done = Loop(), Evaluate({"": classes(7)}, 2, 10), []
    hook._evaluate = lambda session, final: done.append(final)
    hook._try_out = lambda session: None
    hook.after_create(loop)
    hook.after_step(loop, result(global_step=2, chief=False))
    hook.end(loop)
    assert done == []

    hook.after_step(loop, result(global_step=5, chief=True))  # step 4 was passed
    hook.after_step(loop, result(global_step=5, chief=True))
    loop.turn = Turn(version=6, lease=-1, stop="reached step 6", chief=True)
    hook.after_step(loop, result(global_step=6, chief=True))
    hook.end(loop)
    assert done == [False, True]


def test_averages_are_evaluated_too_and_the_parameters_come_back_bit_for_bit(tmp_path):
    seen = []

    class Watch(Hook):
        def after_step(self, session, result):
            seen.append((session.towers.model.scale.item(), session.towers.model.training))

    recipe = judged(ema_decay=0.9)
    hooks = [Watch(), Evaluate(recipe.data().validations, 1, 10), Watch()]
    session, *_ = one_process(recipe, tmp_path, hooks, batch_size=10, train_steps=4)
    session.run()

    assert seen[0::2] == seen[1::2]  # before and after each evaluation
    assert all(training for _, training in seen)
    for report in session.evaluations:
        assert report.values["validation_loss_ema"] != report.values["validation_loss"]
        assert set(report.values) == {
            "validation_loss", "validation_loss_ema", "validation_accuracy", "validation_accuracy_ema",
        }  # fmt: skip
    plain, *_ = one_process(recipe, tmp_path / "plain", batch_size=10, train_steps=4)
    plain.run()
    assert torch.equal(plain.towers.model.scale, session.towers.model.scale)
