"""One process owns everything: the exchange with nobody keeps the promises of one with servers."""

import math

import pytest
import torch
from torch import nn

from evener import errors
from evener.data.dataset import Data, Tensors
from evener.recipes.recipe import Recipe
from evener.report import Finished, Progress
from evener.state.checkpoint import Store
from evener.testing import one_process, row_recipe
from evener.worker.exchange.exchange import Computed


def net():
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def recipe(**parts):
    inputs, target = torch.randn(40, 5), torch.arange(40) % 2
    data = Data(Tensors(inputs, target))
    everything = {
        "model": net, "data": lambda: data, "ema_decay": 0.9,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    } | parts  # fmt: skip
    return Recipe(**everything)


def step(session):
    """One update, without the loop."""
    lease = session.turn.lease
    loss = session.towers.begin(session.batches.batch(lease), lease)
    session.towers.collect()
    session.turn = session.exchange.update(Computed(loss=loss, examples=10, seconds=0.1))
    return session.turn


@pytest.fixture
def alone(tmp_path):
    made = []

    def make(one=None, *, directory="run", **options):
        options = {"batch_size": 10, "train_steps": 99} | options
        made.append((*one_process(one or recipe(), tmp_path / directory, **options),))
        made[-1][0].turn = made[-1][0].exchange.start()
        return made[-1]

    yield make
    for session, *_ in made:
        session.exchange.close("the test is over")


def test_leases_follow_each_other_and_the_last_turn_says_stop(alone):
    session, *_ = alone(train_steps=3)
    turns = [session.turn] + [step(session) for _ in range(3)]

    assert [(turn.version, turn.lease, turn.stop) for turn in turns] == [
        (0, 0, ""), (1, 1, ""), (2, 2, ""), (3, -1, "reached step 3"),
    ]  # fmt: skip
    assert all(turn.chief for turn in turns)


def test_speed_is_counted_from_the_first_step_and_not_from_the_start_of_the_process(alone):
    session, clock, reports = alone()
    clock.advance(100.0)  # hooks that download something, say
    for _ in range(2):
        clock.advance(0.1)  # as long as `step` says that it took
        step(session)
    session.exchange.progress()
    session.exchange.close()

    (*_, told), (figures,) = ([one for one in reports if isinstance(one, kind)] for kind in (Progress, Finished))
    assert [told.steps_per_second, told.examples_per_second] == pytest.approx([10.0, 100.0])
    assert figures.seconds == pytest.approx(0.2)


def test_stop_ends_the_run_after_the_update_in_hand(alone):
    session, *_ = alone()
    assert session.exchange.stop("enough").stop == "enough"
    assert session.exchange.stop("again").stop == "enough"
    assert step(session).stop == "enough"


def test_an_interrupted_run_is_evaluated_by_nobody(alone):
    session, *_ = alone()
    assert not session.exchange.stop("interrupted", complete=False).chief


@pytest.mark.parametrize("what", ["averages", "gradients", "parameters"])
def test_show_lends_the_models_memory_and_gives_it_back_bit_for_bit(alone, what):
    session, *_ = alone()
    for _ in range(3):
        step(session)
    model, state = session.towers.model, session.exchange._state
    before = {name: value.clone() for name, value in model.state_dict().items()}
    averages = [part.tobytes() for part in state.averages.parts]
    expected = {
        "parameters": before,
        "gradients": session.towers.copy_of_gradients(),
        "averages": {piece.spec.name: view.clone() for piece, view in state.averages.named()},
    }[what]

    assert session.exchange.show(what) == 3
    shown = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in expected.items():
        assert torch.equal(shown[name], value), name
    if what == "averages":
        session.exchange.show("gradients")  # from one to the other, and only then home

    assert session.exchange.show("parameters") == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.tobytes() for part in state.averages.parts] == averages


def test_showing_changes_nothing_of_the_training(alone):
    plain, *_ = alone()
    shown, *_ = alone(plain.recipe, directory="other")
    for _ in range(4):
        step(plain)
        step(shown)
        for what in ("gradients", "averages", "parameters"):
            shown.exchange.show(what)

    for name, value in plain.towers.model.state_dict().items():
        assert torch.equal(shown.towers.model.state_dict()[name], value), name


def test_without_averages_the_parameters_are_shown(alone):
    session, *_ = alone(recipe(ema_decay=None))
    step(session)
    before = session.towers.model.state_dict()["0.weight"].clone()
    session.exchange.show("averages")

    assert torch.equal(session.towers.model.state_dict()["0.weight"], before)
    session.exchange.show("parameters")


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(alone, poison):
    session, *_ = alone(row_recipe(loss=lambda output, target: output.sum() * (poison if output.sum() else 1.0)))
    step(session)
    before = session.towers.model.row.detach().clone()

    with pytest.raises(errors.NonFinite) as ended:
        step(session)
    assert ended.value.what.startswith("the gradient of 'row' is not finite, at global step 1, lease 1 (samples ")
    assert torch.equal(session.towers.model.row.detach(), before)
    assert session.exchange._state.step == 1


def test_checkpoints_by_steps_and_a_final_one(alone, tmp_path):
    session, *_ = alone(train_steps=5, save_checkpoint_steps=2)
    while not step(session).stop:
        pass
    session.exchange.close()

    assert Store(tmp_path / "run" / "checkpoints", writable=False).steps() == [2, 4, 5]


def test_checkpoints_by_seconds(alone, tmp_path):
    session, clock, _ = alone(save_checkpoint_secs=60)
    store = Store(tmp_path / "run" / "checkpoints", writable=False)
    step(session)
    clock.advance(59.0)
    step(session)
    clock.advance(1.0)
    step(session)
    step(session)
    assert store.steps() == [3]


def test_a_run_that_failed_saves_what_it_reached_and_does_not_call_itself_finished(alone, tmp_path):
    session, _, reports = alone(save_checkpoint_steps=2)
    for _ in range(3):
        step(session)
    session.exchange.show("averages")  # it failed while the model showed something else
    session.exchange.close("ZeroDivisionError: division by zero")

    store = Store(tmp_path / "run" / "checkpoints", writable=False)
    assert store.steps() == [2, 3]
    saved = store.newest()[1].parameters
    assert all(torch.equal(value, saved[name]) for name, value in session.towers.model.state_dict().items())
    assert not [report for report in reports if isinstance(report, Finished)]


def test_an_update_that_failed_half_way_is_not_saved(alone, tmp_path, monkeypatch):
    session, *_ = alone(save_checkpoint_steps=2)
    for _ in range(3):
        step(session)
    monkeypatch.setattr(session.exchange._state, "apply", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(session)
    session.exchange.close("ZeroDivisionError: division by zero")

    assert Store(tmp_path / "run" / "checkpoints", writable=False).steps() == [2]


def test_a_run_that_failed_at_once_leaves_no_checkpoint(alone, tmp_path):
    session, *_ = alone()
    session.exchange.close("ConfigError: the recipe's loss is not a scalar")

    assert Store(tmp_path / "run" / "checkpoints", writable=False).steps() == []


def test_the_final_checkpoint_that_fails_fails_the_run(alone, monkeypatch):
    session, *_ = alone(train_steps=1)
    step(session)
    monkeypatch.setattr(Store, "commit", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))

    with pytest.raises(errors.CheckpointError, match=r"the final checkpoint was not saved: .*No space left") as error:
        session.exchange.close()
    assert "the same command with --logdir goes on from the newest" in error.value.fix


def test_it_resumes_where_it_was_and_says_when_nothing_is_left(alone):
    first, *_ = alone(train_steps=4)
    while not step(first).stop:
        pass
    first.exchange.close()
    values = first.towers.model.state_dict()

    longer, _, reports = alone(first.recipe, train_steps=6)
    assert (longer.turn.version, longer.turn.lease) == (4, 4)
    assert all(torch.equal(value, values[name]) for name, value in longer.towers.model.state_dict().items())
    while not step(longer).stop:
        pass
    longer.exchange.close()
    (figures,) = [report for report in reports if isinstance(report, Finished)]
    assert (figures.first_step, figures.global_step, figures.examples) == (4, 6, 20)

    nothing, *_ = alone(first.recipe, train_steps=6)
    assert nothing.turn.lease == -1
    assert nothing.turn.stop.startswith("already at step 6 of 6")


def test_progress_is_told_at_the_first_update_and_five_times_a_second(alone):
    session, clock, reports = alone()
    for _ in range(10):
        step(session)
        clock.advance(0.0625)

    assert [report.global_step for report in reports if isinstance(report, Progress)] == [1, 5, 9]  # steps take 1/16 s
