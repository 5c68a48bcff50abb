"""The ledger's file: a line outlives whoever wrote it, a full disk ends no run, and what is torn is seen."""

import errno
import itertools
import json
import os
import signal

import pytest

from evener.audit import audit
from evener.errors import CheckpointError, VersionError
from evener.ledger import Begin, Ledger, granted, lost, path_of, writing
from evener.ledger.lines import Complete, Cut, Damaged, Dropped, End, Gap, Returned, Update
from evener.ledger.reading import LONGEST, beginnings, read
from evener.policy.leases import LeaseState

ABOUT = Begin(generation=2, run="r", mode="async", batch_size=100, seed=7, evener="0.1")


@pytest.fixture
def path(tmp_path):
    return path_of(tmp_path)


@pytest.fixture
def told():
    return []


@pytest.fixture
def ledger(path, told):
    return Ledger(path, ABOUT, clock=lambda: 1000.5, tell=told.append)


@pytest.fixture
def disk(monkeypatch):
    """A disk that takes `room` bytes more, then none."""

    class Disk:
        room = 1 << 60

        def write(self, fd, data):
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = os_write(fd, data[: self.room])
            self.room -= written
            return written

    os_write, disk = os.write, Disk()
    monkeypatch.setattr(writing.os, "write", disk.write)
    return disk


def lines(path):
    return [line for _, line in read(path)]


def test_every_kind_of_line_is_read_as_it_was_written(ledger, path):
    ledger.begin(800, 60000, LeaseState(803, (801, 802)))
    ledger.update(801, [(801, 2, 1, 270)])
    ledger.drop((815, 0, 3, 271), "too old", back=True)
    ledger.returned(2, 1, [817, 818])
    ledger.returned(3, 1, [])  # says nothing, so nothing is said
    ledger.cut(801, LeaseState(819, (802,)))
    ledger.complete()
    ledger.end(801, "enough", LeaseState(819, (802,)))
    ledger.close()

    beginning = Begin(1, 1000.5, 2, "r", "async", 800, 803, (801, 802), 100, 60000, 7, "0.1")
    assert lines(path) == [
        beginning, Update(801, [(801, 2, 1, 270)]), Dropped(815, 0, 3, 271, "too old", True),
        Returned(2, 1, [817, 818]), Cut(801, 819, [802]), Complete(801), End(801, "enough", 819, [802]),
    ]  # fmt: skip
    assert list(beginnings(path)) == [beginning]


def test_a_run_that_ends_before_it_began_leaves_no_line(ledger, path):
    """A task that cannot begin ends it; the next one, in the same logdir, is the first of the ledger."""
    ledger.end(0, "worker:0 failed", LeaseState(0, ()))
    ledger.close()
    assert not path.exists()


def test_lines_are_numbered_as_an_editor_does_and_empty_ones_say_nothing(path):
    path.write_text('["u",1,[[0,0,1,1]]]\n\n["u",2,[[1,0,1,2]]]\n')
    assert [(number, line.step) for number, line in read(path)] == [(1, 1), (3, 2)]


def test_an_update_of_ten_million_takes_less_than_60_bytes_and_one_line_of_json(ledger, path):
    ledger.update(10_000_000, [(10_000_063, 63, 12, 200_000)])
    text = path.read_bytes()

    assert json.loads(text) == ["u", 10_000_000, [[10_000_063, 63, 12, 200_000]]]
    assert text.endswith(b"\n") and len(text) < 60


def test_nothing_is_made_before_the_first_line(ledger, path):
    ledger.close()
    assert not path.exists()


def test_a_ledger_of_nowhere_takes_everything_and_keeps_nothing(tmp_path):
    ledger = Ledger()
    ledger.begin(0, 10, LeaseState(0, ()))
    ledger.update(1, [(0, 0, 1, 1)])
    ledger.cut(1, LeaseState(1, ()))
    ledger.complete()
    ledger.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_checkpoint_or_an_end_says_is_on_the_disk_when_it_is_said(ledger, path, monkeypatch):
    flushed = []
    monkeypatch.setattr(writing.os, "fdatasync", lambda _: flushed.append(lines(path)[-1]))
    ledger.update(1, [(0, 0, 1, 1)])
    ledger.cut(1, LeaseState(1, ()))
    ledger.complete()
    ledger.end(1, "enough", LeaseState(1, ()))
    assert flushed == [Complete(1), End(1, "enough", 1, [])]


def test_a_closed_ledger_keeps_no_file_open(ledger, path, monkeypatch):
    opened, os_open, os_close = [], os.open, os.close
    monkeypatch.setattr(writing.os, "open", lambda *how: opened.append(os_open(*how)) or opened[-1])
    monkeypatch.setattr(writing.os, "close", lambda fd: os_close(fd) or opened.remove(fd))
    updates(ledger, 1)
    assert len(opened) == 1
    ledger.close()
    assert opened == []


def test_a_writer_killed_in_the_middle_loses_no_line_that_it_wrote(ledger, path):
    child = os.fork()
    if child == 0:
        for step in itertools.count(1):
            ledger.update(step, [(step - 1, 0, 1, step)])
            if step == 1000:
                os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL

    assert [line.step for line in lines(path)] == list(range(1, 1001))


@pytest.mark.parametrize("torn", [b'["u",2,[[1,', b'["u",2,[[1,0,1,2]]]', b"\0\0\0\0", b'["u",2,[[1,\xff'])
def test_a_torn_last_line_is_told_apart_and_the_next_run_begins_a_line_of_its_own(torn, ledger, path):
    path.write_bytes(b'["u",1,[[0,0,1,1]]]\n' + torn)
    assert lines(path)[0] == Update(1, [(0, 0, 1, 1)])
    assert lines(path)[1] in (Damaged(torn=True), Update(2, [(1, 0, 1, 2)]))

    ledger.begin(1, 10, LeaseState(1, ()))
    ledger.update(2, [(1, 0, 1, 2)])
    ledger.close()
    assert lines(path)[0] == Update(1, [(0, 0, 1, 1)])
    assert lines(path)[1] in (Damaged(torn=False), Update(2, [(1, 0, 1, 2)]))
    assert lines(path)[2].step == 1
    assert lines(path)[3:] == [Update(2, [(1, 0, 1, 2)])]


# --- a disk that is full


def updates(ledger, *steps):
    for step in steps:
        ledger.update(step, [(step - 1, 0, 1, step)])


@pytest.mark.parametrize("room", range(0, 45, 4))
def test_lines_wait_while_the_disk_is_full_and_none_is_lost_or_torn_afterwards(room, ledger, path, disk, told):
    updates(ledger, 1)
    disk.room = room
    updates(ledger, 2, 3, 4, 5)
    assert len(told) == 1 and "cannot be written" in told[0] and "training goes on" in told[0]
    disk.room = 1 << 60
    updates(ledger, 6)

    assert [line.step for line in lines(path)] == [1, 2, 3, 4, 5, 6]
    assert told[1:] == [f"the ledger {path} can be written again; nothing is lost"]
    ledger.close()
    assert len(told) == 2


@pytest.mark.parametrize("room", [0, 10, 20, 25])
def test_what_waits_too_long_is_given_up_and_counted(room, ledger, path, disk, told, monkeypatch):
    monkeypatch.setattr(writing, "PATIENCE", 2000)
    updates(ledger, 1)
    disk.room = room
    waiting = 250
    for step in range(2, waiting):
        updates(ledger, step)
    disk.room = 1 << 60
    updates(ledger, waiting)
    ledger.close()

    found = lines(path)
    gap = next(line for line in found if isinstance(line, Gap))
    known = [line.step for line in found if isinstance(line, Update)]
    assert known[-1] == waiting
    assert gap.lines == waiting - len(known)
    assert [line for line in found if isinstance(line, Damaged)] == [Damaged(torn=False)] * (room not in (0, 20))
    assert told[1:] == [f"the ledger {path} can be written again; {gap.lines} lines are lost"]


def test_what_was_never_written_is_told_at_the_end(ledger, path, disk, told):
    disk.room = 0
    updates(ledger, 1, 2, 3)
    ledger.close()
    assert told[1:] == ["the ledger lacks 3 lines: they could not be written"]


def test_a_directory_that_takes_no_file_ends_no_run(tmp_path, told):
    ledger = Ledger(tmp_path / "no" / "where", ABOUT, tell=told.append)
    updates(ledger, 1, 2)
    assert len(told) == 1 and "No such file" in told[0]
    (tmp_path / "no").mkdir()
    updates(ledger, 3)
    ledger.close()
    assert [line.step for line in lines(tmp_path / "no" / "where")] == [1, 2, 3]


# --- how far the last run came


@pytest.mark.parametrize(
    ("said", "step", "beyond"),
    [
        (["u,1", "u,2", "u,3"], 1, 2),
        (["u,1", "u,2", "u,3"], 3, 0),
        (["u,1", "u,2", "u,3", "b,1"], 1, 0),  # told before: that run has begun already
        (["u,1", "u,2", "u,3", "b,1", "u,2"], 1, 1),
        (["u,1", "u,2", "s,2", "u,3", "c,2", "d"], 2, 1),
        (["u,1", "u,2", "e,2"], 0, 2),
        (["u,1", "s,3"], 1, 2),  # the lines between could not be written
        (["u,1"], 3, 0),  # nor could those up to the checkpoint
        ([], 5, 0),
    ],
)
@pytest.mark.parametrize("torn", [b"", b'["u",9,[[8,0'])
def test_the_updates_that_going_back_to_a_checkpoint_loses(said, step, beyond, torn, ledger, path):
    path.touch()
    for kind, _, at in (one.partition(",") for one in said):
        match kind:
            case "u":
                ledger.update(int(at), [(0, 0, 1, 1)])
            case "b":
                ledger.begin(int(at), 10, LeaseState(0, ()))
            case "s":
                ledger.cut(int(at), LeaseState(0, ()))
            case "c":
                ledger.complete()
            case "d":
                for seq in range(5000):  # more than one read from the end of the file
                    ledger.drop((9, 1, 1, seq), "too old", back=True)
            case "e":
                ledger.end(int(at), "over", LeaseState(0, ()))
    ledger.close()
    with path.open("ab") as file:
        file.write(torn)

    assert lost(path, step) == beyond


def test_without_a_ledger_nothing_is_known_to_be_lost(path):
    assert lost(path, 3) == 0


def test_a_logdir_without_a_ledger_is_an_error_that_says_so(path):
    with pytest.raises(CheckpointError, match=r"ledger.jsonl cannot be read \(No such file"):
        list(read(path))
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(beginnings(path))


def test_the_ledger_of_a_newer_evener_is_refused(path):
    path.write_text('["b",3,1000.0,1]\n')
    with pytest.raises(VersionError, match="format 3, this evener reads up to 2"):
        list(read(path))


def test_fields_that_a_newer_evener_appends_are_ignored(path):
    path.write_text('["u",1,[[0,0,1,1]],"more"]\n')
    assert lines(path) == [Update(1, [(0, 0, 1, 1)])]


# --- files of somebody else, and none any more


def test_a_link_in_its_place_is_not_written_through(ledger, path, told):
    (path.parent / "victim").write_bytes(b"precious")
    path.symlink_to("victim")
    updates(ledger, 2)

    assert (path.parent / "victim").read_bytes() == b"precious"
    assert told == [
        f"the ledger {path} cannot be written (it is a symbolic link); its lines wait in memory; training goes on"
    ]


def test_a_fifo_in_its_place_is_neither_written_nor_read(ledger, path, told):
    os.mkfifo(path)
    updates(ledger, 2)

    assert "it is a FIFO, not a regular file" in told[0]
    with pytest.raises(CheckpointError, match="it is a FIFO, not a regular file"):
        lines(path)
    assert lost(path, 0) == 0


def test_a_deleted_one_begins_again_at_the_checkpoint_and_that_is_told_once(ledger, path, told):
    ledger.begin(0, 60000, LeaseState(0, ()))
    ledger.update(1, [(0, 0, 1, 1)])
    path.unlink()
    path.parent.rmdir()
    ledger.update(2, [(1, 0, 1, 2)])
    ledger.cut(2, LeaseState(2, ()))
    ledger.update(3, [(2, 0, 1, 3)])  # while the checkpoint is being written
    ledger.complete()
    ledger.update(4, [(3, 0, 1, 4)])
    ledger.cut(4, LeaseState(4, ()))
    ledger.complete()

    assert told == [f"warning: the ledger {path} was deleted; it begins again at step 2"]
    begin, *rest = lines(path)
    assert (begin.step, begin.next_lease, begin.samples, begin.generation, begin.run) == (2, 2, 60000, 2, "r")
    assert rest == [Gap(1), Complete(2), Update(4, [(3, 0, 1, 4)]), Cut(4, 4, []), Complete(4)]
    account = audit(beginnings(path), read(path), [])
    assert (account.violations, len(account.gaps)) == ((), 2)


def test_a_line_that_is_longer_than_any_is_damage_and_not_read_whole(ledger, path):
    updates(ledger, 1)
    ledger.close()
    with path.open("ab") as file:
        file.write(b"[" * (3 * LONGEST) + b"\n")
    with path.open("ab") as file:
        file.write(b'["c",7]\n')

    *_, damaged, last = lines(path)
    assert (damaged, last) == (Damaged(torn=False), Complete(7))
    assert lost(path, 0) in (0, 7)


def test_a_line_nested_too_deep_is_damage(path):
    path.write_bytes(b'["u",1,' + b"[" * 100_000 + b"]" * 100_000 + b"]\n")

    assert lines(path) == [Damaged(torn=False)]


def test_lives_are_known_from_it_where_the_file_of_grants_is_gone(ledger, path):
    assert granted(path) == (0, {})
    ledger.begin(0, 60000, LeaseState(0, ()))
    ledger.update(1, [(0, 0, 1, 1), (1, 3, 2, 1)])
    ledger.drop((2, 0, 4, 1), "late", back=True)
    ledger.returned(5, 9, [7])
    ledger.update(2, [(0, 0, 2, 1)])
    ledger.close()

    assert granted(path) == (2, {0: 4, 3: 2, 5: 9})
