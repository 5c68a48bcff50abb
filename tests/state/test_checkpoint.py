"""Checkpoints: an announced one survives everything, a damaged one is never used (RELIABILITY P10, P11, P16)."""

import errno
import hashlib
import json
import logging
import os
import random
import re
import select
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from training import Net, assert_equal, recipe_of, restored, save, sgd, shards_of, train, whole_of

from evener import files as opening
from evener.errors import CheckpointError, NonFinite, VersionError
from evener.state import atomic
from evener.state.checkpoint import MANIFEST, Store, load


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


RECIPE = recipe_of(adam, ema_decay=0.9)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "checkpoints")
    yield made
    made.close()


@pytest.fixture
def damaged(store):
    """Two checkpoints of two shards; a test then damages the newer one, that of step 2."""
    states = shards_of(RECIPE, 2)
    for _ in range(2):
        train(states, 1)
        save(store, states)
    return store


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} - {".lock"}


def sealed(body: object) -> bytes:
    raw = json.dumps(body).encode()
    return b'{"sha256":"%s","body":%s}' % (hashlib.sha256(raw).hexdigest().encode(), raw)


# --- write, commit, read


@pytest.mark.parametrize("shards", [1, 3])
def test_what_was_committed_is_what_is_loaded(store, shards):
    states = shards_of(RECIPE, shards)
    train(states, 3)
    path = save(store, states, next_lease=7, unapplied=[4, 5], seqs={"0": (2, 9)}, examples=300, dropped=1)

    manifest, contents = store.newest()
    assert (manifest.step, manifest.shards, manifest.next_lease, manifest.unapplied) == (3, shards, 7, [4, 5])
    assert (manifest.seqs, manifest.examples, manifest.dropped) == ({"0": (2, 9)}, 300, 1)
    assert contents.step == 3
    assert_equal({n: t for n, t in contents.parameters.items() if n != "fixed"}, whole_of(states))
    assert_equal(contents.averages, whole_of(states, "averages"))
    torch.testing.assert_close(contents.parameters["fixed"], states[0].frozen["fixed"], rtol=0, atol=0)
    assert contents.optimizer["first.weight/exp_avg"].shape == (61, 7)
    assert float(contents.optimizer["first.weight/step"]) == 3.0
    assert Path(path) == store.path(3)


def test_the_files_are_plain_safetensors_with_the_models_names(store):
    states = shards_of(RECIPE, 2)
    path = Path(save(store, states))

    assert names(path) == {
        MANIFEST,
        *(f"{kind}-{shard}.safetensors" for kind in ("parameters", "averages", "optimizer") for shard in (0, 1)),
    }
    kept = load_file(path / "parameters-0.safetensors") | load_file(path / "parameters-1.safetensors")
    whole = whole_of(states)
    torch.testing.assert_close(kept["norm.weight"], whole["norm.weight"], rtol=0, atol=0)
    (name,) = {name.partition("[")[0] for name in kept if "[" in name}  # the one that is split
    parts = sorted((name for name in kept if "[" in name), key=lambda name: int(re.split(r"[\[:]", name)[1]))
    torch.testing.assert_close(torch.cat([kept[part] for part in parts]).view(whole[name].shape), whole[name])


def test_it_loads_into_any_other_number_of_shards(store):
    states = shards_of(RECIPE, 3)
    train(states, 2)
    save(store, states)

    for shards in (1, 2, 5):
        assert_equal(whole_of(restored(RECIPE, store.newest()[1], shards)), whole_of(states))


def test_there_is_no_newest_before_the_first(store):
    assert store.newest() is None
    assert store.steps() == []


def test_a_state_without_averages_or_optimizer_state_is_kept_too(store):
    states = shards_of(recipe_of(sgd), 1)
    save(store, states)

    _, contents = store.newest()
    assert (contents.averages, contents.optimizer) == ({}, {})


def test_a_parameter_that_is_not_finite_is_never_written(store):
    states = shards_of(RECIPE)
    states[0].parameters.trained[0][0] = float("nan")

    with pytest.raises(NonFinite, match="is not finite at step 0; the checkpoint was not written"):
        store.write_shard(states[0].contents(), 0)
    assert names(store.directory) == set()


def test_half_written_means_nothing_to_a_reader(store):
    states = shards_of(RECIPE, 2)
    store.write_shard(states[0].contents(), 0)

    assert store.newest() is None


# --- order and number


def test_the_newest_is_the_highest_step_whatever_the_files_times_say(store):
    states = shards_of(RECIPE)
    for _ in range(3):
        train(states, 1)
        save(store, states)
    for age, step in enumerate((1, 2, 3)):
        for file in store.path(step).iterdir():
            os.utime(file, (2e9 - 1e8 * age, 2e9 - 1e8 * age))

    assert store.steps() == [1, 2, 3]
    assert store.newest()[0].step == 3


def test_steps_are_ordered_as_numbers(store):
    (state,) = shards_of(RECIPE)
    for step in (100_000_000, 99_999_999, 5):  # one digit more than the names have
        state.step = step
        save(store, [state])

    assert store.steps() == [5, 99_999_999, 100_000_000]
    assert store.newest()[0].step == 100_000_000


def test_only_the_newest_are_kept(store):
    states = shards_of(RECIPE)
    for _ in range(5):
        train(states, 1)
        save(store, states)
    store.keep_newest(2)

    assert store.steps() == [4, 5]
    assert {name.partition("/")[0] for name in names(store.directory)} == {"step-00000004", "step-00000005"}


def test_later_steps_that_a_run_does_not_come_from_never_push_out_its_own(damaged):
    """It resumed from step 1 because step 2 is damaged, and saves step 1 again with keep=1."""
    (damaged.path(2) / "parameters-0.safetensors").unlink()
    damaged.keep_newest(1, upto=1)

    assert damaged.steps() == [1, 2]
    assert damaged.newest()[0].step == 1


def test_a_failed_save_is_discarded_and_a_committed_one_is_not(store):
    states = shards_of(RECIPE)
    save(store, states)
    train(states, 1)
    store.write_shard(states[0].contents(), 0)

    store.discard(0)
    store.discard(1)
    store.discard(2)

    assert store.steps() == [0]
    assert not store.path(1).exists()


# --- damage


def test_one_flipped_bit_anywhere_is_found(damaged):
    path = damaged.path(2)
    flips = 0
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for at in range(0, len(good), 97):
            bad = bytearray(good)
            bad[at] ^= 1 << (at % 8)
            file.write_bytes(bad)
            with pytest.raises(CheckpointError, match=file.name):
                load(path)
            flips += 1
        file.write_bytes(good)
    assert flips > 200
    assert load(path)[0].step == 2


def test_one_flipped_bit_in_any_byte_of_the_manifest_is_found(damaged):
    file = damaged.path(2) / MANIFEST
    good = file.read_bytes()
    for at in range(len(good)):
        for bit in (at % 8, 7):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            file.write_bytes(bad)
            with pytest.raises((CheckpointError, VersionError)):
                load(damaged.path(2))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_a_file_cut_short_is_found(damaged, keep):
    for file in sorted(damaged.path(2).iterdir()):
        good = file.read_bytes()
        file.write_bytes(good[: int(len(good) * keep)])
        with pytest.raises(CheckpointError, match=file.name):
            load(damaged.path(2))
        file.write_bytes(good)


def test_a_page_of_zeros_is_found(damaged):
    file = damaged.path(2) / "optimizer-0.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:512] + bytes(512) + good[1024:])

    with pytest.raises(CheckpointError, match=r"optimizer-0\.safetensors is damaged: checksum mismatch"):
        load(damaged.path(2))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "averages-1.safetensors").unlink(), "averages-1.safetensors cannot be read .No such"),
        (
            lambda path: (path / "parameters-0.safetensors").write_bytes(b"x"),
            "parameters-0.safetensors has 1 bytes, ",
        ),
        (lambda path: (path / MANIFEST).write_bytes(b"{}"), f"{MANIFEST} is not a manifest of evener"),
        (lambda path: (path / MANIFEST).write_bytes(sealed({"format": 3})), f"{MANIFEST} has format 3, this evener re"),
    ],
    ids=["missing", "truncated", "foreign", "newer"],
)
def test_a_damaged_one_is_skipped_with_a_warning_that_names_file_and_reason(damaged, damage, reason, caplog):
    damage(damaged.path(2))

    with caplog.at_level(logging.WARNING):
        manifest, _ = damaged.newest()
    assert manifest.step == 1
    (warning,) = caplog.messages
    assert "the checkpoint of step 2 is skipped: " in warning
    assert re.search(reason, warning), warning


def test_a_directory_without_a_manifest_is_no_checkpoint(damaged, caplog):
    (damaged.path(2) / MANIFEST).unlink()

    assert damaged.newest()[0].step == 1
    assert caplog.messages == []  # nobody announced it
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: manifest\.json cannot be read") as refused:
        load(damaged.path(2))
    assert "checkpoints/step-00002000" in refused.value.fix


def test_when_none_loads_training_does_not_silently_start_afresh(damaged):
    for step in (1, 2):
        (damaged.path(step) / "parameters-0.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* loads: .*step-00000002.*; .*step-0"):
        damaged.newest()


def test_a_newer_format_is_a_version_error_with_both_numbers(damaged):
    (damaged.path(2) / MANIFEST).write_bytes(sealed({"format": 7, "anything": "else"}))

    with pytest.raises(VersionError, match="has format 7, this evener reads up to 2") as refused:
        load(damaged.path(2))
    assert refused.value.fix == "update evener."


@pytest.mark.parametrize(
    "manifest",
    [b"", b"\xff\xfe", b"[]", b"{}", b'{"step": 3}', b'"text"', b'{"sha256":"\xff","body":{}}', sealed([]), sealed({}),
     sealed({"format": "2"}), sealed({"format": None}), sealed({"format": 1, "step": "three"})],
)  # fmt: skip
def test_foreign_json_is_refused_and_never_a_bare_error(damaged, manifest):
    (damaged.path(2) / MANIFEST).write_bytes(manifest)

    with pytest.raises(CheckpointError, match=MANIFEST):
        load(damaged.path(2))


def test_a_file_that_is_no_safetensors_is_refused(damaged):
    """As the manifest says, but not what it says."""
    file, manifest = damaged.path(2) / "parameters-0.safetensors", damaged.path(2) / MANIFEST
    file.write_bytes(b"PK\x03\x04 torch.save makes these; it would be unpickled")
    body = json.loads(manifest.read_bytes())["body"]
    body["files"][file.name] = {"nbytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest.write_bytes(sealed(body))

    with pytest.raises(CheckpointError, match=r"parameters-0\.safetensors is not a safetensors file"):
        load(damaged.path(2))


# --- one run in a directory


@pytest.mark.slow
def test_a_second_run_is_refused_by_the_pid_of_the_first(store):
    code = f"""
from pathlib import Path
from evener.state.checkpoint import Store
try:
    Store(Path({str(store.directory)!r}))
except Exception as error:
    print(type(error).__name__, error)
    Store(Path({str(store.directory)!r}), writable=False).steps()  # reading needs no lock
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert run.stdout.startswith(f"CheckpointError {store.directory} is in use by another run (pid {os.getpid()}).")
    assert "choose another --logdir" in run.stdout
    assert run.stderr == ""


def test_the_lock_is_free_after_close(store):
    store.close()
    store.close()
    Store(store.directory).close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch, code):
    # As root nothing is read-only, so the refusal is made here.
    monkeypatch.setattr(opening, "os", Disk(fail_at=0, code=code))

    with pytest.raises(CheckpointError, match=rf"{tmp_path} is not writable \({os.strerror(code)}\)") as refused:
        Store(tmp_path)
    assert refused.value.fix == "choose another --logdir."


def test_a_file_where_the_directory_should_be_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()

    with pytest.raises(CheckpointError, match="checkpoints is not writable"):
        Store(tmp_path / "checkpoints")


def test_opening_sweeps_what_a_killed_writer_left_and_nothing_else(store):
    states = shards_of(RECIPE)
    save(store, states)
    keep = {*names(store.directory), "grants.json", "step-00000000/notes.txt"}
    for name in ("step-00000000/parameters-0.safetensors.tmp.812", "step-00000009/parameters-0.safetensors",
                 "step-00000009/.unfinished",
                 "step-00000010/manifest.json.tmp.77", "grants.json", "grants.json.tmp.5",
                 "step-00000000/notes.txt"):  # fmt: skip
        (store.directory / name).parent.mkdir(exist_ok=True)
        (store.directory / name).write_bytes(b"left")
    store.close()

    Store(store.directory, writable=False)
    assert len(names(store.directory)) == len(keep) + 5  # who only reads changes nothing
    Store(store.directory).close()
    assert names(store.directory) == keep
    assert {path.name for path in store.directory.iterdir()} == {".lock", "grants.json", "step-00000000"}


# --- the disk fails


class Disk:
    """The `os` of the module under test: records its calls that change the disk, and lets the n-th one fail."""

    def __init__(self, fail_at: int | None = None, code: int = errno.ENOSPC, most: int = 1 << 40) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail_at, self.code, self.most = fail_at, code, most
        self._paths: dict[int, str] = {}

    def __getattr__(self, name):
        return getattr(os, name)

    def call(self, operation: str, path: object) -> None:
        self.calls.append((operation, str(path)))
        if len(self.calls) - 1 == self.fail_at:
            raise OSError(self.code, os.strerror(self.code), str(path))

    def open(self, path, flags, mode=0o777):
        self.call("open", path)
        fd = os.open(path, flags, mode)
        self._paths[fd] = str(path)
        return fd

    def fdopen(self, fd, *arguments, **named):
        return File(self, self._paths[fd], os.fdopen(fd, *arguments, **named))

    def fsync(self, fd):
        self.call("fsync", self._paths[fd])
        os.fsync(fd)

    def rename(self, draft, path):
        self.call("rename", f"{draft} -> {path}")
        os.rename(draft, path)


class File:
    def __init__(self, disk, path, file):
        self._disk, self._path, self._file = disk, path, file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def fileno(self):
        return self._file.fileno()

    def write(self, data):
        self._disk.call("write", self._path)
        return self._file.write(data[: self._disk.most])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whichever_call_fails_the_older_checkpoint_stays_and_no_draft_is_left(store, monkeypatch, code):
    states = shards_of(RECIPE, 2)
    save(store, states)
    old = {name: (store.directory / name).read_bytes() for name in names(store.directory)}
    train(states, 1)

    for n in count():
        disk = Disk(fail_at=n, code=code)
        monkeypatch.setattr(atomic, "os", disk)
        try:
            save(store, states)
        except OSError as error:
            assert error.errno == code
        if len(disk.calls) <= n:
            break  # nothing was left to fail
        monkeypatch.setattr(atomic, "os", os)
        assert not [name for name in names(store.directory) if ".tmp." in name], disk.calls[-1]
        store.discard(1)
        assert {name: (store.directory / name).read_bytes() for name in old} == old
        manifest, contents = store.newest()
        if manifest.step == 1:  # the manifest has its name already: whole, though nobody was told
            assert disk.calls[-1][0] in ("fsync", "open")
            assert_equal(contents.averages, whole_of(states, "averages"))
            (store.path(1) / MANIFEST).unlink()
            store.discard(1)
        assert store.steps() == [0]
    assert n > 7 * 5  # two shards of three files and the manifest: open, write, fsync, rename, fsync the directory

    assert store.newest()[0].step == 1  # and when the disk is well again the step is saved


def test_a_disk_that_takes_a_little_at_a_time_gets_everything(store, monkeypatch):
    monkeypatch.setattr(atomic, "os", Disk(most=700))
    states = shards_of(RECIPE)
    save(store, states)

    assert_equal(store.newest()[1].averages, whole_of(states, "averages"))


def test_a_file_of_several_pieces_is_recorded_as_a_whole(tmp_path):
    record = atomic.atomic_write(tmp_path / "file", [b"one", memoryview(b"two!")])

    content = (tmp_path / "file").read_bytes()
    assert content == b"onetwo!"
    assert record == atomic.FileRecord(len(content), hashlib.sha256(content).hexdigest())


# --- power loss


def recorded(store, monkeypatch) -> list[tuple[str, str]]:
    """The calls of one real save of two shards."""
    states = shards_of(RECIPE, 2)
    save(store, states)
    train(states, 1)
    disk = Disk()
    monkeypatch.setattr(atomic, "os", disk)
    save(store, states)
    monkeypatch.setattr(atomic, "os", os)
    return disk.calls


def test_data_is_on_the_disk_before_its_name_and_the_manifest_comes_last(store, monkeypatch):
    calls = [(operation, path.replace(f"{store.path(1)}/", "")) for operation, path in recorded(store, monkeypatch)]
    here, above = str(store.path(1)), str(store.directory)
    files = [f"{kind}-{shard}.safetensors" for shard in (0, 1) for kind in ("parameters", "averages", "optimizer")]

    expected = []
    for name in [*files, MANIFEST]:
        draft = f"{name}.tmp.{os.getpid()}"
        written = [call for call in calls if call == ("write", draft)]  # a piece of it at a time
        assert written
        expected += [("open", draft), *written, ("fsync", draft), ("rename", f"{draft} -> {name}")]
        expected += [("open", here), ("fsync", here)]
    assert calls == [*expected, ("open", above), ("fsync", above)]


def crash_states(calls, step: Path):
    """What the disk may hold when the power fails after each call: file names and contents, or None for no directory.

    A file's data is certain once it was flushed after its last write, before that it may be missing or half there. A
    name is certain once its directory was flushed after the rename, before that it may be the old one or the new one.
    """
    finals = {name: (step / name).read_bytes() for name in os.listdir(step)}
    for crash in range(len(calls) + 1):
        certain_data: set[str] = set()
        names_then: dict[str, bool] = {}  # final name -> certain
        directory_certain = False
        for operation, path in calls[:crash]:
            if operation == "write":
                certain_data.discard(Path(path).name)
            elif operation == "fsync" and path == str(step):
                names_then = dict.fromkeys(names_then, True)
            elif operation == "fsync" and path == str(step.parent):
                directory_certain = True
            elif operation == "fsync":
                certain_data.add(Path(path).name)
            elif operation == "rename":
                draft, _, final = path.partition(" -> ")
                names_then[Path(final).name] = False
                if Path(draft).name in certain_data:
                    certain_data.add(Path(final).name)
        if not directory_certain:
            yield crash, None
        doubtful = [name for name, certain in names_then.items() if not certain]
        for kept in range(1 << min(len(doubtful), 4)):
            missing = {name for bit, name in enumerate(doubtful) if not kept >> bit & 1}
            present = {name: finals[name] for name in names_then if name not in missing}
            yield crash, present
            for name in present.keys() - certain_data:  # its data did not make it, wholly or in part
                for torn in (b"", finals[name][: len(finals[name]) // 2], bytes(len(finals[name]))):
                    yield crash, present | {name: torn}


def losses(store, calls, tmp_path) -> list[str]:
    """Every crash state after which a checkpoint is lost that was announced, or one loads that was never whole."""
    step, found, seen = store.path(1), [], set()
    old = {name: (store.path(0) / name).read_bytes() for name in os.listdir(store.path(0))}
    for number, (crash, files) in enumerate(crash_states(calls, step)):
        digest = hashlib.sha256(repr((crash == len(calls), sorted((files or {}).items()))).encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        disk = Store(tmp_path / f"crash-{number}", writable=False)
        for path, contents in ((disk.path(0), old), (disk.path(1), files)):
            if contents is not None:
                path.mkdir(parents=True)
                for name, data in contents.items():
                    (path / name).write_bytes(data)
        loaded, _ = disk.newest()
        if crash == len(calls) and loaded.step != 1:
            found.append(f"announced, then lost: {sorted(files or ())}")
    assert len(seen) >= 9
    return found


def test_after_a_power_loss_at_any_moment_the_newest_whole_one_loads(store, monkeypatch, tmp_path):
    calls = recorded(store, monkeypatch)

    assert losses(store, calls, tmp_path) == []


@pytest.mark.parametrize("without", ["data", "names", "directory"])
def test_the_enumeration_finds_a_writer_that_does_not_flush(store, monkeypatch, tmp_path, without):
    step, above = str(store.path(1)), str(store.directory)
    what = {
        "data": lambda path: ".tmp." in path,
        "names": lambda path: path == step,
        "directory": lambda path: path == above,
    }
    calls = [call for call in recorded(store, monkeypatch) if not (call[0] == "fsync" and what[without](call[1]))]

    assert losses(store, calls, tmp_path)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_nothing_that_it_announced(tmp_path):
    rng = random.Random(812)
    directory = tmp_path / "checkpoints"
    step = 0
    for _ in range(30):
        announced = _killed_while_saving(directory, step, after=rng.randint(0, 3), seconds=rng.uniform(0, 0.02))
        store = Store(directory)  # the dead one's lock is free
        newest = store.newest()
        store.close()
        assert announced >= step
        if newest is None:
            assert announced == 0
            continue
        manifest, contents = newest
        assert announced <= manifest.step <= announced + 1
        assert bool((contents.parameters["scale"] == manifest.step).all())
        assert not [name for name in names(directory) if ".tmp." in name]
        step = manifest.step
    assert step > 30


def _killed_while_saving(directory: Path, step: int, *, after: int, seconds: float) -> int:
    """Fork a saver, kill it `seconds` after its n-th announcement; the last step that it announced."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _save_for_ever(directory, step, writer)
        finally:
            os._exit(1)
    os.close(writer)
    heard = b""
    ready = select.poll()  # select.select() ends at descriptor 1023, and other tests leave many
    ready.register(reader, select.POLLIN)
    try:
        while heard.count(b"\n") < after:
            assert ready.poll(30_000), "the saver is stuck"
            heard += os.read(reader, 4096)
        select.select([], [], [], seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while more := os.read(reader, 4096):
        heard += more
    os.close(reader)
    lines = heard.split(b"\n")[:-1]
    return int(lines[-1]) if lines else step


def _save_for_ever(directory: Path, step: int, announce: int) -> None:
    store = Store(directory)
    states = shards_of(recipe_of(sgd, Net), 2)
    for number in count(step + 1):
        for state in states:
            state.step = number
            for piece, view in state.parameters.named():
                if piece.spec.name == "scale":
                    view.fill_(number)
        save(store, states)
        os.write(announce, b"%d\n" % number)
        store.keep_newest(3)


def test_the_manifest_is_json_that_people_can_read(store):
    path = Path(save(store, shards_of(RECIPE)))
    body = msgspec.json.decode((path / MANIFEST).read_bytes())["body"]

    assert (body["format"], body["step"], body["shapes"]["first.weight"]) == (1, 0, [61, 7])


def test_a_link_in_the_place_of_a_draft_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / f"file.tmp.{os.getpid()}").symlink_to("victim")
    atomic.atomic_write(tmp_path / "file", [b"ours"])

    assert (tmp_path / "file").read_bytes() == b"ours"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "victim").read_bytes() == b"precious"
