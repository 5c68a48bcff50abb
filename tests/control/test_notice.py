"""A machine that gives notice: by a file or a URL, where an old notice does not count."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from evener.control import notice
from evener.control.notice import Notices, reader, watch


class Cloud(BaseHTTPRequestHandler):
    """A machine's own metadata; a test says what it answers."""

    answer = (404, b"")
    token = ""
    seen: ClassVar[list] = []

    def do_GET(self):
        self.seen.append(dict(self.headers))
        code, body = self.answer
        if self.token and self.headers.get("X-aws-ec2-metadata-token") != self.token:
            code, body = 401, b""
        self.respond(code, body)

    def do_PUT(self):
        right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.respond(*((200, self.token.encode()) if right else (403, b"")))

    def respond(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words): ...


@pytest.fixture
def cloud():
    kind = type("Answers", (Cloud,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        kind.url = f"http://127.0.0.1:{server.server_port}/latest/meta-data/spot/instance-action"
        yield kind
        server.shutdown()
        thread.join()


def test_a_file_that_appears_is_a_notice_once(tmp_path):
    notices = Notices(reader(str(tmp_path / "notice")))
    assert not notices.old and not notices.is_new()
    (tmp_path / "notice").touch()
    assert [notices.is_new(), notices.is_new()] == [True, False], "an empty file is one too"


def test_a_file_that_was_there_before_counts_when_it_changes_or_comes_again(tmp_path):
    place = tmp_path / "notice"
    place.write_text("yesterday")
    notices = Notices(reader(str(place)))
    assert notices.old and not notices.is_new()
    place.write_text("today")
    assert notices.is_new()
    place.unlink()
    assert not notices.is_new()
    place.write_text("today")
    assert notices.is_new()


def test_what_stands_there_is_a_notice_whatever_it_is(tmp_path):
    notices = Notices(reader(str(tmp_path / "notice")))
    (tmp_path / "notice").mkdir()
    assert notices.is_new()


@pytest.mark.parametrize("answer", [(404, b"no"), (200, b"FALSE"), (200, b"NONE\n"), (204, b""), (500, b"broken")])
def test_these_answers_are_no_notice(answer, cloud):
    cloud.answer = answer
    notices = Notices(reader(cloud.url))
    assert not notices.old and not notices.is_new()


@pytest.mark.parametrize("answer", [(200, b"TRUE"), (200, b'{"action": "terminate"}'), (200, b"")])
def test_these_answers_are_notices(answer, cloud):
    notices = Notices(reader(cloud.url))
    cloud.answer = answer
    assert [notices.is_new(), notices.is_new()] == [True, False]
    assert all(headers["Metadata-Flavor"] == "Google" for headers in cloud.seen)


def test_a_silent_cloud_does_not_make_an_old_notice_new(cloud):
    cloud.answer = (200, b"TRUE")
    notices = Notices(reader(cloud.url))
    for answer in ((500, b""), (200, b"TRUE")):
        cloud.answer = answer
        assert not notices.is_new()


def test_newer_machines_of_aws_want_a_token_first(cloud):
    cloud.token = "sesame"
    notices = Notices(reader(cloud.url))
    assert not notices.is_new()
    cloud.answer = (200, b'{"action": "stop"}')
    cloud.token = "another"
    assert notices.is_new()


def test_nobody_there_is_no_notice():
    assert reader("http://127.0.0.1:1/latest")() is None


def test_it_looks_until_there_is_one_and_tells_it_once():
    said = iter(["", "", "now", "again"])
    notices, seen, waits = Notices(lambda: next(said)), [], []
    watch(notices, lambda: seen.append(len(waits)), waits.append)
    assert seen == [2] and waits == [1.0, 1.0]


def test_when_the_task_is_over_nobody_looks():
    watch(Notices(lambda: ""), lambda: pytest.fail("told"), lambda seconds: True)


WAITS = """
import os, sys, threading
from evener.control import notice
from evener.control.told import Told, told_to_leave
from evener.errors import Preempted
notice.EVERY = 0.01
told = Told("worker:1", raises=True)
say = lambda text: sys.stdout.write(text + chr(10))
try:
    with told_to_leave(told, grace=60.0), notice.noticed(sys.argv[1], told.announce, say):
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        {waits}
except Preempted as left:
    print("preempted:", left)
    sys.exit(4)
"""


@contextmanager
def waiting(place, waits="threading.Event().wait(600)"):
    program = WAITS.format(waits=waits)
    with subprocess.Popen([sys.executable, "-c", program, place], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_task_leaves_as_after_sigterm(tmp_path):
    with waiting(tmp_path / "notice") as process:
        assert process.stdout.readline() == "ready\n"
        (tmp_path / "notice").touch()
        said, _ = process.communicate(timeout=60)
    assert said == f"preempted: worker:1 was told to leave (preemption notice at {tmp_path / 'notice'})\n"
    assert process.returncode == 4


TWICE = """
        try:
            threading.Event().wait(600)
        except Preempted:
            os.kill(os.getpid(), 15)
            sys.stdout.write("finishes\\n")
            sys.stdout.flush()
            os.kill(os.getpid(), 15)
            sys.stdout.write("goes on\\n")
"""


def test_the_sigterm_that_follows_a_notice_lets_it_finish_and_one_more_does_not(tmp_path):
    with waiting(tmp_path / "notice", TWICE) as process:
        assert process.stdout.readline() == "ready\n"
        (tmp_path / "notice").touch()
        said, _ = process.communicate(timeout=60)
    assert (said, process.returncode) == ("finishes\n", 4)


def test_a_notice_of_an_earlier_life_is_told_and_ignored(tmp_path):
    (tmp_path / "notice").touch()
    with waiting(
        tmp_path / "notice", "while not os.path.exists(sys.argv[1] + '2'): threading.Event().wait(0.01)"
    ) as process:
        lines = {process.stdout.readline() for _ in range(2)}
        assert lines == {
            "ready\n",
            f"the preemption notice at {tmp_path / 'notice'} was there before this task: "
            "it is ignored until it changes\n",
        }
        (tmp_path / "notice2").touch()
        assert process.wait(60) == 0


def test_who_has_ended_is_told_nothing(monkeypatch):
    """Also where the answer was on its way when it ended."""
    asked, ended = threading.Event(), threading.Event()

    def read(answers=iter(["", "soon"])):  # noqa: B008 - of one test
        answer = next(answers)
        if answer:
            asked.set()
            assert ended.wait(60)
        return answer

    monkeypatch.setattr(notice, "reader", lambda place: read)
    monkeypatch.setattr(notice, "EVERY", 0.0)
    told = []
    with notice.noticed("somewhere", told.append, told.append):
        assert asked.wait(60)
        (thread,) = [one for one in threading.enumerate() if one.name == "notice"]
    ended.set()
    thread.join(60)
    assert told == []
