"""Which rules a run has: what goes with what, what is told, and how much memory there must be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evener import rules
from evener.errors import ConfigError
from evener.modes import Quorum, Ringmaster
from evener.rules import DCASGD, DelayAdaptive, GapAware, Inverse
from evener.settings import make
from evener.task import ruling
from evener.task.build import build
from evener.wire.agreed import differing

sys.path.append(str(Path(__file__).parents[1]))
from training import recipe_of

PS = {"ps": 2, "workers": 3}
#: In these no gradient is late.
NEVER = [
    {}, {"towers": 2}, {"mode": "sync", **PS}, {"mode": "sync", "replicas_to_aggregate": 2, **PS},
    {"mode": "rennala", **PS}, {"mode": Ringmaster(max_delay=1), **PS}, {"mode": Quorum(max_delay=1), **PS},
]  # fmt: skip
LATE = [{"mode": mode, **PS} for mode in ("async", "bounded", "ringmaster", "softsync", "quorum")]


def built(options, chain=(), **parts):
    return build(make(options), recipe_of(rules=chain, **parts))


@pytest.mark.parametrize("options", NEVER, ids=str)
def test_where_no_gradient_is_late_there_are_no_rules_and_that_is_told(options):
    for made in (built(options, [GapAware()]), built({**options, "staleness_lr": "inverse"})):
        assert made.recipe.rules == ()
        assert "changes nothing" in made.note and "no gradient is late" in made.note
    plain = built(options)
    assert (plain.note, plain.fingerprint) == ("", made.fingerprint)
    assert built({**options, "staleness_lr": "none"}).note == ""
    with pytest.raises(ConfigError, match="compensate=gap means nothing"):
        make({**options, "compensate": "gap"})
    make({**options, "compensate": "none"})


@pytest.mark.parametrize("options", LATE, ids=lambda options: options["mode"])
def test_elsewhere_what_the_command_line_says_counts(options):
    made = built({**options, "staleness_lr": "delay_adaptive", "compensate": "dc"}, [Inverse(), GapAware()])
    assert made.recipe.rules == (DCASGD(), DelayAdaptive())
    assert made.note == ""
    assert made.fingerprint != built(options).fingerprint, "all tasks must have the same rules"


def test_a_task_that_would_have_two_gradients_in_flight_is_another_one_before_it_is_let_in():
    """It has begun when ps:0 gives it one batch, and ends the run of the others by its error."""
    one, two = (built({**PS, "mode": "async", "in_flight": gradients}).fingerprint for gradients in (1, 2))
    assert differing(two, one) == ("recipe with in flight=2", "recipe with in flight=1")


@pytest.mark.parametrize("name", ["staleness_lr", "compensate"])
@pytest.mark.parametrize("value", ["dcc", "", 3])
def test_names_that_are_none_are_refused_with_those_that_are(name, value):
    with pytest.raises(ConfigError, match="cannot work") as refused:
        make({**PS, name: value})
    assert "none, " in refused.value.why


def test_the_norm_of_compensated_gradients_is_known_to_one_ps_alone():
    with pytest.raises(ConfigError, match=r"clip_norm=1.0 does not go with DCASGD.* on 2 ps tasks"):
        built({**PS, "compensate": "dc"}, clip_norm=1.0)
    for options in ({**PS, "compensate": "dc", "ps": 1}, {**PS, "staleness_lr": "inverse"}):
        assert built(options, clip_norm=1.0).recipe.rules


def test_what_a_worker_with_two_gradients_in_flight_was_sent_is_not_known():
    options = {**PS, "mode": "async", "in_flight": 2}
    with pytest.raises(ConfigError, match="compensate=dc does not go with in_flight=2"):
        make({**options, "compensate": "dc"})
    with pytest.raises(ConfigError, match=r"GapAware.* does not go with in_flight=2"):
        built(options, [GapAware()])
    assert built({**options, "staleness_lr": "inverse"}, [Inverse()]).recipe.rules


def test_copies_are_told_and_refused_above_the_machines_memory(monkeypatch):
    settings = make({**PS, "compensate": "dc"})
    made = build(settings, recipe_of())
    numbers = 7 * 61 + 61 + 61 + 61 + 61 * 5 + 5 + 1
    told = ruling.copies_told(made.recipe, made.layout, settings)
    assert told.startswith("DCASGD(strength=0.04, adaptive=False) keeps 3 copies of the parameters: 0.00")
    assert float(told.split(": ")[1].split()[0]) == pytest.approx(3 * 4 * numbers / 2 / 1e6, rel=0.15)
    assert ruling.copies_told(replace(made.recipe, rules=(Inverse(),)), made.layout, settings) == ""

    monkeypatch.setattr(ruling, "memory", lambda: 5000)
    with pytest.raises(ConfigError, match="keeps 3 copies of the parameters on each ps task"):
        ruling.copies_told(made.recipe, made.layout, settings)


def test_a_recipe_holds_rules_and_nothing_else():
    with pytest.raises(ConfigError, match="no update rule"):
        recipe_of(rules=[Inverse])
    assert rules.described(recipe_of(rules=[Inverse()]).rules) == "Inverse()"
