"""A standing server and its clients, in one process: the server in a thread, its task a stand-in that obeys."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from evener import errors, transport
from evener.cluster.cluster import Address, Task
from evener.control import control
from evener.control.control import Addresses, Assignment, Stop
from evener.launch.standing import server as standing
from evener.launch.standing.server import VERSION, Job, ServerSettings, StandingServer
from evener.report import Line, Progress
from evener.transport.channel import Memory, Ranges
from evener.wire import codec
from evener.wire.messages import Push, Refused
from evener.wire.standing import Dismiss, Ping, Pong, Relay, Reserve, Reserved, TaskEnded
from evener.wire.words import Identity

NOTHING = Ranges(Memory(0), ())


class Puppet:
    """A task that does what the test says."""

    host, log = "here", "task.log"

    def __init__(self, assignment):
        self.assignment, self.orders, self.how, self.killed = assignment, [], None, False
        self._heard, self._words = [], socket.socketpair()

    def says(self, *reports, ends=None):
        self._heard += reports
        self.how = ends
        self._words[1].send(b".")

    @property
    def open(self):
        return self.how is None or bool(self._heard)

    def fileno(self):
        return self._words[0].fileno()

    def pending(self):
        return False

    def order(self, order):
        self.orders.append(order)

    def reports(self):
        self._words[0].recv(10)
        heard, self._heard = self._heard, []
        return heard

    def ended(self):
        return self.how

    def kill(self):
        self.killed = True
        self.says(ends="was killed by SIGKILL")

    def close(self):
        for end in self._words:
            end.close()


class Stage:
    """A server that runs in a thread, and the tasks that it has started."""

    def __init__(self):
        self.started, self.said, self.asked, self.now = [], [], [], 100.0
        self.closed = False
        own = ServerSettings(
            Task("ps", 0), Address("127.0.0.1", 2222), {"keys": "", "insecure": True, "heartbeat_timeout": 7.0}
        )
        self.listener = transport.listen("memory")
        self.server = StandingServer(
            own, self.listener, say=self.said.append, starter=self, clock=lambda: self.now
        )  # fmt: skip
        self._thread = threading.Thread(target=self.server.serve, args=(lambda: self.asked,))
        self._thread.start()

    def start(self, assignment):
        self.started.append(Puppet(assignment))
        return self.started[-1]

    def close(self):
        self.closed = True

    def end(self):
        self.asked += ["SIGTERM", "SIGTERM"]
        self._thread.join(10)
        assert self.closed, "what starts tasks ends with the server"
        assert not self._thread.is_alive()

    def client(self):
        return transport.connect(self.listener.address, NOTHING, NOTHING)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = Stage()
    yield stage
    stage.end()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def say(channel, message):
    channel.send(codec.encode(message))


def hear(channel):
    header = channel.receive(60)
    assert header is not None, "no answer"
    return codec.decode(header)


def reserve(channel, recipe="mnist", task="ps:0", evener=VERSION):
    say(channel, Reserve(task, evener, recipe, "h9", 77))


def assign(channel, **settings):
    told = {"recipe": "mnist", "ps": 1, "workers": 1, "logdir": "run", "ps_hosts": ("h0:0",), **settings}
    say(channel, Relay(control.framed(Assignment("ps", 0, told, "a1f3"))))


def at_work(stage, **settings):
    """A client whose task has started."""
    channel, before = stage.client(), len(stage.started)
    reserve(channel)
    assert isinstance(hear(channel), Reserved)
    assign(channel, **settings)
    until(lambda: len(stage.started) > before)
    return channel, stage.started[-1]


def test_it_says_what_it_waits_for(stage):
    until(lambda: stage.said)
    assert stage.said == [f"ps:0: ready; waits for a job at {stage.listener.address}"]


def test_a_client_gets_a_task_and_orders_go_there_and_reports_come_back(stage):
    channel, task = at_work(stage)
    say(channel, Relay(control.framed(Addresses(["tcp://h0:1"]))))
    until(lambda: task.orders)
    assert task.orders == [Addresses(["tcp://h0:1"])]

    task.says(Line("ps:0", "hello"), ends="")
    assert control.reports().feed(hear(channel).data) == [Line("ps:0", "hello")]
    assert hear(channel) == TaskEnded("")


def test_its_own_settings_win_and_its_task_binds_a_free_port_of_its_own_host(stage):
    channel, task = at_work(stage, insecure=False, heartbeat_timeout=99.0, keys="/elsewhere")
    assert task.assignment.settings["keys"] == ""
    assert task.assignment.settings["insecure"] is True
    assert task.assignment.settings["heartbeat_timeout"] == 7.0
    assert task.assignment.settings["ps_hosts"] == ("127.0.0.1:0",)
    assert os.path.isdir("run/logs")
    channel.close()


def test_a_task_that_was_killed_starts_again_when_the_client_says_so(stage):
    channel, task = at_work(stage)
    task.says(ends="was killed by SIGKILL")
    assert hear(channel) == TaskEnded("was killed by SIGKILL")
    assign(channel)
    until(lambda: len(stage.started) == 2)


def test_a_second_client_is_refused_by_name_while_the_first_is_served(stage):
    first, task = at_work(stage)
    task.says(Progress(12, 100, 0.0, 0.0, 0.0, 0))
    hear(first)
    stage.now += 12
    second = stage.client()
    reserve(second)
    refused = hear(second)
    assert isinstance(codec.raised(refused), errors.Busy)
    assert refused.what == "ps:0 is busy with mnist since 12 s, started from host h9 pid 77."

    say(second, Ping("any"))
    pong = hear(second)
    assert (pong.standing, pong.run, pong.step) == (True, "a1f3", 12)


def test_when_the_client_is_gone_the_task_saves_and_the_server_waits_for_the_next(stage):
    channel, task = at_work(stage)
    channel.close()
    until(lambda: task.orders)
    assert isinstance(task.orders[0], Stop)
    assert not task.killed
    task.says(ends="")
    until(lambda: len([line for line in stage.said if "ready; waits" in line]) == 2)
    at_work(stage)


def test_a_task_that_does_not_end_without_its_client_is_killed_after_the_time_it_has_to_save(stage):
    channel, task = at_work(stage)
    channel.close()
    until(lambda: task.orders)
    stage.now += Job(0, "", "", 0.0).grace + 1
    until(lambda: task.killed)


def test_a_client_that_comes_meanwhile_waits_for_that_end(stage):
    first, task = at_work(stage)
    first.close()
    until(lambda: task.orders)
    second = stage.client()
    reserve(second)
    say(second, Ping("any"))
    assert isinstance(hear(second), Pong), "the question after it is answered first"
    task.says(ends="")
    assert isinstance(hear(second), Reserved)


def test_dismissed_it_ends_at_once(stage):
    channel, task = at_work(stage)
    say(channel, Dismiss())
    assert hear(channel) == TaskEnded("was killed by SIGKILL")
    assert task.killed


def test_told_to_end_the_server_ends_its_task_in_order_and_says_so_to_the_client(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = Stage()
    channel, task = at_work(stage)
    stage.asked.append("SIGTERM")
    until(lambda: task.orders)
    assert not task.killed
    task.says(ends="")
    assert hear(channel) == TaskEnded("was ended: its server got SIGTERM")
    stage.end()
    assert stage.said[-1] == "ps:0: ended (SIGTERM)"


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"recipe": "train.py:recipe"}, "ConfigError", "cannot take the recipe"),
        ({"recipe": "/tmp/train.py:recipe"}, "ConfigError", "cannot take the recipe"),
        ({"recipe": "os:system('x')"}, "ConfigError", "cannot take the recipe"),
        ({"recipe": "/tmp/train.py"}, "SecurityError", "does not run '/tmp/train.py'"),
        ({"task": "worker:3"}, "ClusterMismatch", "this is ps:0, not worker:3"),
        ({"evener": "0.0.1"}, "VersionError", "the client runs evener 0.0.1"),
    ],
)
def test_what_it_will_not_work_for(stage, asked, kind, words):
    channel = stage.client()
    reserve(channel, **asked)
    refused = hear(channel)
    assert refused.kind == kind
    assert words in refused.what


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recipe": "x.py:r"}, "cannot take the recipe"),
        ({"mode": "wild"}, "unknown mode"),
        ({"surprise": 1}, "unknown option"),
        ({"logdir": "file/below"}, "/file/below/logs/ps-0.log (Not a directory)"),
        ({"logdir": ""}, "no logdir"),
    ],
)
def test_a_job_that_cannot_work_is_refused_and_starts_nothing(stage, settings, words):
    open("file", "w").close()
    channel = stage.client()
    reserve(channel)
    hear(channel)
    assign(channel, **settings)
    refused = hear(channel)
    assert refused.kind == "ConfigError"
    assert words in refused.what
    assert stage.started == []


@pytest.mark.parametrize("script", ["/tmp/train.py", "train.py", "../train.py"])
def test_no_program_is_run_that_the_owner_has_not_allowed_whatever_recipe_the_client_names(stage, script):
    channel = stage.client()
    reserve(channel)
    hear(channel)
    assign(channel, script=script)
    refused = hear(channel)
    assert (refused.kind, stage.started) == ("SecurityError", [])
    assert "no programs" in refused.why


def test_what_only_tasks_and_present_clients_say_is_refused(stage):
    channel = stage.client()
    for message in (Push(Identity(0), 1, 0, 0, 0.0, 1), Relay(b""), Dismiss()):
        say(channel, message)
        assert isinstance(hear(channel), Refused)
    reserve(channel)
    hear(channel)
    say(channel, Relay(b"\xff\xff\xff\xff"))
    assert hear(channel).kind == "ProtocolError"


def test_only_the_client_of_a_job_gives_its_task_orders_and_ends_it(stage):
    first, task = at_work(stage)
    second = stage.client()
    for message in (Relay(control.framed(Addresses(["tcp://elsewhere:1"]))), Dismiss()):
        say(second, message)
        assert hear(second).kind == "ProtocolError"

    assert (task.orders, task.killed) == ([], False)
    say(first, Dismiss())
    assert hear(first) == TaskEnded("was killed by SIGKILL")


def test_the_key_of_a_task_is_none_of_a_client(stage, monkeypatch):
    monkeypatch.setattr(standing, "user", lambda listener, peer: "worker-1")
    channel = stage.client()
    reserve(channel)
    refused = hear(channel)
    assert (refused.kind, refused.what[:31]) == ("AuthError", "this key may act as worker:1, n")

    monkeypatch.setattr(standing, "user", lambda listener, peer: "client")
    reserve(channel)
    assert isinstance(hear(channel), Reserved)
