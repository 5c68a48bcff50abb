"""Whole runs with rules beside a loop of plain numbers that knows nothing of evener; and the traps of MODES 5, planted.

Each bug that others have shipped is put in for once, and the comparison must see it.
"""

from __future__ import annotations

import math

import pytest
import torch

from evener.rules import DCASGD, DelayAdaptive, GapAware, Inverse, Polynomial
from evener.state import rules as arithmetic
from evener.state.ruled import Ruled
from evener.state.step_scale import StepScale
from evener.testing import Cluster, row_recipe

WORKERS, RATE, DECAYS, MOMENTUM, PENALTY = 3, 0.5, 0.8, 0.6, 0.125
#: Who pushes: worker 2 comes seldom and late.
SCHEDULE = [0, 1, 0, 1, 1, 0, 0, 1, 2, 0, 1, 2, 2, 0, 0, 0, 0, 0, 1, 2]

SCALES = {
    "none": lambda d: 1.0,
    "inverse": lambda d: 1.0 if d == 0 else 1.0 / d,
    "delay_adaptive": lambda d: 1.0 if d <= WORKERS else WORKERS / d,
    "polynomial": lambda d: 1.0 / math.sqrt(1 + d),
}
PLANS = [
    {"staleness_lr": "inverse"}, {"staleness_lr": "delay_adaptive"},
    {"compensate": "dc", "staleness_lr": "polynomial"}, {"compensate": "dc_adaptive"}, {"compensate": "gap"},
    {"compensate": "gap", "staleness_lr": "inverse", "mode": "softsync", "gradients_per_update": 2},
    {"compensate": "dc_adaptive", "staleness_lr": "polynomial", "mode": "softsync", "gradients_per_update": 3},
]  # fmt: skip
NAMES = ["+".join(map(str, plan.values())) for plan in PLANS]


def value_of(lease):
    return math.sin(1.0 + lease)


class ByHand:
    """One number, descended by SGD with momentum and weight decay."""

    def __init__(self, compensate="none", staleness_lr="none", gradients_per_update=1, mode="async"):
        self.kind, self.scale, self.needed = compensate, SCALES[staleness_lr], gradients_per_update
        self.w, self.buffer, self.rate, self.largest, self.steps = 0.0, 0.0, RATE, 0.0, 0
        self.dc_square = self.gap_square = 0.0
        self.version, self.waiting = 0, []
        self.has = {worker: (worker, 0, 0.0) for worker in range(WORKERS)}  # lease, version, parameters
        self.next = WORKERS

    def push(self, worker):
        lease, version, sent = self.has[worker]
        self.waiting.append((lease, version, sent))
        if len(self.waiting) == self.needed:
            self.update()
        self.has[worker] = (self.next, self.version, self.w)
        self.next += 1

    def update(self):
        total = mean = 0.0
        for lease, version, sent in sorted(self.waiting):
            d = self.version - version
            total += self.scale(d) / self.needed
            mean += self.scale(d) * self.compensated(value_of(lease), d, sent) / self.needed
        old, gradient = self.w, mean + PENALTY * self.w  # mean = s g: what SGD is to see
        self.buffer = MOMENTUM * self.buffer + gradient if self.version else gradient
        self.w -= self.rate * self.buffer
        self.steps += 1
        self.gap_square = 0.999 * self.gap_square + 0.001 * ((self.w - old) / self.rate) ** 2
        self.largest = max(self.largest, self.rate)
        self.rate *= DECAYS
        self.version += 1
        self.waiting = []

    def compensated(self, g, d, sent):
        moved = self.w - sent
        self.dc_square = 0.95 * self.dc_square + 0.05 * g * g
        if d == 0:
            return g
        if self.kind == "dc":
            return g + 0.04 * g * g * moved
        if self.kind == "dc_adaptive":
            return g + 2 / math.sqrt(self.dc_square + 1e-7) * g * g * moved
        if self.kind == "gap" and self.steps:
            rms = math.sqrt(self.gap_square / (1 - 0.999**self.steps)) + 1e-8
            return (g + PENALTY * self.w) / (1 + abs(moved) / (self.largest * rms)) - PENALTY * self.w
        return g


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=PENALTY)


def both(plan, directory, ps=2):
    """What evener's ps tasks and the plain loop have after the schedule."""
    recipe = row_recipe(
        samples=200, optimizer=sgd, lr_scheduler=lambda made, _: torch.optim.lr_scheduler.ExponentialLR(made, DECAYS)
    )
    plain = ByHand(**plan)
    options = {"workers": WORKERS, "train_steps": 99, "batch_size": 2, "mode": "async", "ps": ps, **plan}
    with Cluster(recipe, directory, **options) as cluster:
        workers = cluster.started(*range(WORKERS))
        for index in SCHEDULE:
            workers[index].push(value_of(workers[index].turn.lease))
            plain.push(index)
        row = cluster.parameters()["row"]
        assert bool((row == row[0]).all()) and cluster.step == plain.version
        return float(row[0]), plain.w


@pytest.mark.parametrize("plan", PLANS, ids=NAMES)
def test_a_run_is_what_a_plain_loop_computes(plan, tmp_path):
    found, expected = both(plan, tmp_path)
    assert found == pytest.approx(expected, rel=1e-11)


# --- planted


def one_previous_weight_for_all(patch):
    """MXNet keeps one for each parameter, not for each worker: it makes up for one step, whatever the delay."""
    patch.setattr(Ruled, "has", lambda self, worker: self._newest)


def what_the_worker_has_now(patch):
    """In softsync its gradient waits while it goes on."""
    real = Ruled.compensated

    def late(self, gradient, out, about, *, sent, unused=()):
        return real(self, gradient, out, about, sent=self.has(about.worker), unused=unused)

    patch.setattr(Ruled, "compensated", late)


def the_rate_instead_of_the_gradient(patch):
    """With momentum the late gradient stays at full weight, and innocent ones are damped."""
    real = StepScale.__init__

    def init(self, optimizer):
        real(self, optimizer)
        self._linear = False

    patch.setattr(StepScale, "__init__", init)


def divided_by_the_sum_of_scales(patch):
    real = arithmetic.weigh
    patch.setattr(arithmetic, "weigh", lambda counts, scales: (real(counts, scales)[0], 1.0))


def scales_without_weights(patch):
    real = arithmetic.weigh
    patch.setattr(arithmetic, "weigh", lambda counts, scales: (None, real(counts, scales)[1]))


def one_more_than_the_delay(patch):
    """lr / (1 + d) is another rule."""
    patch.setattr(Inverse, "scale", lambda self, late: 1 / (1 + late.staleness))


def eta_over_d_read_literally(patch):
    """It jumps from 1 to 1 / (C + 1)."""
    patch.setattr(
        DelayAdaptive, "scale", lambda self, late: 1.0 if late.staleness <= late.workers else 1 / late.staleness
    )


def workers_that_live_less_one(patch):
    real = DelayAdaptive.scale
    patch.setattr(DelayAdaptive, "scale", lambda self, late: real(DelayAdaptive(late.workers - 1), late))


def a_power_of_one(patch):
    patch.setattr(Polynomial, "scale", lambda self, late: 1 / (1 + late.staleness))


def squares_after_use(patch):
    def compensate(self, gradient, late, around):
        made = gradient
        if "dc_square" in around.kept and late.staleness:
            strength = self.strength / (around.kept["dc_square"] + 1e-7).sqrt()
            made = gradient + strength * gradient * gradient * (around.now - around.sent)
        old = around.kept.get("dc_square", torch.zeros_like(gradient))
        around.kept["dc_square"] = 0.95 * old + 0.05 * gradient * gradient
        return made

    patch.setattr(DCASGD, "compensate", compensate)


def squares_of_the_decayed_gradient(patch):
    """Newer versions of MXNet's."""
    real = DCASGD.compensate

    def compensate(self, gradient, late, around):
        decayed = gradient + around.decay * around.now
        return real(self, decayed, late, around) - around.decay * around.now

    patch.setattr(DCASGD, "compensate", compensate)


def gap_by_the_rate_of_now(patch):
    real = GapAware.compensate

    def compensate(self, gradient, late, around):
        around.kept["gap_rate"] = 0.0
        return real(self, gradient, late, around)

    patch.setattr(GapAware, "compensate", compensate)


def gap_that_spares_the_penalty(patch):
    def spared(optimizer, group):
        return 0.0

    patch.setattr("evener.state.ruled.l2_of", spared)


def gap_of_a_biased_average(patch):
    real = GapAware.stepped

    def stepped(self, step, around):
        real(self, step, around)
        around.kept["gap_steps"] = 10**6

    patch.setattr(GapAware, "stepped", stepped)


BUGS = [
    one_previous_weight_for_all, what_the_worker_has_now, the_rate_instead_of_the_gradient,
    divided_by_the_sum_of_scales, scales_without_weights, one_more_than_the_delay, eta_over_d_read_literally,
    workers_that_live_less_one, a_power_of_one, squares_after_use, squares_of_the_decayed_gradient,
    gap_by_the_rate_of_now, gap_that_spares_the_penalty, gap_of_a_biased_average,
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_seen(bug, monkeypatch, tmp_path):
    bug(monkeypatch)
    pairs = [both(plan, tmp_path / str(number)) for number, plan in enumerate(PLANS)]
    assert any(found != pytest.approx(expected, rel=1e-11) for found, expected in pairs)
