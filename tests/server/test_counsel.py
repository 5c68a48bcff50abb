"""People are told what a mode means, who works for nothing, and when another mode would use more of the workers."""

from __future__ import annotations

import pytest

from evener.policy.contributions import Contributions
from evener.report import Line
from evener.testing import Cluster, row_recipe


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(**options):
        made.append(Cluster(row_recipe(), tmp_path / "run", **{"train_steps": 9999, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def told(run):
    return [line.text for line in run.reported(Line)]


def test_five_in_a_row_are_told_once_a_worker():
    counts = Contributions()
    assert [counts.dropped(3, 30) for _ in range(4)] == [0, 0, 0, 0]
    counts.applied(3)
    assert [counts.dropped(3, 31) for _ in range(7)] == [0, 0, 0, 0, 31, 0, 0]
    assert [counts.dropped(4, 9) for _ in range(5)] == [0, 0, 0, 0, 9]


def test_a_worker_that_contributes_nothing_is_named_with_what_would_help(cluster):
    run = cluster(mode="ringmaster", max_delay=2, workers=2)
    slow, fast = run.started(0, 1)
    for _ in range(5):
        for _ in range(3):
            fast.push(1.0)
        slow.push(1.0)

    assert (
        "warning: worker:0 contributes nothing: its last 5 gradients came too late, the newest by 3 updates, the limit "
        "is 2; raise --max-delay to 4, or stop it"
    ) in told(run)


def test_sync_has_no_limit_that_could_be_raised(cluster):
    run = cluster(mode="sync", replicas_to_aggregate=1, workers=2)
    slow, fast = run.started(0, 1)
    for _ in range(5):
        fast.push(1.0)
        slow.push(1.0)

    assert any(line.endswith("the limit is 1; stop it, or try --mode ringmaster") for line in told(run))


def test_lockstep_of_workers_that_differ_is_told_what_would_use_more(cluster):
    run = cluster(mode="sync", workers=2, train_steps=9999)
    slow, fast = run.started(0, 1)
    for _ in range(101):
        run.clock.advance(0.02)
        fast.push(1.0)
        run.clock.advance(0.08)
        slow.push(1.0)
        fast.listen()
    run.tick()
    run.tick()

    lines = [line for line in told(run) if "of what these workers could give" in line]
    assert len(lines) == 1, "once"
    assert lines[0].startswith("warning: sync uses 33% of what these workers could give: worker:0 takes 100 ms a batch")
    assert "--mode sync --batch-by-speed (100%)" in lines[0]


def test_speeds_are_looked_at_now_and_then_and_not_at_each_tick(cluster, monkeypatch):
    looked = []
    monkeypatch.setattr("evener.server.counsel.advice", lambda *_args, **_options: looked.append(1) or "")
    run = cluster(mode="async", workers=2)
    a, b = run.started(0, 1)
    for _ in range(80):
        run.clock.advance(0.02)
        a.push(1.0)
        b.push(1.0)
        run.tick()

    assert len(looked) == 1


def test_equal_workers_are_told_nothing(cluster):
    run = cluster(mode="async", workers=2)
    a, b = run.started(0, 1)
    for _ in range(60):
        run.clock.advance(0.02)
        a.push(1.0)
        b.push(1.0)
    run.tick()

    assert not [line for line in told(run) if "warning" in line]
