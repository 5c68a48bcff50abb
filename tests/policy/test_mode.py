"""Modes are objects: what each one is made of, refuses, asks for and tells; the same questions to all of them."""

import math
from dataclasses import FrozenInstanceError, fields

import pytest

from evener.errors import ConfigError
from evener.modes import MODES, OPTIONS, Bounded, Quorum, Rennala, Ringmaster, Softsync, Sync, mode_of, options_of_mode
from evener.policy.collecting import Collecting
from evener.policy.events import Joined

EVERY = list(MODES.values())
EVERY_OPTION = [(mode, entry) for mode in EVERY for entry in fields(mode)]


@pytest.mark.parametrize("mode", EVERY)
def test_a_mode_is_found_by_its_name_and_tells_people_what_it_is(mode):
    made = mode_of(mode.name, {})

    assert made == mode()
    assert mode.about
    assert all(known.texts for known in OPTIONS.values())
    for entry in fields(mode):
        with pytest.raises(FrozenInstanceError):
            setattr(made, entry.name, None)


@pytest.mark.parametrize("mode", EVERY)
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_mode_starts_a_policy_that_goes_on_from_a_version(mode, workers):
    mode().check(workers)
    policy = mode().start(40, workers)

    assert policy.version == 40
    assert policy.on(Joined(0))


@pytest.mark.parametrize("mode", EVERY)
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_what_a_mode_asks_of_its_workers_goes_together(mode, workers):
    terms = mode().terms(workers)

    assert 1 <= terms.fewest <= workers
    assert terms.held >= (terms.gradients or workers)
    assert not (terms.exact and terms.gradients is None), "exactly as many batches as updates, of an unknown number"
    assert all(isinstance(sentence, str) and sentence for sentence in mode().told(workers, 100))


@pytest.mark.parametrize(("mode", "entry"), EVERY_OPTION, ids=lambda one: getattr(one, "name", None))
@pytest.mark.parametrize("value", [-1, "3", math.nan, math.inf, 10**12, None, 0.5, True])
def test_an_option_takes_what_can_work_and_refuses_all_else(mode, entry, value):
    kind, least = entry.metadata["kind"], entry.metadata["least"]
    fits = {
        bool: isinstance(value, bool),
        int: type(value) is int and least <= value <= 10**9,
        float: type(value) in (int, float) and least <= value <= 10**9,
    }[kind] or (value is None and entry.default is None)
    if fits:
        assert getattr(mode(**{entry.name: value}), entry.name) == value
        return
    with pytest.raises(ConfigError) as refused:
        mode(**{entry.name: value})
    assert refused.value.what.startswith(f"{entry.name}=")
    assert refused.value.fix.startswith(f"{entry.name} must be ")


def test_options_of_several_modes_are_told_for_each():
    assert OPTIONS["gradients_per_update"].texts.keys() == {"rennala", "softsync"}
    assert OPTIONS["max_delay"].texts.keys() == {"ringmaster", "quorum"}
    assert OPTIONS["elastic"].texts.keys() == {"sync", "quorum"}


def test_an_object_and_its_options_apart_are_refused():
    assert mode_of(Bounded(2), {}) == Bounded(2)
    assert options_of_mode(Bounded(2)) == {"staleness": 2}
    with pytest.raises(ConfigError, match="staleness stands beside mode="):
        mode_of(Bounded(2), {"staleness": 3})


def test_an_option_of_another_mode_says_whose_it_is():
    with pytest.raises(ConfigError, match="max_delay=3 means nothing in mode rennala") as refused:
        mode_of("rennala", {"max_delay": 3})
    assert "ringmaster and quorum" in refused.value.why
    assert refused.value.fix == "add --mode ringmaster, or leave --max-delay out."


def test_defaults_follow_from_the_number_of_workers():
    assert Rennala().terms(5).gradients == 20
    assert Softsync().terms(5).gradients == 5
    policy = Ringmaster().start(0, 5)
    assert isinstance(policy, Collecting)
    assert (policy.gradients, policy.delay) == (1, 10)
    assert Quorum().terms(5).fewest == 4
    assert Quorum().terms(1).fewest == 1
    assert Quorum(elastic=True).terms(5).fewest == 1
    assert Sync(elastic=True).terms(5).gradients is None, "epochs end with their samples: updates are of whoever lives"
    assert Sync(elastic=True, replicas_to_aggregate=4).terms(5).gradients == 4


def test_more_than_there_are_workers_can_never_come():
    with pytest.raises(ConfigError, match="quorum=5 can never take a step with 4 workers") as refused:
        Quorum(quorum=5).check(4)
    assert "--quorum 4" in refused.value.fix
    with pytest.raises(ConfigError, match="replicas_to_aggregate=5 can never take a step"):
        Sync(replicas_to_aggregate=5).check(4)


def test_people_are_told_what_it_costs():
    assert Rennala(gradients_per_update=4).told(4, 100) == [
        "one update averages 4 x 100 = 400 samples: tune the learning rate for that; up to 43% of the gradients may "
        "come too late (more --gradients-per-update: fewer)"
    ]
    assert Ringmaster(max_delay=2).told(4, 100)[1] == "--max-delay 2 lets 4 workers do no more than 2 could"
    assert "the gradients of 3 to 4 workers" in Quorum().told(4, 100)[0]
