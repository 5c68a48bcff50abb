"""File systems that lack locks or the fsync of a directory, or lie about time: told once, and nothing is lost.

No such file system is mounted here: what it would answer is put in the place of the kernel's answer.
"""

import errno
import fcntl
import os
import stat

import pytest
from training import recipe_of, save, sgd, shards_of, train

from evener.errors import CheckpointError
from evener.ledger import Begin, Ledger, path_of, writing
from evener.policy.leases import LeaseState
from evener.state import atomic
from evener.state.atomic import atomic_write, sync_directory
from evener.state.checkpoint import Store

LACKS = [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP]
RECIPE = recipe_of(sgd)


@pytest.fixture
def told():
    return []


@pytest.fixture
def answering(monkeypatch):
    """Let a call of the kernel answer with an error; directories only, if asked."""

    def make(code: int, *, directories: bool = False) -> None:
        real = os.fsync

        def fsync(fd):
            if stat.S_ISDIR(os.fstat(fd).st_mode) or not directories:
                raise OSError(code, os.strerror(code))
            real(fd)

        monkeypatch.setattr(atomic.os, "fsync", fsync)

    return make


@pytest.fixture
def locking(monkeypatch):
    """Let `flock` answer with an error."""

    def make(code: int) -> None:
        def flock(_fd, _operation):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)

    return make


# --- no fsync of a directory


@pytest.mark.parametrize("code", LACKS, ids=errno.errorcode.get)
def test_without_fsync_of_directories_checkpoints_are_kept_and_it_is_told_once(tmp_path, answering, told, code):
    answering(code, directories=True)
    store = Store(tmp_path / "checkpoints", tell=told.append)
    states = shards_of(RECIPE)
    for _ in range(3):
        train(states, 1)
        save(store, states)
        store.keep_newest(2)

    assert store.steps() == [2, 3]
    assert store.newest(told.append)[0].step == 3
    assert len(told) == 1
    assert "cannot flush a directory" in told[0] and os.strerror(code) in told[0] and "power loss" in told[0]


@pytest.mark.parametrize("code", LACKS, ids=errno.errorcode.get)
def test_without_any_fsync_a_file_is_whole_all_the_same(tmp_path, answering, code):
    answering(code)
    atomic_write(tmp_path / "file", [b"every", b"thing"])

    assert (tmp_path / "file").read_bytes() == b"everything"
    assert os.strerror(code) in sync_directory(tmp_path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_flush_that_fails_is_no_flush_that_is_lacking(tmp_path, answering, told, code):
    store = Store(tmp_path / "checkpoints")
    answering(code, directories=True)

    with pytest.raises(OSError, match=os.strerror(code)):
        save(store, shards_of(RECIPE))
    store.close()
    with pytest.raises(CheckpointError, match="checkpoints is not writable"):  # at the start, not after an hour
        Store(tmp_path / "checkpoints", tell=told.append)
    assert told == []


def test_a_good_file_system_is_not_spoken_of(tmp_path, told):
    Store(tmp_path, tell=told.append).close()
    assert (told, sync_directory(tmp_path)) == ([], "")


# --- no locks


@pytest.mark.parametrize("code", [*LACKS, errno.ENOLCK], ids=errno.errorcode.get)
def test_without_locks_a_run_goes_on_and_says_that_nothing_keeps_a_second_one_out(tmp_path, locking, told, code):
    locking(code)
    store = Store(tmp_path, tell=told.append)
    save(store, shards_of(RECIPE))

    assert store.steps() == [0]
    assert len(told) == 1
    assert "without locks" in told[0] and os.strerror(code) in told[0] and "second run" in told[0]
    store.close()
    Store(tmp_path, tell=told.append).close()


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES], ids=errno.errorcode.get)
def test_a_lock_that_somebody_holds_is_still_one(tmp_path, locking, told, code):
    (tmp_path / ".lock").write_text("pid 812")
    locking(code)

    with pytest.raises(CheckpointError, match=r"in use by another run \(pid 812\)"):
        Store(tmp_path, tell=told.append)
    assert told == []


def test_a_lock_that_fails_is_neither_held_nor_lacking(tmp_path, locking, told):
    locking(errno.EIO)

    with pytest.raises(CheckpointError, match=r"cannot be locked \(Input/output error\)"):
        Store(tmp_path, tell=told.append)
    assert told == []


# --- the ledger


@pytest.mark.parametrize(("code", "lines"), [(errno.EINVAL, 0), (errno.ENOSPC, 0), (errno.EIO, 1)])
def test_a_ledger_that_cannot_be_flushed_is_written_all_the_same(tmp_path, monkeypatch, told, code, lines):
    def fdatasync(_fd):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writing.os, "fdatasync", fdatasync)
    ledger = Ledger(path_of(tmp_path), Begin(), tell=told.append)
    ledger.begin(0, 100, LeaseState(0, ()))
    ledger.complete()
    ledger.close()

    assert len(path_of(tmp_path).read_bytes().splitlines()) == 2
    assert len(told) == lines
