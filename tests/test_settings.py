"""Settings: what a user may choose, checked when it is made, refused with what is wrong and how to mend it."""

import math
import re
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given, strategies as st

from evener.choices import TRANSPORTS
from evener.errors import ConfigError
from evener.modes import MODES, Bounded, Quorum, Sync
from evener.settings import Settings, as_options, make

NOT_INTEGERS = [-1, 1.5, "3", True, float("nan")]
NOT_SECONDS = [0, -1.0, float("nan"), float("inf"), "60", True]


def chosen(**options):
    return make(options)


def refused(**options):
    with pytest.raises(ConfigError) as error:
        chosen(**options)
    assert error.value.fix
    return error.value


# --- each value alone

#: Options of one mode.
READ_BY = {
    "replicas_to_aggregate": {"mode": "sync", "ps": 1, "workers": 2},
    "staleness": {"mode": "bounded", "ps": 1, "workers": 2},
}


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
@pytest.mark.parametrize(
    "name",
    ["ps", "workers", "staleness", "batch_size", "seed", "threads", "keep", "log_every", "max_restarts",
     "replicas_to_aggregate", "train_steps", "save_checkpoint_steps", "eval_every"],
)  # fmt: skip
def test_counts_are_integers_that_are_not_negative(name, value):
    error = refused(**{name: value}, **READ_BY.get(name, {}))

    assert error.what == f"{name}={value!r} cannot work."
    assert error.fix.startswith(f"{name} must be an integer >= ")


@pytest.mark.parametrize(
    "name",
    ["workers", "batch_size", "threads", "keep", "log_every", "replicas_to_aggregate", "save_checkpoint_steps",
     "eval_every"],
)  # fmt: skip
def test_most_counts_are_at_least_one(name):
    assert refused(**{name: 0}, **READ_BY.get(name, {})).fix == f"{name} must be an integer >= 1."


@pytest.mark.parametrize("name", ["ps", "seed", "max_restarts", "train_steps"])
def test_some_counts_may_be_zero(name):
    assert getattr(chosen(**{name: 0}), name) == 0


def test_workers_in_bounded_may_have_to_keep_step():
    assert chosen(mode="bounded", ps=1, workers=2, staleness=0).mode == Bounded(0)
    assert chosen(mode="bounded", ps=1, workers=2).mode == Bounded(4)


@pytest.mark.parametrize("value", NOT_SECONDS, ids=repr)
@pytest.mark.parametrize("name", ["save_checkpoint_secs", "save_summary_secs", "stall_timeout", "epochs"])
def test_seconds_and_epochs_are_finite_numbers_above_zero(name, value):
    error = refused(**{name: value})

    assert error.what == f"{name}={value!r} cannot work."
    assert error.fix == f"{name} must be a number > 0."


@pytest.mark.parametrize(
    "name",
    ["train_steps", "save_checkpoint_steps", "eval_every", "save_checkpoint_secs", "epochs"],
)
def test_what_may_be_left_out_may_be_none(name):
    assert getattr(chosen(**{name: None}), name) is None


@pytest.mark.parametrize("name", ["workers", "stall_timeout", "save_summary_secs", "keep"])
def test_the_rest_may_not(name):
    refused(**{name: None})


def test_a_seed_that_pytorch_cannot_take_is_refused():
    assert refused(seed=2**63).fix == "seed must be an integer <= 9223372036854775807."
    chosen(seed=2**63 - 1)


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("asynch", "did you mean 'async'?"),
        ("bound", "did you mean 'bounded'?"),
        ("zzz", f"the modes are: {', '.join(MODES)}."),
        (None, f"the modes are: {', '.join(MODES)}."),
        (3, f"the modes are: {', '.join(MODES)}."),
    ],
)
def test_an_unknown_mode_is_refused_with_the_nearest_or_all(value, fix):
    error = refused(mode=value)

    assert (error.what, error.fix) == (f"unknown mode {value!r}.", fix)


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("transport", "udp", "use one of: auto, shared, tcp."),
        ("placement", "evenly", "use one of: even, round_robin, greedy."),
    ],
)
def test_an_unknown_choice_is_refused_with_all(name, value, fix):
    error = refused(**{name: value})

    assert (error.what, error.fix) == (f"unknown {name} {value!r}.", fix)


def test_every_mode_and_transport_can_be_chosen():
    for mode in MODES:
        for transport in TRANSPORTS:
            chosen(mode=mode, transport=transport, ps=1, workers=2)


# --- values beside each other


def test_workers_without_a_ps_have_nobody_to_hold_their_parameters():
    error = refused(ps=0, workers=2)

    assert error.what == "2 workers have nobody to hold their parameters."
    assert error.fix == "add --ps 1, or use --towers 2: each holds them all and averages with the others."


def test_towers_hold_the_parameters_themselves_and_each_update_averages_them_all():
    settings = chosen(towers=3, workers=3, batch_size=10, epochs=2)

    assert (settings.way, settings.aggregate, settings.steps(60), settings.steps_per_epoch(60)) == ("towers", 3, 4, 2.0)
    assert (chosen(towers=1).way, chosen(towers=1).aggregate) == ("single", 1)
    assert chosen(ps=1, mode="bounded").way == "bounded"
    assert refused(ps=1, towers=2).what == "towers=2 and ps=1 are both given."
    assert "--towers 4" in refused(towers=2, workers=4).fix


def test_more_gradients_than_workers_need_accumulation():
    error = refused(mode="sync", ps=1, workers=2, replicas_to_aggregate=5)

    assert error.what == "sync with replicas_to_aggregate=5 can never take a step with 2 workers."
    assert error.why == "each step averages 5 gradients and each worker gives one."
    assert "start 3 more" in error.fix
    assert "--replicas-to-aggregate 2" in error.fix
    assert "--accumulate" in error.fix
    assert chosen(mode="sync", ps=1, workers=2, replicas_to_aggregate=5, accumulate=True).aggregate == 5


def test_fewer_gradients_than_workers_are_backup_workers():
    assert chosen(mode="sync", ps=1, workers=3, replicas_to_aggregate=2).aggregate == 2


@pytest.mark.parametrize(
    ("mode", "gradients"), [("async", 1), ("bounded", 1), ("ringmaster", 1), ("rennala", 8), ("softsync", 2)]
)
def test_how_many_gradients_an_update_averages(mode, gradients):
    assert chosen(mode=mode, ps=1, workers=2).aggregate == gradients


def test_a_mode_may_be_said_as_an_object_that_carries_its_options():
    settings = chosen(mode=Sync(replicas_to_aggregate=2), ps=1, workers=3)

    assert settings == chosen(mode="sync", ps=1, workers=3, replicas_to_aggregate=2)
    assert make(as_options(settings)) == settings
    assert refused(mode=Sync(), ps=1, staleness=3).fix == "say it there: Sync(...)."
    assert refused(mode=Sync(replicas_to_aggregate=2)).what == "replicas_to_aggregate=2 means nothing without ps tasks."


BACKUP = {"replicas_to_aggregate": 2}


@pytest.mark.parametrize(
    ("option", "where", "says"),
    [
        (BACKUP, {"ps": 1, "workers": 3}, "replicas_to_aggregate=2 means nothing in mode async."),
        (BACKUP, {"mode": "bounded", "ps": 1, "workers": 3}, "replicas_to_aggregate=2 means nothing in mode bounded."),
        (BACKUP, {"mode": "sync"}, "replicas_to_aggregate=2 means nothing without ps tasks."),
        (BACKUP, {"towers": 3}, "replicas_to_aggregate=2 means nothing without ps tasks."),
        ({"accumulate": True}, {"ps": 1, "workers": 2}, "accumulate=True means nothing in mode async."),
        ({"accumulate": True}, {"mode": "sync"}, "accumulate=True means nothing without ps tasks."),
        ({"elastic": True}, {"mode": "bounded", "ps": 1}, "elastic=True means nothing in mode bounded."),
        ({"elastic": True}, {"towers": 2}, "elastic=True means nothing without ps tasks."),
        ({"staleness": 0}, {"ps": 1, "workers": 2}, "staleness=0 means nothing in mode async."),
        ({"staleness": 4}, {"mode": "sync", "ps": 1}, "staleness=4 means nothing in mode sync."),
        ({"staleness": 4}, {"mode": "bounded"}, "staleness=4 means nothing without ps tasks."),
    ],
)
def test_an_option_where_it_means_nothing_is_refused_with_the_mode_that_it_belongs_to(option, where, says):
    error = refused(**option, **where)

    (name,) = option
    mode = "bounded" if name == "staleness" else "sync"
    assert error.what == says
    assert f": an option of mode {mode}" in error.why
    servers = "" if where.get("ps") else "--ps P --workers W "
    assert error.fix == f"add {servers}--mode {mode}, or leave --{name.replace('_', '-')} out."
    chosen(**option, mode=mode, ps=1, workers=3)  # there it does


def test_hosts_are_named_one_for_each_ps():
    error = refused(ps=2, workers=1, ps_hosts=("127.0.0.1:2222",))

    assert error.what == "1 ps hosts are named, but ps=2."
    chosen(ps=1, ps_hosts=("127.0.0.1:2222",))


def test_steps_and_epochs_cannot_both_say_how_long():
    error = refused(train_steps=100, epochs=2)

    assert error.what == "both train_steps=100 and epochs=2 say how long to train."


# --- how long

SYNC = {"mode": "sync", "ps": 1, "workers": 2}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 2000),
        ({"train_steps": 5}, 5),
        ({"train_steps": 0}, 0),
        ({"epochs": 1}, 10),
        ({"epochs": 2.5}, 25),
        ({"epochs": 0.01}, 1),  # 10 samples are a batch that is not full
        ({"epochs": 0.0001}, 1),
        ({"epochs": 2.2, "batch_size": 1}, 2200),  # 2.2 * 1000 / 1 is a little more in floating point
        ({"epochs": 1, "mode": "async", "ps": 1, "workers": 4}, 10),  # updates, whoever makes them
        ({"epochs": 1, "mode": "bounded", "ps": 1, "workers": 4}, 10),
        ({"epochs": 1, **SYNC}, 5),  # each update takes two batches
        ({"epochs": 1, **SYNC, "replicas_to_aggregate": 1}, 10),
        ({"epochs": 1, **SYNC, "replicas_to_aggregate": 4, "accumulate": True}, 3),
        ({"epochs": 1, "mode": "sync"}, 10),  # one process
    ],
)
def test_steps_of_a_run_over_a_thousand_samples_in_hundreds(options, steps):
    assert chosen(**options).steps(1000) == steps


def test_epochs_are_not_rounded_up_by_floating_point():
    assert 2.2 * 1500 / 100 > 33
    assert chosen(epochs=2.2).steps(1500) == 33


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 10.0), ({"batch_size": 300}, 10 / 3), (SYNC, 5.0), ({"mode": "async", "ps": 1, "workers": 4}, 10.0)],
)
def test_updates_in_one_pass_over_a_thousand_samples(options, steps):
    assert math.isclose(chosen(**options).steps_per_epoch(1000), steps)


# --- by name


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown option 'batchsize'") as error:
        make({"batchsize": 10})
    assert error.value.fix == "did you mean 'batch_size'?"


def test_an_option_like_no_other_is_refused_with_all():
    with pytest.raises(ConfigError, match=r"unknown option 'xyzzy'") as error:
        make({"xyzzy": 10})
    assert all(entry.name in error.value.fix for entry in fields(Settings))


def test_known_names_make_settings():
    assert make({"mode": "sync", "ps": 1, "workers": 2}) == chosen(mode="sync", ps=1, workers=2)


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        chosen().ps = 2


# --- pipelines


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"pipeline_stages": 2, "ps": 1}, "2 pipeline stages do not go with 1 ps, 1 workers, 0 towers."),
        ({"pipeline_stages": 2, "place": {"": "cuda:0"}}, "a pipeline over processes computes on the CPU so far."),
        ({"pipeline_stages": 2, "microbatches": 3}, "microbatches=3 of a batch of 100 in 2 stages."),
        ({"pipeline_stages": 4, "microbatches": 2}, "microbatches=2 of a batch of 100 in 4 stages."),
        ({"pipeline_stages": 3, "batch_size": 2}, "microbatches=2 of a batch of 2 in 3 stages."),
        ({"pipeline_schedule": "zero"}, "unknown pipeline_schedule 'zero'."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_pipeline_that_cannot_work_is_refused(options, what):
    assert refused(**options).what == what


@pytest.mark.parametrize(("stages", "batch", "chunks"), [(2, 100, 2), (3, 100, 4), (4, 128, 4), (3, 7, 7)])
def test_a_batch_is_cut_into_the_fewest_equal_microbatches_that_keep_every_stage_busy(stages, batch, chunks):
    assert chosen(pipeline_stages=stages, batch_size=batch).chunks == chunks


def test_a_former_name_of_a_transport_still_means_it():
    assert chosen(ps=1, transport="zeromq").transport == "tcp"


# --- workers that come and go


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_two_numbers_are_the_fewest_and_the_most_workers(one, other):
    low, high = sorted((one, other))

    settings = chosen(ps=1, workers=f"{low}..{high}", mode="sync")
    assert (settings.min_workers, settings.workers) == (low, high)
    assert settings.terms.fewest == low and not settings.terms.needs_all
    assert make(as_options(settings)) == settings


ENDS = st.text("0123-x. ", max_size=3)


@given(ENDS, ENDS)
def test_what_is_no_range_of_workers_is_refused_with_how_to_write_one(low, high):
    text = f"{low}..{high}"
    found = re.fullmatch(r" *(\d+) *\.\. *(\d+) *", text)
    if found and 1 <= int(found[1]) <= int(found[2]):
        assert chosen(ps=1, workers=text).workers == int(found[2])
        return
    error = refused(ps=1, workers=text)
    assert error.what == f"workers={text!r} cannot work."
    assert error.fix == "write --workers 2..8: at least 2, at most 8."


@pytest.mark.parametrize(
    ("text", "why"),
    [("8..2", "the first number is the lower one."), ("0..3", "without a worker nothing is trained."),
     ("2..", "it is no number and no range."), ("..3", "it is no number and no range."),
     ("1...3", "it is no number and no range."), ("x..y", "it is no number and no range.")],
)  # fmt: skip
def test_each_wrong_range_says_what_is_wrong_with_it(text, why):
    assert refused(ps=1, workers=text).why == why


def test_a_word_is_no_number_of_workers():
    assert refused(ps=1, workers="x").fix == "workers must be an integer >= 1."


def test_workers_that_come_and_go_need_ps_tasks_that_wait_for_them():
    assert "use --towers 8" in refused(workers="2..8").fix
    assert refused(workers="1..1").what == "workers=1..1 cannot come and go without ps tasks."
    assert refused(ps=1, workers=2, min_workers=3).fix == "use --workers 2..3."


def test_who_is_not_here_is_not_waited_for_in_sync_and_quorum():
    assert chosen(ps=1, workers="2..8", mode="sync").mode == Sync(elastic=True)
    assert chosen(ps=1, workers="2..8", mode="quorum").mode == Quorum(elastic=True)
    assert chosen(ps=1, workers="2..8", mode="bounded").mode == Bounded()
    by_speed = chosen(ps=1, workers="2..8", mode="sync", batch_by_speed=True)
    assert by_speed.mode == Sync() and by_speed.terms.fewest == 2, "a round is so many samples, whoever computes them"


def test_a_notice_is_a_path_or_an_address_of_the_web():
    for place in ("", "/run/notice", "notice", "http://169.254.169.254/latest", "https://here/there"):
        assert chosen(preemption_notice=place).preemption_notice == place
    for place in ("ftp://here/there", "s3://bucket/key", 3):
        assert refused(preemption_notice=place).what == f"preemption_notice={place!r} cannot work."


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"mode": "sync"}, "in_flight=2 means nothing in mode sync"),
        ({"mode": "bounded"}, "in_flight=2 means nothing in mode bounded"),
        ({"ps": 0, "workers": 1}, "in_flight=2 means nothing without ps tasks"),
        ({"batch_sizes": (10, 20)}, "in_flight=2 does not go with a batch size for each worker"),
        ({"batch_by_speed": True}, "in_flight=2 does not go with a batch size for each worker"),
    ],
)
def test_two_gradients_in_flight_are_of_plain_async_alone(options, what):
    with pytest.raises(ConfigError, match=what) as refused:
        make({"ps": 1, "workers": 2, "in_flight": 2} | options)
    assert refused.value.why and refused.value.fix
    made = make({"ps": 1, "workers": 2, "in_flight": 2})
    assert made.terms.in_flight == 2 and make(as_options(made)) == made
