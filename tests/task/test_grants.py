"""Who was given which place is on the disk before anybody is told, if it is full too, and no number comes twice."""

from __future__ import annotations

import errno
import os
import resource

import msgspec
import pytest

from evener.errors import CheckpointError, Unavailable
from evener.task import grants as module
from evener.task.grants import BLOCK, NAME, Grants, GrantsFile


class Desk:
    """One logdir, its ps:0 and what that tells."""

    def __init__(self, directory, workers=2):
        self.directory, self.workers, self.told, self.slept = directory, workers, [], []
        self.path = directory / NAME

    def open(self):
        file = GrantsFile(self.path, self.workers, self.told.append)
        file.find(self.directory / "ledger.jsonl", None)
        return file

    def begun(self, patience=3.0, stopped=lambda: ""):
        file = self.open()
        file.begin(sleep=self.slept.append, patience=patience, stopped=stopped)
        return file


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture
def refused(monkeypatch):
    """The disk takes nothing while this is set to an error number; 0: it is well."""
    why = [errno.EIO]
    flush = module.flush

    def failing(fd):
        if why[0]:
            raise OSError(why[0], os.strerror(why[0]))
        return flush(fd)

    monkeypatch.setattr(module, "flush", failing)
    return why


def test_each_life_of_a_ps_task_begins_a_generation_of_its_own_and_epochs_stay(desk):
    desk.begun().keep({0: 3}, {0: "a"})
    second = desk.begun()
    second.keep({0: 4, 1: 1}, {0: "b", 1: "c"})

    assert second.grants.generation == 2
    assert desk.open().grants == Grants(2, {0: 4, 1: 1}, {0: "b", 1: "c"}, second.grants.number)
    assert desk.told == []


def test_a_full_disk_refuses_no_grant_since_its_room_was_taken_before(desk):
    """The limit of a file's size refuses every new block, as a full disk does; it holds for this process alone."""
    desk.begun()
    size = desk.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        for life in range(20):
            desk.begun().keep({0: life, 1: life}, {0: f"{life:016}", 1: f"{life:016}"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert desk.open().grants.generation == 21
    assert desk.path.stat().st_size == size
    assert os.listdir(desk.directory) == [NAME], "no draft was needed"


@pytest.mark.parametrize("torn", [0, 1, 70])
def test_a_write_that_was_cut_off_leaves_what_was_promised_before(desk, torn):
    file = desk.begun()
    file.keep({0: 1}, {0: "a"})
    promised = file.grants
    file.keep({0: 2}, {0: "b"})
    data = bytearray(desk.path.read_bytes())
    newest = len(data) // 2 * (file.grants.number % 2)
    data[newest + torn : newest + BLOCK] = bytes(BLOCK - torn)
    desk.path.write_bytes(data)

    assert desk.open().grants == promised


def test_no_worker_is_told_of_a_place_that_is_not_on_the_disk_and_it_is_told_once(desk, refused):
    refused[0] = 0
    file = desk.begun()
    refused[0] = errno.EROFS
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"grants\.json: Read-only file system"):
            file.keep({0: 1}, {0: "a"})
    assert len(desk.told) == 1
    assert "no worker that comes now gets a place; the others train on" in desk.told[0]

    refused[0] = 0
    file.keep({0: 2}, {0: "a"})
    assert desk.open().grants.epochs == {0: 2}
    assert desk.told[1:] == [f"{desk.path} can be written again"]


def test_a_ps_task_that_comes_back_waits_for_the_disk_and_begins_then(desk, refused):
    refused[0] = 0
    desk.begun()
    refused[0] = errno.EIO

    def recovers(seconds):
        desk.slept.append(seconds)
        refused[0] = 0 if len(desk.slept) == 3 else refused[0]

    file = desk.open()
    file.begin(sleep=recovers, patience=100.0, stopped=lambda: "")
    assert file.grants.generation == 2
    assert len(desk.slept) == 3


def test_it_does_not_wait_for_ever_nor_once_it_is_to_stop_nor_where_nothing_was_trained_yet(desk, refused):
    refused[0] = 0
    desk.begun()
    refused[0] = errno.EIO
    with pytest.raises(CheckpointError, match="Input/output error"):
        desk.begun(patience=2.0)
    assert sum(desk.slept) == 2.0
    with pytest.raises(CheckpointError):
        desk.begun(stopped=lambda: "interrupted")
    assert sum(desk.slept) == 2.0

    new = Desk(desk.directory / "new")
    (desk.directory / "new").write_text("a file where a directory should be")
    file = GrantsFile(new.path, 2, new.told.append)
    with pytest.raises(CheckpointError, match="cannot be written"):
        file.begin(sleep=new.slept.append, patience=100.0, stopped=lambda: "")
    assert new.slept == []


def test_more_workers_than_there_was_room_for_take_more(desk):
    file = desk.begun()
    many = range(3000)
    file.keep(dict.fromkeys(many, 1), dict.fromkeys(many, "f" * 16))
    assert desk.open().grants.epochs == dict.fromkeys(many, 1)
    assert desk.begun().grants.holders[2999] == "f" * 16


def test_what_evener_0_1_0_wrote_is_read_and_goes_on(desk):
    desk.path.write_bytes(msgspec.json.encode({"generation": 7, "epochs": {"0": 3}, "holders": {"0": "a"}}))
    file = desk.begun()
    assert (file.grants.generation, file.grants.epochs) == (8, {0: 3})
    assert desk.begun().grants.generation == 9


@pytest.mark.parametrize("content", [b"", b"{", b"x" * 2 * BLOCK, b"x" * 10, b'{"generation":-1}', b"[" * 9999])
def test_a_damaged_file_is_refused(desk, content):
    desk.path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        desk.open()


def test_in_a_directory_that_was_deleted_it_is_made_again(desk):
    file = Desk(desk.directory / "checkpoints").begun()
    file.path.unlink()
    file.path.parent.rmdir()
    file.keep({0: 1}, {})
    assert Desk(desk.directory / "checkpoints").open().grants.epochs == {0: 1}
