"""Where a run's files lie, and on what: a recipe that changes the directory, and file systems that lack something."""

from __future__ import annotations

import os
import sys

import pytest
from running import RECIPE, evener, here

WAYS = {"one process": (), "ps": ("--ps", 1, "--workers", 2), "towers": ("--towers", 2)}
#: As on Lustre without locks, and as on CIFS and some FUSE file systems.
LACKING = """
import errno, fcntl, os, stat
def fsync(fd, real=os.fsync):
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    real(fd)
def flock(fd, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
os.fsync, fcntl.flock = fsync, flock
"""


@pytest.fixture
def wandering(tmp_path, monkeypatch):
    """A recipe whose file and whose function change the current directory, named by a relative path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    text = RECIPE.replace("import evener", f"import evener\nos.chdir({str(tmp_path / 'elsewhere')!r})")
    (tmp_path / "small.py").write_text(text.replace("    hooks =", '    os.chdir("/")\n    hooks ='))
    return tmp_path


def check_all_there(place, done, logdir):
    assert done.code == 0, done.text
    assert {"checkpoints", "ledger.jsonl", "logs"} <= {path.name for path in logdir.iterdir()}
    assert list(logdir.glob("events.out.tfevents.*"))
    assert f"--checkpoint {logdir.relative_to(place)}/checkpoints/step-00000010" in done.out
    assert list((place / "elsewhere").iterdir()) == []


def test_a_recipe_that_changes_the_directory_moves_nothing(wandering, capfd):
    done = here(capfd, "train", "small.py:recipe", "--train-steps", 10)
    (logdir,) = (wandering / "evener-runs").iterdir()
    assert logdir.name.startswith("small-2")
    check_all_there(wandering, done, logdir)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ps", "towers"])
def test_nor_where_it_is_imported_by_several_tasks(wandering, way):
    done = evener(wandering, "train", "small.py:recipe", "--train-steps", 10, "--logdir", "run", *WAYS[way])
    check_all_there(wandering, done, wandering / "run")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_where_locks_and_fsync_of_directories_are_lacking_all_is_kept_and_each_is_told_once(tmp_path, way):
    (tmp_path / "small.py").write_text(RECIPE)
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "sitecustomize.py").write_text(LACKING)
    done = evener(
        tmp_path, "train", "small.py:recipe", "--train-steps", 30, "--save-checkpoint-steps", 10, "--logdir", "run",
        *WAYS[way], PYTHONPATH=os.pathsep.join([str(tmp_path / "lacking"), *sys.path]),
    )  # fmt: skip

    assert done.code == 0, done.text
    saved = {path.parent.name for path in (tmp_path / "run" / "checkpoints").glob("step-*/manifest.json")}
    assert "step-00000030" in saved
    assert done.text.count("file system without locks (Function not implemented)") == 1, done.text
    assert done.text.count("cannot flush a directory (Invalid argument)") == 1, done.text
    assert "was not saved" not in done.text
