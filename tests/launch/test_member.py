"""A task that somebody else started, before it does anything."""

from __future__ import annotations

import pytest

from evener.cluster import Cluster
from evener.launch import member
from evener.launch.environment import Found
from evener.launch.member import run_member, settings_for
from evener.settings import Settings


class Enough(Exception):
    """It has told the test what it wanted to know."""


@pytest.mark.parametrize("job", ["ps", "worker"])
def test_its_process_is_prepared_for_its_job(job, monkeypatch):
    prepared = []

    def prepare_process(threads, *, serves):
        prepared.append((threads, serves))
        raise Enough

    monkeypatch.setattr(member, "prepare_process", prepare_process)
    cluster = Cluster.of({"ps": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"]})
    with pytest.raises(Enough):
        run_member(Found(cluster, cluster.task(job, 0), "a test"), settings_for(cluster, Settings(threads=3)), print)
    assert prepared == [(3, job == "ps")]
