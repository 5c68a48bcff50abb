"""The best model by a figure of the validations is kept; a run whose figure no longer improves ends."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from validating import DATA, recipe_of, run

import evener
from evener import EarlyStopping
from evener.errors import ConfigError
from evener.figures import Figure
from evener.session.best import BEST, NOTE
from evener.state.checkpoint import Store


def scripted(*values):
    """A validation that gives these figures, one after the other; the last one for ever."""
    left = list(values)
    return lambda model, batches: {"loss": left.pop(0) if len(left) > 1 else left[0]}


def recorded(recipe, tmp_path, **options):
    """A run that validates after each step, and the weights that it had at each."""
    weights = {}

    class Record(evener.Hook):
        def after_step(self, session, result):
            weights[result.global_step] = session.towers.model.weight.detach().clone()

    made = evener.Recipe(**{**vars(recipe), "hooks": lambda: [Record()]})
    return run(made, tmp_path, **({"train_steps": 5, "eval_every": 1} | options)), weights


def note_of(logdir):
    return json.loads((Path(logdir) / BEST / NOTE).read_text())


def best_weight(logdir, recipe):
    return evener.load(recipe, Path(logdir) / BEST).weight


# --- which is better


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("validation_loss", Figure("validation_loss", largest=False)),
        ("validation_noisy_loss_ema", Figure("validation_noisy_loss_ema", largest=False)),
        ("validation_top5_error", Figure("validation_top5_error", largest=False)),
        ("validation_rmse", Figure("validation_rmse", largest=False)),
        ("validation_accuracy", Figure("validation_accuracy", largest=True)),
        ("validation_accuracy_ema", Figure("validation_accuracy_ema", largest=True)),
        ("min:validation_distance", Figure("validation_distance", largest=False)),
        ("max:validation_loss", Figure("validation_loss", largest=True)),
    ],
)
def test_losses_and_errors_are_better_the_smaller_others_the_larger_unless_one_says_it(text, figure):
    assert Figure.of(text) == figure


@pytest.mark.parametrize(
    ("largest", "new", "old", "by", "better"),
    [
        (True, 0.9, 0.8, 0.0, True),
        (True, 0.8, 0.8, 0.0, False),
        (True, 0.85, 0.8, 0.1, False),
        (False, 0.1, 0.2, 0.0, True),
        (False, 0.2, 0.1, 0.0, False),
        (False, 0.15, 0.2, 0.1, False),
        (True, 0.0, float("nan"), 0.0, True),
        (False, float("nan"), 3.0, 0.0, False),
        (False, float("nan"), float("nan"), 0.0, False),
    ],
)
def test_better_is_better_by_more_than_so_much_and_anything_is_better_than_nan(largest, new, old, by, better):
    assert Figure("x", largest).better(new, old, by) is better


# --- the best model


@pytest.mark.parametrize(
    ("keep_best", "values", "step"),
    [
        ("validation_loss", (3.0, 1.0, 2.0, 1.0, 4.0), 2),
        ("max:validation_loss", (3.0, 1.0, 2.0, 3.5, 1.0), 4),
        ("validation_loss", (3.0, 2.0, 1.5, 1.0, 0.5), 5),
        ("validation_loss", (float("nan"), 2.0, float("nan"), 3.0, 3.0), 2),
    ],
)
def test_the_model_of_the_best_validation_is_kept_alone(tmp_path, keep_best, values, step):
    recipe = recipe_of(keep_best=keep_best, evaluate=scripted(*values))
    result, weights = recorded(recipe, tmp_path)

    assert note_of(tmp_path) == {"figure": "validation_loss", "value": values[step - 1], "step": step}
    assert [path.name for path in (tmp_path / BEST).glob("step-*")] == [f"step-{step:08}"]
    if step < 5:
        assert torch.equal(best_weight(tmp_path, recipe), weights[step])
        assert not torch.equal(best_weight(tmp_path, recipe), result.model().weight)
    else:
        assert torch.equal(best_weight(tmp_path, recipe), result.model().weight)


def test_it_is_told_when_one_is_kept(tmp_path, capsys):
    run(recipe_of(keep_best="validation_loss", evaluate=scripted(3.0, 2.0, 9.0)), tmp_path, train_steps=4,
        eval_every=1, quiet=False)  # fmt: skip
    said = capsys.readouterr().out

    assert "the best model so far is kept: validation_loss 3 at global step 1" in said
    assert "the best model so far is kept: validation_loss 2 at global step 2" in said
    assert said.count("is kept") == 2


def test_by_a_figure_of_averages_the_averages_are_kept(tmp_path):
    recipe = recipe_of(keep_best="validation_loss_ema", ema_decay=0.5)
    run(recipe, tmp_path, eval_every=100)
    averages, parameters = (evener.load(recipe, tmp_path, ema=ema).weight for ema in (True, False))

    assert torch.equal(best_weight(tmp_path, recipe), averages)
    assert not torch.equal(averages, parameters)


def test_of_several_validation_sets_one_is_named(tmp_path):
    recipe = recipe_of(data=lambda: (DATA, {"clean": DATA, "noisy": DATA}), keep_best="validation_noisy_accuracy")
    result = run(recipe, tmp_path, eval_every=100)
    assert note_of(tmp_path)["value"] == result.validation["validation_noisy_accuracy"]


def test_it_is_a_checkpoint_for_eval_and_for_a_warm_start(tmp_path):
    recipe = recipe_of(keep_best="validation_loss")
    run(recipe, tmp_path / "run", eval_every=2)
    note = note_of(tmp_path / "run")

    values = evener.evaluate(recipe, tmp_path / "run" / BEST)
    assert (values["global_step"], values["validation_loss"]) == (note["step"], pytest.approx(note["value"]))
    warm = run(recipe_of(), tmp_path / "warm", init_from=str(tmp_path / "run" / BEST), train_steps=0)
    assert torch.equal(warm.model().weight, best_weight(tmp_path / "run", recipe))


@pytest.mark.parametrize(("later", "step"), [((2.0, 3.0), 1), ((0.5, 3.0), 4)])
def test_a_run_that_goes_on_replaces_it_by_a_better_one_alone(tmp_path, later, step):
    run(recipe_of(keep_best="validation_loss", evaluate=scripted(1.0, 4.0)), tmp_path, train_steps=3, eval_every=1)
    resumed = recipe_of(keep_best="validation_loss", evaluate=scripted(*later))

    assert run(resumed, tmp_path, train_steps=6, eval_every=1).global_step == 6
    assert note_of(tmp_path)["step"] == step


def test_a_run_goes_on_from_its_last_checkpoint_and_not_from_the_best(tmp_path):
    recipe = recipe_of(keep_best="validation_loss", evaluate=scripted(1.0, 4.0))
    run(recipe, tmp_path / "twice", train_steps=3, eval_every=1)
    twice = run(recipe, tmp_path / "twice", train_steps=6, eval_every=1)
    assert torch.equal(twice.model().weight, run(recipe_of(), tmp_path / "once").model().weight)


def test_a_disk_that_is_full_keeps_no_best_model_and_stops_no_training(tmp_path, capsys):
    (tmp_path / BEST).write_text("a file in the way")
    result = run(recipe_of(keep_best="validation_loss"), tmp_path, quiet=False)

    assert result.global_step == 6
    assert "the best model so far cannot be kept: " in capsys.readouterr().out


# --- the end of a run that no longer improves


@pytest.mark.parametrize(
    ("rule", "values", "step", "best", "since"),
    [
        (EarlyStopping(patience=2), (3.0, 2.0, 2.5, 2.0, 1.0), 4, "2", 2),
        (EarlyStopping(patience=1), (3.0, 2.0, 1.0, 1.5), 4, "1", 1),
        (EarlyStopping("max:validation_loss", patience=1), (3.0, 4.0, 2.0), 3, "4", 1),
        (EarlyStopping(patience=2, min_delta=0.5), (3.0, 2.9, 2.8, 2.0), 3, "3", 2),
    ],
)
def test_it_ends_after_so_many_validations_without_an_improvement(tmp_path, rule, values, step, best, since):
    result = run(recipe_of(early_stopping=rule, evaluate=scripted(*values, 7.0)), tmp_path, train_steps=50,
                 eval_every=1)  # fmt: skip

    name = Figure.of(rule.figure).name
    assert result.reason == (f"early stopping: {name} has not improved on {best} in {since} validations")
    assert result.global_step == step
    assert result.validation_loss is not None, "the final validation is made"
    assert result.checkpoint.endswith(f"step-{step:08}")


def test_while_it_improves_it_goes_on(tmp_path):
    falling = scripted(*range(100, 0, -1))
    rule = EarlyStopping(patience=1)
    assert run(recipe_of(early_stopping=rule, evaluate=falling), tmp_path, eval_every=1).reason == "reached step 6"


# --- how often


@pytest.mark.parametrize("parts", [{"keep_best": "validation_loss"}, {"early_stopping": EarlyStopping(patience=9)}],
                         ids=lambda parts: next(iter(parts)))  # fmt: skip
@pytest.mark.parametrize(("options", "steps"), [({}, [7, 14, 20]), ({"eval_every": 10}, [10, 20])])
def test_both_validate_once_an_epoch_unless_one_says_how_often(tmp_path, parts, options, steps):
    """70 samples in tens."""
    at = []

    class Look(evener.Hook):
        def close(self, session):
            at.extend(evaluated.global_step for evaluated in session.evaluations)

    run(recipe_of(hooks=lambda: [Look()], **parts), tmp_path, train_steps=20, **options)
    assert at == steps


def test_without_them_there_is_one_validation_at_the_end(tmp_path):
    assert recipe_of().validates_every(evener.settings.Settings(batch_size=10), 70) is None


# --- figures that do not exist

WRONG = {"keep_best": "validation_los", "early_stopping": EarlyStopping("validation_los")}


@pytest.mark.parametrize("part", WRONG)
def test_a_figure_that_does_not_exist_is_refused_after_the_first_step_with_those_that_do(tmp_path, part):
    with pytest.raises(ConfigError) as error:
        run(recipe_of(**{part: WRONG[part]}, ema_decay=0.9), tmp_path, eval_every=5)
    assert error.value.what == "there is no 'validation_los' among the figures of the validation."
    assert error.value.why == f"the recipe's {part} compares validations by it."
    assert error.value.fix == (
        "name one of: validation_loss, validation_accuracy, validation_loss_ema, validation_accuracy_ema."
    )
    assert "local step 2" in "".join(error.value.__notes__)


def test_averages_that_a_recipe_does_not_keep_are_none_of_them(tmp_path):
    with pytest.raises(ConfigError, match="no 'validation_loss_ema'"):
        run(recipe_of(keep_best="validation_loss_ema"), tmp_path)


def test_of_a_validation_of_ones_own_the_figures_are_known_at_the_first(tmp_path):
    recipe = recipe_of(keep_best="validation_f1", evaluate=scripted(1.0))
    with pytest.raises(ConfigError, match="no 'validation_f1'") as error:
        run(recipe, tmp_path, eval_every=2)
    assert error.value.fix == "name one of: validation_loss."
    assert "global step 2" in "".join(error.value.__notes__)


@pytest.mark.parametrize("part", WRONG)
def test_without_a_validation_set_both_are_refused_before_anything_is_trained(tmp_path, part):
    with pytest.raises(ConfigError, match="among the figures of the validation") as error:
        run(recipe_of(data=lambda: DATA, **{part: WRONG[part]}), tmp_path)
    assert "let data() return (train, validation)" in error.value.fix
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("parts", [{"keep_best": 3}, {"early_stopping": 3}, {"early_stopping": "validation_loss"}],
                         ids=str)  # fmt: skip
def test_what_is_neither_a_name_nor_a_rule_is_refused_by_the_recipe(parts):
    with pytest.raises(ConfigError) as error:
        recipe_of(lambda: nn.Linear(8, 3), **parts)
    assert error.value.fix.startswith("write ")


def test_a_better_model_than_the_one_that_is_kept_takes_its_place_once_the_disk_takes_it(tmp_path, capsys, monkeypatch):
    """The best of all, 1.0 at step 2, meets a disk that is full; then 2.0 is the best that can be kept."""
    room = iter([True, False, False, True, True])
    write = Store.write_shard

    def written(store, contents, shard):
        if store.directory.name == BEST and not next(room):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(store, contents, shard)

    monkeypatch.setattr(Store, "write_shard", written)
    losses = scripted(4.0, 1.0, 1.5, 2.0, 3.0, 3.0)
    run(recipe_of(keep_best="validation_loss", evaluate=losses), tmp_path, eval_every=1, quiet=False)

    assert note_of(tmp_path)["value"] == 2.0
    assert capsys.readouterr().out.count("the best model so far cannot be kept: ") == 1
