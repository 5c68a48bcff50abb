"""Downloads against a real server on this machine: resumed, checked, and never half a file under the final name."""

import fcntl
import hashlib
import os
import threading

import pytest
from local_mirror import CONTENT, SHA256, Server

from evener.data import download
from evener.data.download import fetch
from evener.errors import InputError


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    yield made
    made.close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "file"


def part(target):
    return target.with_name("file.part")


def test_a_file_arrives_whole_and_leaves_no_part(server, target):
    seen = []
    found = fetch([f"{server.base}/file"], target, sha256=SHA256, progress=lambda *args: seen.append(args))

    assert found == target
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == ["file"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_without_a_length_the_file_arrives_too(server, target):
    server.length = False
    seen = []
    fetch([f"{server.base}/file"], target, sha256=SHA256, progress=lambda *args: seen.append(args))
    assert seen[-1] == (len(CONTENT), None)


def test_after_a_cut_the_rest_is_asked_for(server, target):
    server.cuts = [1000, 5000]
    fetch([f"{server.base}/file"], target, sha256=SHA256)

    assert target.read_bytes() == CONTENT
    assert server.asked == [("/file", None), ("/file", "bytes=1000-"), ("/file", "bytes=6000-")]


def test_an_interrupted_run_goes_on_in_the_next_one_from_another_mirror(server, target):
    server.files["/other"] = CONTENT
    server.cuts = [1000] + [0] * 5
    with pytest.raises(InputError, match="could not be downloaded") as caught:
        fetch([f"{server.base}/file"], target, sha256=SHA256)
    assert f"cut after 1000 of {len(CONTENT)} bytes" in caught.value.why
    assert not target.exists()
    assert part(target).stat().st_size == 1000

    server.cuts, server.asked = [], []
    fetch([f"{server.base}/other"], target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/other", "bytes=1000-")]


def test_a_server_that_ignores_ranges_begins_again(server, target):
    server.ranges = False
    server.cuts = [1000]
    fetch([f"{server.base}/file"], target, sha256=SHA256)

    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ("/file", "bytes=1000-")


def test_a_server_that_always_cuts_at_one_place_does_not_hold_us(server, target):
    server.ranges = False
    server.cuts = [1000] * 50
    with pytest.raises(InputError):
        fetch([f"{server.base}/file"], target, sha256=SHA256)
    assert len(server.asked) == 2


def test_a_server_that_gives_a_byte_at_a_time_does_not_hold_us(server, target):
    server.cuts = [1] * 50
    with pytest.raises(InputError):
        fetch([f"{server.base}/file"], target, sha256=SHA256)
    assert len(server.asked) == download.ATTEMPTS


def test_a_wrong_checksum_deletes_everything_and_shows_both(server, target):
    server.files["/file"] = b"<html>Please log in</html>"
    with pytest.raises(InputError, match="could not be downloaded") as caught:
        fetch([f"{server.base}/file"], target, sha256=SHA256)

    assert SHA256 in caught.value.why
    assert hashlib.sha256(server.files["/file"]).hexdigest() in caught.value.why
    assert os.listdir(target.parent) == []


def test_after_a_wrong_checksum_the_next_mirror_begins_at_zero(server, target):
    server.files["/bad"] = b"bad"
    fetch([f"{server.base}/bad", f"{server.base}/file"], target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/bad", None), ("/file", None)]


@pytest.mark.parametrize("rubbish", [b"rubbish", CONTENT + b"too long", b"x" * len(CONTENT)])
def test_a_part_that_does_not_fit_is_thrown_away(server, target, rubbish):
    target.parent.mkdir()
    part(target).write_bytes(rubbish)
    fetch([f"{server.base}/file"], target, sha256=SHA256)

    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ("/file", None)


def test_a_part_that_is_whole_already_needs_no_bytes(server, target):
    target.parent.mkdir()
    part(target).write_bytes(CONTENT)
    fetch([f"{server.base}/file"], target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/file", f"bytes={len(CONTENT)}-")]


def test_a_part_of_another_place_in_the_file_is_refused(server, target):
    server.content_range = "bytes 7-9/10"
    target.parent.mkdir()
    part(target).write_bytes(CONTENT[:10])
    with pytest.raises(InputError) as caught:
        fetch([f"{server.base}/file"], target, sha256=SHA256)
    assert "another part of the file" in caught.value.why


def test_each_mirror_that_failed_is_named_with_its_reason(server, target):
    urls = [f"{server.base}/gone", "file:///etc/passwd", f"{server.base}/file"]
    fetch(urls, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT

    target.unlink()
    closed = "http://127.0.0.1:1/file"
    with pytest.raises(InputError) as caught:
        fetch([*urls[:2], closed], target, sha256=SHA256)
    assert f"{server.base}/gone: the server answered 404 Not Found" in caught.value.why
    assert "not an http or https address" in caught.value.why
    assert f"{closed}: " in caught.value.why
    assert "run again" in caught.value.fix


def test_answers_beyond_all_measure_are_refused(server, target, monkeypatch):
    monkeypatch.setattr(download, "MAX_NBYTES", 1000)
    for server.length in (True, False):
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            fetch([f"{server.base}/file"], target, sha256=SHA256)
        assert "more than 1000" in caught.value.why


def test_a_file_that_is_there_is_not_touched(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    fetch([f"{server.base}/file"], target, sha256=SHA256)
    assert target.read_bytes() == b"mine"
    assert server.asked == []


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "new").write_text("a file where the directory should be")
    with pytest.raises(InputError, match=r"new/file cannot be written"):
        fetch([f"{server.base}/file"], tmp_path / "new" / "file", sha256=SHA256)


class Listening:
    """A stderr that tells when something was written."""

    def __init__(self):
        self.text = ""
        self.written = threading.Event()

    def write(self, text):
        self.text += text
        self.written.set()


def test_of_two_processes_one_downloads_and_the_other_waits_for_it_aloud(server, target, monkeypatch):
    target.parent.mkdir()
    lock = os.open(target.parent, os.O_RDONLY)  # another process, as flock sees it
    fcntl.flock(lock, fcntl.LOCK_EX)
    stderr = Listening()
    monkeypatch.setattr("sys.stderr", stderr)
    waiter = threading.Thread(target=fetch, args=([f"{server.base}/file"], target), kwargs={"sha256": SHA256})
    waiter.start()

    assert stderr.written.wait(60)
    assert f"waiting for another process that downloads into {target.parent}" in stderr.text
    target.write_bytes(CONTENT)
    os.close(lock)
    waiter.join(60)
    assert not waiter.is_alive()
    assert server.asked == []


def test_a_file_system_without_locks_is_no_obstacle(server, target, monkeypatch, capsys):
    def no_locks(descriptor, operation):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    fetch([f"{server.base}/file"], target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert "cannot be locked" in capsys.readouterr().err
