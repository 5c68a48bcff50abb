"""Each rule beside its formula, written out in a few lines of numpy; what each must never do; what is no rule."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import evener
from evener import rules
from evener.errors import ConfigError
from evener.rules import DCASGD, Around, DelayAdaptive, GapAware, Inverse, Late, Polynomial

delays = st.integers(0, 10_000)
WORKERS = 4


def late(staleness, worker=0):
    return Late(worker, staleness, workers=WORKERS, samples=10)


def numbers(seed, size=50):
    return np.random.default_rng(seed).normal(size=size)


def around(now, sent, kept=None, rate=0.1, decay=0.0):
    return Around(torch.tensor(now), torch.tensor(sent), rate, decay, {} if kept is None else kept)


# --- steps by age


@given(delays)
def test_steps_by_age_are_the_papers(d):
    assert Inverse().scale(late(d)) == pytest.approx(1 / d if d > 1 else 1)
    assert DelayAdaptive().scale(late(d)) == pytest.approx(1 if d <= WORKERS else WORKERS / d)
    assert Polynomial().scale(late(d)) == pytest.approx(1 / math.sqrt(1 + d))


def test_steps_by_age_in_numbers():
    table = {d: [rule.scale(late(d)) for rule in (Inverse(), DelayAdaptive(), Polynomial())] for d in (0, 1, 3, 5, 8)}
    assert table == {
        0: [1, 1, 1], 1: [1, 1, 2**-0.5], 3: [1 / 3, 1, 0.5], 5: [0.2, 0.8, 6**-0.5], 8: [0.125, 0.5, 1 / 3],
    }  # fmt: skip


@given(st.integers(0, 1))
def test_an_age_of_at_most_one_changes_nothing_under_inverse_and_delay_adaptive(d):
    assert Inverse().scale(late(d)) == DelayAdaptive().scale(late(d)) == 1.0


@given(delays)
def test_no_step_grows_with_age_and_usual_ages_are_left_alone_by_delay_adaptive(d):
    for rule in (Inverse(), DelayAdaptive(), Polynomial()):
        assert 0 < rule.scale(late(d + 1)) <= rule.scale(late(d)) <= 1
    assert (DelayAdaptive().scale(late(d)) == 1) == (d <= WORKERS)


def test_a_usual_delay_may_be_said():
    assert DelayAdaptive(usual=8).scale(late(16)) == 0.5


# --- DC-ASGD


def test_dc_is_the_papers_formula():
    g, now, sent = numbers(0), numbers(1), numbers(2)
    made = DCASGD(0.04).compensate(torch.tensor(g), late(3), around(now, sent))
    np.testing.assert_allclose(made.numpy(), g + 0.04 * g * g * (now - sent), rtol=1e-12)
    assert DCASGD().compensate(torch.tensor([3.0]), late(1), around([2.0], [1.0])).item() == pytest.approx(3.36)


def test_adaptive_dc_takes_each_gradient_into_its_mean_square_first():
    rule, kept, ms = DCASGD(adaptive=True), {}, np.zeros(50)
    for step in range(5):
        g, now, sent = numbers(3 * step), numbers(3 * step + 1), numbers(3 * step + 2)
        made = rule.compensate(torch.tensor(g), late(2), around(now, sent, kept))
        ms = 0.95 * ms + 0.05 * g * g
        np.testing.assert_allclose(made.numpy(), g + 2.0 / np.sqrt(ms + 1e-7) * g * g * (now - sent), rtol=1e-12)
    np.testing.assert_allclose(kept["dc_square"].numpy(), ms, rtol=1e-12)


def test_of_one_that_is_not_late_dc_changes_nothing_but_its_mean_square():
    g, kept = torch.tensor([-0.0, 1e30, 2.0]), {}
    assert DCASGD(adaptive=True).compensate(g, late(0), around([1.0] * 3, [1.0] * 3, kept)) is g
    assert kept["dc_square"][2] == pytest.approx(0.2)
    assert DCASGD().compensate(g, late(0), around([1.0] * 3, [0.0] * 3)) is g


# --- gap-aware


def test_gap_is_the_papers_formula():
    """Steps and rates of five updates, then one late gradient."""
    rule, kept, square = GapAware(), {}, np.zeros(50)
    rates = [0.05, 0.2, 0.1, 0.1, 0.02]
    for number, rate in enumerate(rates):
        step = rate * numbers(number)
        rule.stepped(torch.tensor(step), around(step, step, kept, rate))
        square = 0.999 * square + 0.001 * (step / rate) ** 2
    g, now, sent = numbers(10), numbers(11), numbers(12)
    rms = np.sqrt(square / (1 - 0.999**5)) + 1e-8
    penalty = 1 + np.abs(now - sent) / (0.2 * rms)
    made = rule.compensate(torch.tensor(g), late(2), around(now, sent, kept, rate=0.02))
    np.testing.assert_allclose(made.numpy(), g / penalty, rtol=1e-12)

    decayed = rule.compensate(torch.tensor(g), late(2), around(now, sent, kept, rate=0.02, decay=0.3))
    np.testing.assert_allclose(decayed.numpy() + 0.3 * now, (g + 0.3 * now) / penalty, rtol=1e-12)


def test_a_gap_of_one_usual_step_halves_a_gradient():
    rule, kept = GapAware(), {}
    rule.stepped(torch.tensor([0.5]), around([0.0], [0.0], kept, rate=0.5))
    assert rule.compensate(torch.tensor([8.0]), late(1), around([0.5], [0.0], kept, 0.5)).item() == pytest.approx(4.0)


def test_gap_changes_nothing_before_the_first_update_nor_of_one_that_is_not_late():
    g, kept = torch.tensor([1.0, 2.0]), {}
    assert GapAware().compensate(g, late(3), around([1.0, 1.0], [0.0, 0.0], kept)) is g
    GapAware().stepped(g, around([1.0, 1.0], [0.0, 0.0], kept))
    assert GapAware().compensate(g, late(0), around([1.0, 1.0], [1.0, 1.0], kept, decay=0.1)) is g


def test_a_rate_that_decays_makes_no_gap_look_wider_and_a_rate_of_nothing_is_no_step():
    rule, kept = GapAware(), {}
    rule.stepped(torch.tensor([0.0]), around([0.0], [0.0], kept, rate=0.0))
    assert kept == {}
    rule.stepped(torch.tensor([0.5]), around([0.0], [0.0], kept, rate=0.5))
    before = rule.compensate(torch.tensor([8.0]), late(1), around([0.5], [0.0], kept, 0.5))
    assert torch.equal(rule.compensate(torch.tensor([8.0]), late(1), around([0.5], [0.0], kept, 0.001)), before)


@pytest.mark.parametrize("rule", [DCASGD(), DCASGD(adaptive=True), GapAware()])
def test_a_split_gives_the_same_bits_and_the_gradient_itself_stays(rule):
    def of(part):
        kept = {}
        for step in range(3):
            pieces = [torch.tensor(numbers(step + k, 37), dtype=torch.float32)[part] for k in (10, 20, 30)]
            before = pieces[0].clone()
            made = rule.compensate(pieces[0], late(2), Around(pieces[1], pieces[2], 0.1, 0.01, kept))
            assert torch.equal(pieces[0], before)
            if isinstance(rule, GapAware):
                rule.stepped(pieces[1] - pieces[2], Around(pieces[1], pieces[2], 0.1, 0.0, kept))
        return made

    cut = [of(slice(0, 5)), of(slice(5, 22)), of(slice(22, 37))]
    assert torch.equal(of(slice(0, 37)), torch.cat(cut))


# --- chains


class Mine:
    keeps = ("mine_count",)

    def compensate(self, gradient, late, around):
        return gradient


def test_a_command_line_counts_in_place_of_what_a_recipe_says_of_the_same_kind():
    mine = Mine()
    assert rules.chain([Inverse(), mine], None, None) == (Inverse(), mine)
    assert rules.chain([Inverse(), mine], "delay_adaptive", None) == (mine, DelayAdaptive())
    assert rules.chain([Inverse(), mine], None, "dc") == (Inverse(), DCASGD())
    assert rules.chain([Inverse(), mine], "none", "none") == ()


def test_lengths_multiply():
    assert rules.scale_of([Inverse(), Mine(), Inverse()], late(4)) == 1 / 16


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_what_is_no_length_is_refused_with_the_rule_that_gave_it(scale):
    class Wrong:
        def scale(self, late):
            return scale

    with pytest.raises(ConfigError, match="Wrong gave a step scale of"):
        rules.scale_of([Wrong()], late(1))


class Twice(Mine):
    keeps = ("dc_square",)


class Slashed(Mine):
    keeps = ("a/b",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Inverse(), "is a list"), ("inverse", "is a list"), ([Inverse], "no update rule"), (["dc"], "no update rule"),
        ([DCASGD(adaptive=True), Twice()], "'dc_square' twice"), ([Slashed()], "'a/b'"),
    ],
)  # fmt: skip
def test_what_is_no_chain_of_rules_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        rules.check_rules(given)


@pytest.mark.parametrize("make", [lambda: DCASGD(-1), lambda: DelayAdaptive(0.5), lambda: Polynomial(math.inf)])
def test_numbers_that_cannot_work_are_refused(make):
    with pytest.raises(ConfigError, match="cannot work"):
        make()


def test_rules_are_found_where_evener_is():
    assert evener.rules is rules
    assert rules.described([Inverse(), Mine()]) == "Inverse(), Mine"


# --- docs/rules.md

PAGE = (Path(__file__).parents[1] / "docs" / "rules.md").read_text()


def test_the_page_names_every_rule_that_an_option_names():
    for name in [*rules.STALENESS_LR, *rules.COMPENSATE]:
        assert (
            name == "none" or f"| `{name}` | `{type((rules.STALENESS_LR | rules.COMPENSATE)[name]).__name__}(" in PAGE
        )


def test_the_rule_of_ones_own_on_the_page_is_one():
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(code, names)
    (rule,) = rules.check_rules([names["Halved"]()])
    kept: dict = {}
    for value in (1.0, 100.0):
        made = rule.compensate(torch.tensor([value]), late(1), around([0.0], [0.0], kept))
    assert made.item() == pytest.approx(2 * (0.9 + 10.0)) and set(kept) == set(rule.keeps)
    assert [rule.scale(late(d)) for d in (0, 2)] == [1.0, 0.5]
