"""What a directory of checkpoints holds besides whole ones: evener's own leavings go, everything else stays."""

import contextlib
import os

import pytest
from training import recipe_of, save, sgd, shards_of, train

from evener.state import leftovers
from evener.state.checkpoint import MANIFEST, Store, load
from evener.state.leftovers import UNFINISHED, name_of, step_of

RECIPE = recipe_of(sgd)

#: What people and other programs put there, some of it much like ours.
FOREIGN = (
    "step-500/pytorch_model.bin", "step-00000500/pytorch_model.bin", "step-00000040/notes.txt",
    "step-\u00b2/manifest.json",
    "notes.tmp.md", "other/a.tmp.b", "other/parameters-0.safetensors.tmp.5", "step-0042/parameters-0.safetensors",
    "step-00000001.old/parameters-0.safetensors", "model-0.safetensors.tmp.1", "step-000000001/.unfinished",
)  # fmt: skip


@pytest.fixture
def told():
    return []


@pytest.fixture
def directory(tmp_path):
    """Of checkpoints, with those of steps 0 and 1."""
    store, states = Store(tmp_path / "checkpoints"), shards_of(RECIPE)
    save(store, states)
    train(states, 1)
    save(store, states)
    store.close()
    return store.directory


def written(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"precious")


def kept(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def opened(directory, told):
    Store(directory, tell=told.append).close()


@pytest.mark.parametrize(
    ("name", "step"),
    [("step-00000040", 40), ("step-100000000", 100_000_000), ("step-000000040", None), ("step-40", None),
     ("step-\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2", None), ("step-00000040.damaged", None),
     ("step--0000001", None), ("step-" + "9" * 200, None)],
)  # fmt: skip
def test_the_name_of_a_step_is_one_that_evener_gives(name, step):
    assert step_of(name) == step
    assert step is None or name_of(step) == name


def test_what_others_put_there_stays(directory, told):
    written(directory, *FOREIGN)
    os.makedirs(directory / "step-0043")
    before = kept(directory)

    opened(directory, told)
    assert kept(directory) == before
    store, states = Store(directory, tell=told.append), shards_of(RECIPE)
    states[0].step = 2
    save(store, states)
    store.keep_newest(1)
    store.close()

    assert set(FOREIGN) <= kept(directory)
    assert store.steps() == [2]
    assert told == []


def test_a_step_that_lost_its_manifest_is_set_aside_told_once_and_not_deleted(directory, told):
    (directory / "step-00000001" / MANIFEST).unlink()
    before = {file.name: file.read_bytes() for file in (directory / "step-00000001").iterdir()}

    opened(directory, told)
    opened(directory, told)

    aside = directory / "step-00000001.damaged"
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == before
    (line,) = told
    assert "step-00000001 has no manifest.json any more" in line and "set aside as step-00000001.damaged" in line
    assert Store(directory, writable=False).newest()[0].step == 0


def test_what_was_set_aside_before_is_not_overwritten(directory, told):
    written(directory, "step-00000001.damaged/parameters-0.safetensors")
    (directory / "step-00000001" / MANIFEST).unlink()

    opened(directory, told)

    assert (directory / "step-00000001.damaged" / "parameters-0.safetensors").read_bytes() == b"precious"
    assert (directory / "step-00000001.damaged-2").is_dir()


def test_while_it_is_written_a_step_has_the_marker_and_then_no_more(tmp_path, monkeypatch):
    store, states = Store(tmp_path / "checkpoints"), shards_of(RECIPE)
    seen = []
    write = leftovers.begin
    monkeypatch.setattr("evener.state.checkpoint.begin", lambda path: (write(path), seen.extend(os.listdir(path))))
    save(store, states)

    assert seen == [UNFINISHED]
    assert UNFINISHED not in os.listdir(store.path(0))
    store.close()


def test_a_half_written_step_goes_with_its_marker(directory, told):
    store, states = Store(directory), shards_of(RECIPE)
    states[0].step = 7
    store.write_shard(states[0].contents(), 0)
    store.close()
    assert (directory / "step-00000007" / UNFINISHED).exists()

    opened(directory, told)
    assert not (directory / "step-00000007").exists()
    assert told == []


@pytest.mark.parametrize("calls", range(8))
def test_a_removal_that_is_cut_off_anywhere_is_completed_by_the_next_run(directory, told, monkeypatch, calls):
    left = calls

    class Killed(BaseException):
        pass

    def counting(call):
        def count(*arguments, **named):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*arguments, **named)

        return count

    for module, name in ((os, "rename"), (os, "unlink"), (os, "rmdir")):
        monkeypatch.setattr(module, name, counting(getattr(os, name)))
    with contextlib.suppress(Killed):
        Store(directory, writable=False).forget(1)
    monkeypatch.undo()

    opened(directory, told)
    if calls:
        assert [name for name in kept(directory) if "step-00000001" in name] == []
    else:  # nothing was done yet
        assert load(directory / "step-00000001")[0].step == 1
    assert told == []


def test_a_marker_that_stayed_beside_a_manifest_does_no_harm(directory, told):
    (directory / "step-00000001" / UNFINISHED).touch()

    assert Store(directory, writable=False).newest()[0].step == 1
    opened(directory, told)
    assert not (directory / "step-00000001" / UNFINISHED).exists()
    assert Store(directory, writable=False).newest()[0].step == 1


def test_of_a_step_that_goes_stays_what_somebody_put_into_it(directory):
    written(directory, "step-00000000/notes.txt", "step-00000000/plots/a.png")
    store = Store(directory)
    store.keep_newest(1)
    store.close()

    assert {path.name for path in (directory / "step-00000000").iterdir()} == {"notes.txt", "plots"}


def test_a_step_that_is_a_link_is_read_and_never_removed(directory, tmp_path, told):
    (directory / "step-00000001").rename(tmp_path / "elsewhere")
    (directory / "step-00000001").symlink_to(tmp_path / "elsewhere")
    store = Store(directory)

    assert store.newest()[0].step == 1
    store.forget(1)
    store.close()
    assert store.newest()[0].step == 1


# --- a deleted directory


def test_a_deleted_directory_is_made_and_locked_again_and_that_is_told_once(directory, told):
    store, states = Store(directory, tell=told.append), shards_of(RECIPE)
    for path in directory.parent.iterdir():
        path.rename(path.with_name("gone"))
    os.unlink(directory.with_name("gone") / ".lock")
    for step in (5, 6):
        states[0].step = step
        save(store, states)

    assert store.steps() == [5, 6]
    (line,) = told
    assert line == f"warning: {directory} was deleted, with what was in it; it is made again"
    assert not store._lock.lost()
    store.close()


def test_a_directory_that_another_run_has_made_again_is_its_own(directory, told):
    store, states = Store(directory, tell=told.append), shards_of(RECIPE)
    directory.rename(directory.with_name("gone"))
    os.unlink(directory.with_name("gone") / ".lock")
    other = Store(directory)

    with pytest.raises(Exception, match="is in use by another run"):
        save(store, states)
    assert store.steps() == []
    other.close()
    store.close()
