"""Update rules in real ps tasks: one update as MODES says it, the same bits on any shards and after a resume."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from evener.rules import DCASGD, DelayAdaptive, GapAware, Inverse
from evener.state import rules as arithmetic
from evener.testing import Cluster, row_recipe

WORKERS = 3
#: Who pushes, in this order; in these modes everybody may, always.
schedules = st.lists(st.integers(0, WORKERS - 1), min_size=4, max_size=14)


class Odd(nn.Module):
    """Tensors that three shards cut in the middle, one alone, and none that is whole everywhere."""

    def __init__(self):
        super().__init__()
        self.long, self.short = nn.Parameter(torch.randn(7, 19)), nn.Parameter(torch.randn(5))
        self.one = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs):
        return inputs * (self.long.sum() + self.short.sum() + self.one)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def recipe(optimizer=sgd, **parts):
    return row_recipe(samples=200, model=Odd, optimizer=optimizer, **parts)


def gradient(lease, name, shape):
    generator = torch.Generator().manual_seed(1000 * lease + len(name))
    return torch.randn(shape, generator=generator)


def push(worker, **changes):
    """A gradient that follows from its lease alone."""
    if worker.turn is None:
        worker.listen()
    for name, view in worker.views.items():
        view.copy_(gradient(worker.turn.lease, name, view.shape))
    return worker.push(**changes)


def played(directory, schedule, optimizer=sgd, *, before=None, **options):
    """A cluster after this schedule."""
    chain = options.pop("chain", ())
    everything = {"workers": WORKERS, "train_steps": 99, "batch_size": 2, "mode": "async", **options}
    cluster = Cluster(recipe(optimizer, rules=chain), Path(directory), before=before, **everything)
    workers = cluster.started(*range(WORKERS))
    for index in schedule:
        push(workers[index])
    return cluster


def bits(cluster):
    return {name: tensor.clone() for name, tensor in cluster.parameters().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


RULES = [
    {"staleness_lr": "inverse"}, {"staleness_lr": "delay_adaptive"}, {"staleness_lr": "polynomial"},
    {"compensate": "dc"}, {"compensate": "dc_adaptive"}, {"compensate": "gap"},
    {"compensate": "gap", "staleness_lr": "inverse"}, {"compensate": "dc_adaptive", "staleness_lr": "polynomial"},
]  # fmt: skip
EACH = pytest.mark.parametrize("rule", RULES, ids=lambda rule: "+".join(rule.values()))
MODES = [{"mode": "async"}, {"mode": "softsync", "gradients_per_update": 2}]


# --- shards and resumes


@EACH
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["mode"])
@settings(max_examples=6)
@given(schedule=schedules, optimizer=st.sampled_from([sgd, adam]))
def test_one_ps_and_three_give_the_same_bits(rule, mode, schedule, optimizer):
    found = []
    for ps in (1, 3):
        with (
            tempfile.TemporaryDirectory() as directory,
            played(directory, schedule, optimizer, ps=ps, **rule, **mode) as cluster,
        ):
            found.append(bits(cluster))
    assert same(*found)


@EACH
@pytest.mark.parametrize(("ps", "then"), [(1, 3), (3, 1), (3, 2)])
def test_what_rules_keep_goes_on_from_a_checkpoint_on_any_number_of_ps_tasks(rule, ps, then, tmp_path):
    """All workers begin afresh there, so they do so here too, on the ps tasks that went on."""
    first, second = [0, 1, 2, 1, 1, 0, 2], [2, 0, 0, 1, 2, 1]
    with played(tmp_path / "whole", first, adam, ps=ps, **rule) as cluster:
        for worker in list(cluster.workers):
            worker.leave()
        again = cluster.started(*range(WORKERS))
        for index in second:
            push(again[index])
        expected = bits(cluster)
    with played(tmp_path / "cut", first, adam, ps=ps, **rule) as before:
        for worker in list(before.workers):
            worker.leave()
        before.leader.stop("enough", complete=False)
        before.finish()
    with played(tmp_path / "cut", second, adam, before=before, ps=then, **rule) as cluster:
        assert cluster.step == len(first) + len(second)
        assert same(bits(cluster), expected)


def test_a_checkpoint_names_what_is_a_rules_and_a_run_without_it_lets_it_go(tmp_path):
    with played(tmp_path, [0, 1, 1, 2], adam, compensate="gap") as before:
        kept = before.leader.shard.state.contents()
        assert {"long/gap_square", "short/gap_square", "one/exp_avg"} <= kept.optimizer.keys()
        assert kept.values["rules"] == ["gap_square", "gap_steps", "gap_rate"]
        json.dumps(kept.values)
        for worker in list(before.workers):
            worker.leave()
        before.leader.stop("enough", complete=False)
        before.finish()
    with played(tmp_path, [0, 1], adam, before=before) as cluster:
        state = cluster.leader.shard.state
        assert not any("gap" in name for name in state.contents().optimizer)
        assert all("gap" not in key for kept in state.optimizer.state.values() for key in kept)


# --- one update


@pytest.mark.parametrize("mode", [{"mode": "async"}, {"mode": "softsync", "gradients_per_update": 3}, {"mode": "sync"}])
@pytest.mark.parametrize("rule", [{}, {"staleness_lr": "none"}])
def test_without_a_rule_an_update_has_the_bits_it_always_had(mode, rule, tmp_path):
    """The plain sum, one division, the optimizer."""
    schedule = [0, 1, 2, 2, 1, 0, 1, 0, 2]
    with played(tmp_path, schedule, **mode, **rule) as cluster:
        model = Odd()
        torch.manual_seed(0)
        model = Odd()
        optimizer, found, waiting = sgd(model), bits(cluster), []
        for lease in range(len(schedule)):
            waiting.append(lease)
            if len(waiting) == (1 if mode["mode"] == "async" else 3):
                for name, parameter in model.named_parameters():
                    given = [gradient(one, name, parameter.shape) for one in leases(mode, waiting, schedule)]
                    total = given[0].clone() if len(given) == 1 else given[0] + given[1]
                    for more in given[2:]:
                        total += more
                    parameter.grad = total / len(given) if len(given) > 1 else total
                optimizer.step()
                waiting = []
    assert same(found, {name: p.detach() for name, p in model.named_parameters()})


def leases(mode, numbers, schedule):
    """Of the pushes with these numbers: a worker begins with the lease of its index, and takes the next one."""
    if mode["mode"] == "sync":
        return numbers
    held, following, pushed = list(range(WORKERS)), WORKERS, []
    for index in schedule:
        pushed.append(held[index])
        held[index], following = following, following + 1
    return sorted(pushed[number] for number in numbers)


def row(cluster):
    return float(cluster.parameters()["row"][0])


@pytest.fixture
def rows(tmp_path):
    """Clusters over rows of equal numbers, at 0, in float64; plain descent of step 1."""
    made = []

    def make(chain=(), optimizer=None, **options):
        parts = {"optimizer": optimizer} if optimizer else {}
        directory = tmp_path / str(len(made))
        made.append(Cluster(row_recipe(rules=chain, **parts), directory, **{"train_steps": 99, "workers": 3} | options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("ps", [1, 2])
def test_steps_of_one_update_are_weighed_by_their_ages(rows, ps):
    """s = (1 + 1/2) / 2, g = (1 g0 + 1/2 g1) / (1 + 1/2): what is late is not made up for by the others."""
    cluster = rows(mode="softsync", gradients_per_update=2, staleness_lr="inverse", ps=ps)
    slow, fast, other = cluster.started(0, 1, 2)
    for _ in range(2):
        fast.push(1.0)
        other.push(1.0)
    before = row(cluster)
    assert (cluster.step, before) == (2, -2.0)
    fast.push(4.0)
    slow.push(12.0)
    assert row(cluster) - before == pytest.approx(-(4.0 + 12.0 / 2) / 2, rel=1e-15)


def test_adam_takes_a_shorter_step_and_its_rate_is_there_again(rows):
    cluster = rows(staleness_lr="inverse", optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    other = rows(staleness_lr="inverse", optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1.0))
    for run in (cluster, other):
        slow, fast, _ = run.started(0, 1, 2)
        for _ in range(4):
            fast.push(1.0)
        before = row(run)
        release = slow.push(1.0)
        assert row(run) - before == pytest.approx(-0.25, rel=1e-6)
        assert release.learning_rate == 1.0


@pytest.mark.parametrize("ps", [1, 2])
def test_dc_compares_with_what_that_worker_was_sent(rows, ps):
    """Not with the version before: a copy for each parameter alone would make up for one step, whatever the delay."""
    cluster = rows([DCASGD(0.5)], ps=ps)
    slow, fast, _ = cluster.started(0, 1, 2)
    for _ in range(3):
        fast.push(1.0)
    assert row(cluster) == -3.0, "nothing of the fast one's own is late"
    slow.push(2.0)
    assert row(cluster) + 3.0 == -(2.0 + 0.5 * 4.0 * (-3.0 - 0.0))
    at, _ = row(cluster), fast.push(2.0)
    assert row(cluster) - at == pytest.approx(-(2.0 + 0.5 * 4.0 * (at + 3.0)))


@pytest.mark.parametrize("ps", [1, 2])
def test_a_gradient_that_waits_remembers_what_its_worker_was_sent_then(rows, ps):
    """In softsync a worker goes on with newer parameters while its gradient still waits for an update."""
    cluster = rows([DCASGD(0.5)], mode="softsync", gradients_per_update=3, ps=ps)
    slow, fast, other = cluster.started(0, 1, 2)
    for worker in (fast, other, fast):
        worker.push(1.0)
    assert row(cluster) == -1.0
    slow.push(2.0)  # of version 0; its worker is sent version 1 and goes on
    assert slow.turn.version == 1
    other.push(0.0)
    fast.push(0.0)
    assert row(cluster) == pytest.approx(-1.0 - (2.0 + 0.5 * 4.0 * (-1.0 - 0.0)) / 3)


def test_a_worker_that_is_shown_newer_parameters_computes_on_those(rows):
    """The chief shows itself averages and takes the parameters back: newer ones, under its old version's number."""
    cluster = rows([DCASGD(0.5)], ps=2)
    chief, fast, _ = cluster.started(0, 1, 2)
    fast.push(1.0)
    fast.push(1.0)
    chief.pull("parameters")
    fast.push(3.0)
    at, _ = row(cluster), chief.push(2.0)
    assert row(cluster) - at == -(2.0 + 0.5 * 4.0 * (at + 2.0))


def test_what_is_no_gradient_of_a_push_is_left_alone_by_rules_too(tmp_path):
    with played(tmp_path, [0], compensate="dc_adaptive") as cluster:
        (ruled,) = [server.shard.state.ruled for server in cluster.servers]
        before = {index: kept["dc_square"].clone() for index, kept in ruled._kept.items()}
        worker, layout = cluster.workers[1], cluster.built.layout
        push(worker, unused=layout.mask(["short"]))
        names = [piece.spec.name for piece in cluster.leader.shard.state.parameters.pieces]
        moved = {
            names[index] for index, kept in ruled._kept.items() if not torch.equal(kept["dc_square"], before[index])
        }
    assert moved == {"long", "one"}


def test_batches_of_their_own_sizes_and_ages_both_shorten_a_step(rows):
    cluster = rows(mode="async", staleness_lr="inverse", workers=2, batch_sizes=(6, 2))
    slow, fast = cluster.started(0, 1)
    for _ in range(3):
        fast.push(4.0)
    assert row(cluster) == -3 * 4.0 * 2 / 4
    slow.push(1.0)
    assert row(cluster) == pytest.approx(-6.0 - 6 / 4 / 3)


def test_the_norm_of_a_mean_of_unequal_ages_is_that_of_the_mean(rows):
    """Clipping on two ps tasks knows the weights: half of what is two updates late."""
    for ps in (1, 2):
        cluster = rows(mode="softsync", gradients_per_update=2, staleness_lr="inverse", ps=ps, clip_norm=1.0)
        slow, fast, other = cluster.started(0, 1, 2)
        for _ in range(2):
            fast.push(0.001)
            other.push(0.001)
        before = row(cluster)
        fast.push(4.0)
        slow.push(12.0)
        step = abs(row(cluster) - before) * math.sqrt(64)
        assert step == pytest.approx(0.75, rel=1e-5), f"{ps} ps: a step of norm 1, 3/4 as long"


def test_a_workers_own_gradient_stays_as_it_gave_it(rows):
    """It may be shown to its hooks. In quorum both lie in memory of their workers when they become an update."""
    cluster = rows([DCASGD(0.5)], mode="quorum", quorum=2, max_delay=5, linger=1.0)
    slow, fast, other = cluster.started(0, 1, 2)
    fast.push(1.0)
    other.push(1.0)
    cluster.tick(1.1)
    assert row(cluster) == -1.0
    fast.listen()
    slow.push(2.0)
    fast.push(4.0)
    cluster.tick(1.1)
    held = [server.links.seats[0].slot for server in cluster.servers]
    assert cluster.step == 2 and row(cluster) == -1.0 - (2.0 + 0.5 * 4.0 * -1.0 + 4.0) / 2
    assert [slot.views[0].tolist() for slot in held] == [[2.0] * 64]


# --- memory


@pytest.mark.parametrize("ps", [1, 2])
def test_copies_are_kept_where_a_rule_asks_and_go_with_their_workers(rows, ps):
    plain, ruled = rows(ps=ps), rows([GapAware()], ps=ps)
    for cluster in (plain, ruled):
        for worker in cluster.started(0, 1, 2):
            worker.push(1.0)
    assert [len(server.shard.state.ruled._sent) for server in plain.servers] == [0] * ps
    assert [sorted(server.shard.state.ruled._sent) for server in ruled.servers] == [[0, 1, 2]] * ps
    ruled.workers[1].leave()
    assert [sorted(server.shard.state.ruled._sent) for server in ruled.servers] == [[0, 2]] * ps


def test_workers_that_were_sent_the_same_share_a_copy(rows):
    cluster = rows([DCASGD()])
    cluster.started(0, 1, 2)
    assert len({id(sent) for sent in cluster.leader.shard.state.ruled._sent.values()}) == 1


# --- rules of one's own


class Halves:
    """Each step is half as long, and gradients are counted."""

    keeps = ("halves_seen",)

    def scale(self, late):
        return 0.5

    def compensate(self, gradient, late, around):
        around.kept["halves_seen"] = around.kept.get("halves_seen", 0) + 1
        return -gradient


def test_a_rule_of_ones_own_does_both_and_what_it_keeps_is_saved(rows):
    cluster = rows([Halves(), Inverse()], ps=2)
    one, two, _ = cluster.started(0, 1, 2)
    one.push(2.0)
    two.push(2.0)
    assert row(cluster) == 2.0
    assert cluster.leader.shard.state.contents().values["numbers"] == {"row[0:32]/halves_seen": 2}


def test_one_that_makes_another_shape_is_refused_by_name(rows):
    class Flat(Halves):
        def compensate(self, gradient, late, around):
            return gradient.sum()

    cluster = rows([Flat()])
    one, *_ = cluster.started(0, 1, 2)
    with pytest.raises(Exception, match=r"Flat made a gradient of shape \[\]"):
        one.push(2.0)


def test_what_the_optimizer_keeps_is_not_a_rules_to_name(rows):
    class Momentum(Halves):
        keeps = ("momentum_buffer",)

        def compensate(self, gradient, late, around):
            around.kept["momentum_buffer"] = gradient
            return gradient

    cluster = rows([Momentum()], optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9))
    one, *_ = cluster.started(0, 1, 2)
    one.push(2.0)
    with pytest.raises(Exception, match="'momentum_buffer', and so does the optimizer"):
        cluster.leader.shard.state.contents()


def test_a_compensated_gradient_that_is_not_finite_is_told_as_such(rows):
    cluster = rows([DCASGD()])
    slow, fast, _ = cluster.started(0, 1, 2)
    fast.push(1.0)
    with pytest.raises(Exception, match="not finite"):
        slow.push(1e200)


@pytest.mark.parametrize("counts", [[4, 4], [0, 0], [7, 5]])
@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.5, 0.5], [1.0, 0.25], [1.0, 0.0]])
def test_weights_and_length_are_those_of_modes(counts, scales):
    weights, length = arithmetic.weigh(counts, scales)
    told = counts if sum(counts) else [1, 1]
    p = [count / sum(told) for count in told]
    s = sum(share * scale for share, scale in zip(p, scales, strict=True))
    assert length == pytest.approx(s)
    weights = weights or [1, 1]
    assert [w / sum(weights) for w in weights] == pytest.approx(
        [share * scale / s for share, scale in zip(p, scales, strict=True)]
    )


def test_a_length_that_all_share_is_that_length_to_the_bit():
    for part in range(1, 100):
        assert arithmetic.weigh([7, 5, 3], [1 / part] * 3) == ([7, 5, 3], 1 / part)
        assert arithmetic.weigh([7], [1 / part]) == (None, 1 / part)


def test_delay_adaptive_counts_the_workers_that_were_configured_not_those_that_live(rows):
    cluster = rows([DelayAdaptive()], workers=8)
    slow, fast = cluster.started(0, 1)
    for _ in range(8):
        fast.push(0.0)
    slow.push(1.0)
    assert row(cluster) == -1.0
