"""Only regular files are opened, and no more is read of them than a limit."""

import os
import socket

import pytest

from evener import files


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_a_regular_file_is_read_also_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")

    assert files.content(tmp_path / "link", 3) == b"abc"


def test_a_link_is_refused_where_none_has_any_business(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")

    with pytest.raises(OSError, match="it is a symbolic link"):
        files.content(tmp_path / "link", 3, link=False)
    with pytest.raises(OSError, match="it is a symbolic link"):
        files.descriptor(tmp_path / "link", os.O_WRONLY | os.O_TRUNC, link=False)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_a_fifo_is_refused_at_once(fifo):
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        files.opened(fifo)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_refused_also_through_a_link(tmp_path, name):
    (tmp_path / "link").symlink_to(name)

    with pytest.raises(OSError, match=r"it is a device, not a regular file|No such device"):  # tty: where there is none
        files.opened(tmp_path / "link")


def test_a_directory_and_a_socket_are_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device"):
            files.opened(tmp_path / "socket")
    with pytest.raises(OSError, match="it is a directory, not a regular file"):
        files.opened(tmp_path)


def test_a_file_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(OSError, match="it has more than 3 bytes"):
        files.content(path, 3)


def test_a_file_whose_size_is_not_told_has_a_limit_too():
    with pytest.raises(OSError, match="it has more than 10 bytes"):
        files.content(files.Path("/proc/self/status"), 10)


def test_no_descriptor_is_left_of_what_was_refused(fifo):
    before = os.listdir("/proc/self/fd")
    for path in (fifo, fifo.parent):
        with pytest.raises(OSError, match="not a regular file"):
            files.opened(path)

    assert os.listdir("/proc/self/fd") == before


def test_of_a_file_above_the_limit_nothing_is_read(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(b"1234")

    class Unread:
        def __init__(self, file):
            self.fileno, self._file = file.fileno, file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    whole = files.opened
    monkeypatch.setattr(files, "opened", lambda path, link: Unread(whole(path, link=link)))
    with pytest.raises(OSError, match="it has more than 3 bytes"):
        files.content(path, 3)
