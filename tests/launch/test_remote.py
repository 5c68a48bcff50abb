"""The client of standing servers: what it asks of them, and what it says when they cannot."""

from __future__ import annotations

import threading

import pytest
from test_doctor import port
from test_standing import until

from evener import errors, transport
from evener.cluster.cluster import Address, ClusterSpec, Task
from evener.control.control import Assignment, Stop, log_of
from evener.launch.standing.server import ServerSettings, StandingServer
from evener.launch.starters.remote import StandingServers, check_recipe, options_for
from evener.settings import Settings
from evener.transport import keys


class Unstarted:
    def start(self, assignment):
        raise FileNotFoundError(2, "No such file")

    def close(self): ...


@pytest.fixture
def servers(tmp_path):
    """Two servers with keys, and the cluster of their addresses."""
    keys.new(tmp_path / "keys", keys.names(1, 1))
    asked, threads, addresses = [], [], {}
    for task in (Task("ps", 0), Task("worker", 0)):
        listener = transport.listen("tcp", keys=keys.load(tmp_path / "keys", str(task)))
        addresses[task.job] = [listener.address.removeprefix("tcp://")]
        own = ServerSettings(task, Address("127.0.0.1", 0), {"keys": str(tmp_path / "keys")})
        server = StandingServer(own, listener, say=lambda line: None, starter=Unstarted())
        threads.append(threading.Thread(target=server.serve, args=(lambda: asked,)))
        threads[-1].start()
    yield ClusterSpec.of(addresses)
    asked += ["the end", "the end"]
    for thread in threads:
        thread.join(10)


def standing(cluster, tmp_path, recipe="mnist", who="keys"):
    settings = Settings(recipe=recipe, ps=1, keys=str(tmp_path / who), logdir=str(tmp_path / "run"))
    return StandingServers(cluster, settings)


def test_all_are_reserved_or_none(servers, tmp_path):
    first, second = standing(servers, tmp_path), standing(servers, tmp_path)
    first.reserve(print)
    with pytest.raises(errors.Busy, match="2 of 2 standing servers") as error:
        second.reserve(print)
    assert "ps:0: ps:0 is busy with mnist since 0 s, started from host" in error.value.why
    first.close()

    def free():
        try:
            second.reserve(print)
        except errors.Busy:
            return False
        return True

    until(free)
    second.close()


def test_only_the_clients_key_gives_jobs(servers, tmp_path):
    for name in ("client.public", "client.secret"):  # a task that says it is the client
        (tmp_path / "keys" / name).unlink()
    with pytest.raises(errors.SecurityError, match=r"client\.secret"):
        standing(servers, tmp_path)
    for suffix in (".public", ".secret"):
        (tmp_path / "keys" / f"worker-0{suffix}").rename(tmp_path / "keys" / f"client{suffix}")
    # the servers know this key as that of worker:0
    lonely = ClusterSpec(servers.ps, (Address("127.0.0.1", 1),))
    impostor = standing(lonely, tmp_path)
    with pytest.raises(errors.AuthError, match="may act as worker:0, not as a client"):
        impostor._connect(Task("ps", 0), 5.0)


def test_a_task_that_cannot_start_fails_by_name_and_an_order_to_it_is_no_error(servers, tmp_path):
    client = standing(servers, tmp_path)
    client.reserve(print)
    settings = {"recipe": "mnist", "ps": 1, "logdir": str(tmp_path / "run")}
    task = client.start(Assignment("ps", 0, settings, "a1f3"))
    heard = []
    until(lambda: heard.extend(task.reports()) or not task.open)
    assert [(report.task, report.kind) for report in heard] == [("ps:0", "ConfigError")]
    assert task.ended() == "was refused"
    task.order(Stop("late"))
    task.kill()
    task.close()
    client.close()


@pytest.mark.slow
def test_a_server_that_is_gone_is_a_task_that_cannot_start(tmp_path):
    keys.new(tmp_path / "keys", keys.names(1, 1))
    with port(listens=False) as shut:
        client = standing(ClusterSpec.of({"ps": [shut], "worker": [f"localhost:{shut[10:]}"]}), tmp_path)
        task = client.start(Assignment("ps", 0, {"logdir": "run"}, "a1f3"))
    assert not task.open
    assert "cannot start: tcp://127.0.0.1" in task.ended()
    assert "no process listens there" in task.ended()
    assert task.reports() == []


@pytest.mark.parametrize("recipe", ["mnist", "package.module:attr", "module:a.b"])
def test_names_that_servers_can_import(recipe):
    check_recipe(recipe)


@pytest.mark.parametrize("recipe", ["file.py:attr", "/a/b.py:attr", "../m:attr", "m:f()", "a b", "", ":x", "m:"])
def test_files_and_code_are_none(recipe):
    with pytest.raises(errors.ConfigError, match="cannot take the recipe"):
        check_recipe(recipe)


def test_the_host_lists_say_how_many_tasks_there_are():
    cluster = ClusterSpec.of({"ps": ["h0:1", "[::1]:1"], "worker": ["h2:1"]})
    assert options_for(cluster, {"seed": 1, "ps": None}) == {
        "seed": 1, "ps": 2, "workers": 1, "ps_hosts": ("h0:0", "[::1]:0"),
    }  # fmt: skip
    assert options_for(cluster, {"workers": "1..1"})["min_workers"] == 1
    with pytest.raises(errors.ConfigError, match="workers=3, but the host lists name 1"):
        options_for(cluster, {"workers": 3})
    with pytest.raises(errors.ConfigError, match="no ps server"):
        options_for(ClusterSpec.of({"ps": [], "worker": ["h2:1"]}), {})


def test_logs_lie_below_the_logdir_of_the_server():
    assert str(log_of(Assignment("ps", 0, {"logdir": "run"}, ""))) == "run/logs/ps-0.log"
