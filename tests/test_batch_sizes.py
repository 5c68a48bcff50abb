"""Options of a batch size per worker: what they mean, and what they do not go with."""

from fractions import Fraction

import pytest

from evener.errors import ConfigError
from evener.settings import make

SIZES = {"ps": 1, "workers": 3, "batch_sizes": (64, 64, 16)}
SPEED = {"ps": 1, "workers": 3, "batch_by_speed": True, "batch_size": 8}


def refused(**options):
    with pytest.raises(ConfigError) as error:
        make(options)
    assert error.value.fix
    return error.value


def test_a_list_is_as_good_as_a_tuple():
    assert make({**SIZES, "batch_sizes": [64, 64, 16]}) == make(SIZES)


def test_where_one_batch_size_is_asked_for_it_is_the_mean():
    assert make(SIZES).batch_size == 48
    assert make(SIZES | {"batch_sizes": (1, 1, 2)}).mean_batch == Fraction(4, 3)


@pytest.mark.parametrize(
    ("options", "per_step"),
    [
        ({**SIZES, "mode": "sync"}, 144),
        ({**SIZES, "mode": "async"}, 48),
        ({**SIZES, "mode": "bounded", "batch_sizes": (3, 3, 4)}, Fraction(10, 3)),
        ({**SPEED, "mode": "sync"}, 24),
        ({"towers": 3, "batch_sizes": (12, 6, 3)}, 21),
        ({**SPEED, "mode": "async"}, 8),
    ],
)
def test_samples_of_an_update_tell_how_many_updates_an_epoch_has(options, per_step):
    settings = make(options)
    assert settings.per_step == per_step and settings.steps_per_epoch(1000) == Fraction(1000) / per_step


def test_a_lockstep_run_has_so_many_rounds_and_any_other_ends_by_samples():
    assert make({**SIZES, "mode": "sync", "epochs": 2}).steps(720) == 10
    assert not make({**SIZES, "mode": "sync", "epochs": 2}).ends_by_samples
    assert make({**SIZES, "mode": "async", "epochs": 2}).ends_by_samples
    assert not make({**SIZES, "mode": "async", "train_steps": 2}).ends_by_samples


def test_one_worker_alone_can_go_on_with_a_round():
    assert make({**SIZES, "mode": "sync"}).terms.fewest == 1 and not make({**SIZES, "mode": "sync"}).terms.needs_all


@pytest.mark.parametrize("given", [SIZES, SPEED], ids=["sizes", "by speed"])
@pytest.mark.parametrize(
    ("others", "what"),
    [
        ({"batches_per_step": 2}, "does not go with batches_per_step=2."),
        ({"mode": "sync", "replicas_to_aggregate": 2}, "does not go with replicas_to_aggregate=2."),
        ({"mode": "sync", "accumulate": True}, "does not go with accumulate=True."),
        ({"mode": "sync", "elastic": True}, "does not go with elastic=True."),
        ({"mode": "rennala"}, "does not go with mode rennala so far."),
        ({"on_nan": "rollback"}, "does not go with on_nan=rollback so far."),
        ({"script": "train.py"}, "does not go with a program that has a loop of its own so far."),
        ({"ps": 0, "workers": 1, "batch_sizes": (64,)}, "means nothing in one process."),
        ({"ps": 0, "workers": 1, "pipeline_stages": 2}, "does not go with a pipeline."),
    ],
)
def test_what_it_does_not_go_with_is_refused_by_name(given, others, what):
    if "batch_by_speed" in given:
        others = {name: value for name, value in others.items() if name != "batch_sizes"}
    option = "--batch-by-speed" if "batch_by_speed" in given else "--batch-sizes"
    assert refused(**{**given, **others}).what == f"{option} {what}"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({**SIZES, "workers": 2}, "--batch-sizes names 3 sizes for 2 workers."),
        ({"towers": 2, "batch_sizes": (64, 64, 16)}, "--batch-sizes names 3 sizes for 2 towers."),
        ({"towers": 3, "batch_by_speed": True}, "--batch-by-speed needs ps tasks so far."),
        ({"towers": 2, "batch_sizes": (4, 2), "batch_caps": (4, 4)}, "--batch-caps needs ps tasks so far."),
        ({**SPEED, "batch_caps": (4, 4)}, "--batch-caps names 2 sizes for 3 workers."),
        ({**SIZES, "batch_by_speed": True}, "both --batch-sizes and --batch-by-speed say how large batches are."),
        ({**SIZES, "batch_size": 7}, "both --batch-sizes and --batch-size 7 say how large batches are."),
        ({**SIZES, "batch_quantum": 8}, "batch_quantum=8 means nothing beside --batch-sizes."),
        ({**SPEED, "batch_quantum": 4, "batch_caps": (8, 8, 3)}, "--batch-caps with 3 is below --batch-quantum 4."),
        ({**SPEED, "batch_quantum": 16}, "24 samples cannot be shared out among 3 workers by 16."),
        ({"batch_quantum": 8}, "batch_quantum=8 means nothing where all batches are of one size."),
        ({"batch_caps": (8,)}, "batch_caps=(8,) means nothing where all batches are of one size."),
        ({**SIZES, "batch_sizes": (64, 64, 0)}, "batch_sizes with 0 cannot work."),
        ({**SIZES, "batch_sizes": (64, 64, True)}, "batch_sizes with True cannot work."),
        ({**SIZES, "batch_sizes": (64, 64, 1 << 25)}, "batch_sizes with 33554432 cannot work."),
        ({**SIZES, "batch_sizes": "64,64,16"}, "batch_sizes='64,64,16' cannot work."),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, what):
    assert refused(**options).what == what


def test_as_many_gradients_as_workers_is_what_lockstep_is_anyway():
    assert make({**SIZES, "mode": "sync", "replicas_to_aggregate": 3}).by_samples


def test_nothing_is_otherwise_where_nobody_says_it():
    settings = make({"ps": 1, "workers": 3, "mode": "sync"})
    assert (settings.by_samples, settings.per_step, settings.aggregate, settings.mean_batch) == (False, 300, 3, 100)
