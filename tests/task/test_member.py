"""A task that somebody else started, before it does anything."""

from __future__ import annotations

import pytest

from evener.cluster.cluster import ClusterSpec
from evener.cluster.environment import Found
from evener.errors import ConfigError
from evener.settings import make
from evener.task import member
from evener.task.member import options_in, run_member


class Enough(Exception):
    """It has told the test what it wanted to know."""


def test_options_of_a_mode_are_judged_beside_the_cluster_that_the_hosts_name():
    cluster = ClusterSpec.of({"ps": ["h0:1"], "worker": ["h1:1", "h2:1", "h3:1"]})
    settings = make(options_in(cluster, {"mode": "sync", "replicas_to_aggregate": 2}))
    assert (settings.ps, settings.workers, settings.ps_hosts, settings.aggregate) == (1, 3, ("h0:1",), 2)

    with pytest.raises(ConfigError, match="the cluster has no job 'ps'"):
        options_in(ClusterSpec.of({"worker": ["h1:1"]}), {})


def test_workers_that_come_and_go_are_at_most_those_that_the_hosts_name():
    cluster = ClusterSpec.of({"ps": ["h0:1"], "worker": ["h1:1", "h2:1", "h3:1"]})
    settings = make(options_in(cluster, {"workers": "2..3"}))
    assert (settings.min_workers, settings.workers) == (2, 3)

    with pytest.raises(ConfigError, match=r"workers=2\.\.8, but the cluster names 3 workers"):
        options_in(cluster, {"workers": "2..8"})


@pytest.mark.parametrize("job", ["ps", "worker"])
def test_its_process_is_prepared_for_its_job(job, monkeypatch):
    prepared = []

    def prepare_process(threads, *, serves):
        prepared.append((threads, serves))
        raise Enough

    monkeypatch.setattr(member, "prepare_process", prepare_process)
    cluster = ClusterSpec.of({"ps": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"]})
    with pytest.raises(Enough):
        run_member(Found(cluster, cluster.task(job, 0), "a test"), make(options_in(cluster, {"threads": 3})), print)
    assert prepared == [(3, job == "ps")]
