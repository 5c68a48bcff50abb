"""Which tasks there are and where they are."""

from __future__ import annotations

import pytest

from evener.cluster.cluster import Address, ClusterSpec, Task, address
from evener.errors import ConfigError


def test_host_lists_may_hold_blanks_as_the_old_programs_wrote_them():
    cluster = ClusterSpec.of({"ps": [" tf-ps0:2222", "tf-ps1:1111 "], "worker": [" tf-worker0:2222"]})

    assert cluster.address(Task("ps", 1)) == Address("tf-ps1", 1111)
    assert [str(task) for task in cluster.tasks()] == ["ps:0", "ps:1", "worker:0"]


def test_a_version_6_address_stands_in_brackets():
    assert address("[::1]:2222", Task("ps", 0)) == Address("::1", 2222)
    assert str(Address("::1", 2222)) == "[::1]:2222"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "::1"])
def test_loopback_addresses_are_known(host):
    assert Address(host, 1).loopback
    assert not Address("10.0.0.1", 1).loopback


@pytest.mark.parametrize(
    ("jobs", "what"),
    [
        ({"ps": ["h:1"]}, "the cluster has no job 'worker'"),
        ({"wroker": ["h:1"]}, "unknown job 'wroker'; did you mean 'worker'?"),
        ({"ps": ["h:70000"], "worker": ["h:1"]}, "address 'h:70000' of ps:0: the port must be 1..65535"),
        ({"ps": ["h:abc"], "worker": ["h:1"]}, "address 'h:abc' of ps:0: the port must be 1..65535"),
        ({"ps": ["h"], "worker": ["h:1"]}, "address 'h' of ps:0 has no port"),
        ({"worker": ["http://h:1/"]}, "address 'http://h:1/' of worker:0 begins with http://"),
        ({"ps": ["h:2222"], "worker": ["g:1", "h:2222"]}, "ps:0 and worker:1 have the same address h:2222"),
    ],
)
def test_a_bad_cluster_is_refused_with_the_bad_entry(jobs, what):
    with pytest.raises(ConfigError) as error:
        ClusterSpec.of(jobs)
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("job", "index", "what"),
    [
        ("worker", 5, "worker index 5, but the cluster has 3 worker tasks (0..2)"),
        ("worker", -1, "the task index must be an integer >= 0, got -1"),
        ("worker", "1.0", "the task index must be an integer >= 0, got '1.0'"),
        ("worker", True, "the task index must be an integer >= 0, got True"),
        ("ps", 0, "ps index 0, but the cluster has no ps tasks"),
    ],
)
def test_a_task_must_be_one_of_the_cluster(job, index, what):
    cluster = ClusterSpec.of({"worker": ["a:1", "b:1", "c:1"]})
    with pytest.raises(ConfigError) as error:
        cluster.task(job, index)
    assert what in str(error.value)


def test_two_tasks_told_the_same_cluster_agree_on_its_fingerprint():
    jobs = {"ps": ["h0:1"], "worker": ["h1:1", "h2:1"]}
    assert ClusterSpec.of(jobs).fingerprint == ClusterSpec.of(jobs).fingerprint
    assert ClusterSpec.of(jobs).fingerprint != ClusterSpec.of({**jobs, "worker": ["h2:1", "h1:1"]}).fingerprint
