"""A run's figures, as `evener.run` returns and `--json` prints them."""

import json
import math

from evener.report import Evaluated, Failed, Finished, Line
from evener.result import Outcome
from evener.settings import Settings

DONE = Finished(global_step=300, first_step=100, examples=20_000, seconds=4.0, train_loss=0.25, dropped_gradients=3,
                mean_staleness=0.5, max_staleness=2, checkpoint="/c", reason="reached step 300")  # fmt: skip


def result(*reports, settings=None):
    outcome = Outcome()
    for report in reports:
        outcome.hear(report)
    return outcome.result(settings or Settings(recipe="mnist", logdir="/l"), first_step_seconds=1.5)


def test_speeds_are_of_this_run_without_what_it_resumed_from():
    figures = result(DONE)

    assert (figures.steps_per_second, figures.examples_per_second) == (50.0, 5000.0)
    assert (figures.global_step, figures.examples, figures.seconds) == (300, 20_000, 4.0)


def test_a_run_that_had_nothing_to_do_took_no_time():
    figures = result(Finished(100, 100, 0, 0.0, math.nan, 0, 0.0, 0, "/c", "already at step 100 of 100"))

    assert (figures.steps_per_second, figures.examples_per_second, figures.train_loss) == (0.0, 0.0, None)


def test_validation_is_that_of_the_end():
    early = Evaluated(100, {"validation_accuracy": 0.5}, final=False)
    late = Evaluated(
        300, {"validation_accuracy": 0.9, "validation_accuracy_ema": 0.91, "validation_f1": 0.8}, final=True
    )
    figures = result(early, late, DONE)

    assert (figures.validation_accuracy, figures.validation_accuracy_ema, figures.validation_loss) == (0.9, 0.91, None)
    assert figures.validation["validation_f1"] == 0.8
    assert result(early, DONE).validation == {}


def test_the_mode_is_named_only_where_there_is_a_cluster():
    sync = Settings(recipe="mnist", mode="sync", ps=1, workers=3, logdir="/l")

    assert (result(DONE).mode, result(DONE).replicas_to_aggregate) == ("single", None)
    assert (result(DONE, settings=sync).mode, result(DONE, settings=sync).replicas_to_aggregate) == ("sync", 3)


def test_json_has_no_nan_and_all_that_the_issue_asks_for():
    nan = Evaluated(300, {"validation_loss": math.nan}, final=True)
    printed = json.loads(json.dumps(result(nan, DONE).as_dict(), allow_nan=False, default=str))

    assert printed["validation_loss"] is None
    assert printed.keys() >= {
        "recipe", "mode", "ps", "workers", "replicas_to_aggregate", "global_step", "examples", "seconds",
        "steps_per_second", "examples_per_second", "train_loss", "validation_loss", "validation_accuracy",
        "validation_accuracy_ema", "dropped_gradients", "mean_staleness", "max_staleness", "checkpoint", "logdir",
    }  # fmt: skip


def test_failures_are_kept_and_the_rest_is_not():
    outcome = Outcome()
    outcome.hear(Line("ps:0", "hello"))
    outcome.hear(Failed("worker:1", "ValueError", "no"))

    assert [failed.task for failed in outcome.failures] == ["worker:1"]
    assert outcome.finished is None
