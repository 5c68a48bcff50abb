"""Ports that nobody knew beforehand."""

from __future__ import annotations

import pytest

from evener import errors
from evener.cluster.cluster import ClusterSpec
from evener.task.rendezvous import Directory, Fixed, for_cluster


class Clock:
    def __init__(self, then):
        self.now, self.then = 0.0, then

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.then:
            self.then.pop()()


def meeting(directory, told=None, **options):
    clock = Clock(options.pop("then", []))
    options = {"task": "worker:1", "patience": 5.0, "clock": clock, "sleep": clock.sleep, **options}
    return Directory(directory, "run", 2, report=(told if told is not None else []).append, **options)


def test_addresses_come_once_all_are_published_and_the_wait_is_told(tmp_path):
    told = []
    here = meeting(tmp_path, told, then=[lambda: here.publish("ps:1", "tcp://h1:7")])
    here.publish("ps:0", "tcp://h0:9")
    assert here.addresses() == ["tcp://h0:9", "tcp://h1:7"]
    assert [report.waiting_for for report in told] == [
        f"ps:1 to publish its address in {tmp_path / 'run'} (0 s of 5 s)"
    ]


def test_every_task_makes_the_directory_unless_another_was_quicker(tmp_path):
    shared = tmp_path / "not" / "yet"
    ps, worker = meeting(shared, task="ps:0"), meeting(shared)
    ps.publish("ps:0", "tcp://h0:9")
    ps.publish("ps:1", "tcp://h1:7")
    assert worker.addresses() == ["tcp://h0:9", "tcp://h1:7"]


def test_a_restarted_task_publishes_anew(tmp_path):
    here = meeting(tmp_path)
    for port in (1, 2):
        here.publish("ps:0", f"tcp://h0:{port}")
        here.publish("ps:1", "shared:evener-x")
    assert here.addresses() == ["tcp://h0:2", "shared:evener-x"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["ps-0", "ps-1"]


def test_a_wait_ends_with_who_is_absent_and_what_to_do(tmp_path):
    with pytest.raises(errors.Unavailable, match=r"worker:1 has waited 5 s for ps:0, ps:1 to publish") as error:
        meeting(tmp_path).addresses()
    assert "--rendezvous" in error.value.fix


def test_a_wait_can_be_cut_short(tmp_path):
    with pytest.raises(errors.TaskFailed, match="interrupted"):
        meeting(tmp_path, stop_asked=lambda: "interrupted").addresses()


@pytest.mark.parametrize("text", ["http://h:1", "tcp://" + "h" * 400, "\0"])
def test_a_file_that_holds_no_address_is_named(tmp_path, text):
    here = meeting(tmp_path)
    (tmp_path / "run" / "ps-0").write_text(text)
    with pytest.raises(errors.ProtocolError, match="ps-0 holds no address"):
        here.addresses()


def test_a_directory_that_cannot_be_made_is_a_wrong_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.ConfigError, match="cannot be written"):
        meeting(tmp_path / "file")


def test_port_0_needs_a_rendezvous_and_known_ports_need_none():
    def shared(directory):
        return directory

    free = ClusterSpec.of({"ps": ["h0:0"], "worker": ["h1:0"]})
    known = ClusterSpec.of({"ps": ["h0:2222"], "worker": ["h1:0"]})
    fixed = Fixed(["tcp://h0:2222"])
    assert for_cluster("", known, fixed, shared) is fixed
    assert fixed.addresses() == ["tcp://h0:2222"]
    assert str(for_cluster("dir", free, fixed, shared)) == "dir"
    with pytest.raises(errors.ConfigError, match="ps:0 has the address h0:0") as error:
        for_cluster("", free, fixed, shared)
    assert "--rendezvous DIR" in error.value.fix
