"""The lock of a directory writes into its own file and into no other."""

import os

import pytest

from evener.errors import CheckpointError
from evener.state.locks import Lock


def test_a_link_in_the_place_of_the_lock_is_refused_and_its_target_stays(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    (directory / ".lock").symlink_to("../victim")

    with pytest.raises(CheckpointError, match=r"is not writable \(it is a symbolic link\)") as refused:
        Lock(directory, print)
    assert f"remove {directory / '.lock'}" in refused.value.fix
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_fifo_in_the_place_of_the_lock_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / ".lock")

    with pytest.raises(CheckpointError, match="it is a FIFO, not a regular file"):
        Lock(tmp_path, print)


def test_a_file_of_somebody_else_in_the_place_of_the_lock_keeps_its_content(tmp_path):
    (tmp_path / ".lock").write_bytes(b"precious")
    Lock(tmp_path, print).close()

    assert (tmp_path / ".lock").read_bytes() == b"precious"


def test_the_number_of_the_process_stands_in_it(tmp_path):
    (tmp_path / ".lock").write_bytes(b"pid 123456789012")
    lock = Lock(tmp_path, print)

    assert (tmp_path / ".lock").read_bytes() == f"pid {os.getpid()}".encode()
    lock.close()
