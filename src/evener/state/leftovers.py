"""What in a directory of checkpoints is evener's own and may be removed. All else is somebody's, and stays as it is.

A directory of a step holds a marker while it is written and while it is removed: without a manifest and with the
marker it is a half, and goes. Without a manifest and without the marker it was a whole one that lost its manifest, and
is set aside. Other names than evener's are not looked into.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from evener import files
from evener.state.atomic import sync_directory

MANIFEST = "manifest.json"
KINDS = ("parameters", "averages", "optimizer")
#: Stands in a directory of a step that is not whole yet, or not any more.
UNFINISHED = ".unfinished"

_STEP = re.compile(r"step-(\d{8,18})", re.ASCII)
_SHARD = re.compile(rf"({'|'.join(KINDS)})-\d{{1,9}}\.safetensors", re.ASCII)
_DRAFT = re.compile(rf"({_SHARD.pattern}|(manifest|grants|best)\.json)\.tmp\.\d+", re.ASCII)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a directory of evener's is of; None: it is none."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and name_of(int(match[1])) == name else None


def is_shard(name: str) -> bool:
    """Whether a file of a checkpoint may be called so; a manifest names no other."""
    return _SHARD.fullmatch(name) is not None


def begin(path: Path) -> None:
    """A directory of a step is going to be written."""
    path.mkdir(parents=True, exist_ok=True)
    os.close(files.descriptor(path / UNFINISHED, os.O_WRONLY | os.O_CREAT, link=False))


def end(path: Path) -> None:
    """It is whole: its manifest has its name."""
    (path / UNFINISHED).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove what is ours in a directory of a step, and the directory unless it holds something else.

    The manifest becomes the marker, so that a half-removed one is known as such. Raises OSError.
    """
    if path.is_symlink() or not path.is_dir():
        return
    with suppress(FileNotFoundError):
        os.rename(path / MANIFEST, path / UNFINISHED)
        sync_directory(path)
    for name in os.listdir(path):
        if is_shard(name) or _DRAFT.fullmatch(name):
            _unlink(path / name)
    end(path)
    _remove_empty(path)


def sweep(directory: Path, tell: Callable[[str], None]) -> None:
    """Remove what a killed writer left, and set aside what has lost its manifest."""
    with suppress(OSError):  # what cannot be removed is not used either
        _remove_drafts(directory)
    for path in sorted(directory.glob("step-*")):
        if step_of(path.name) is not None and path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                _sweep_step(path, tell)


def _sweep_step(path: Path, tell: Callable[[str], None]) -> None:
    _remove_drafts(path)
    names = set(os.listdir(path))
    if MANIFEST in names:
        end(path)
    elif UNFINISHED in names:
        remove(path)
    elif any(map(is_shard, names)):
        _set_aside(path, tell)
    else:
        _remove_empty(path)


def _remove_drafts(directory: Path) -> None:
    for name in os.listdir(directory):
        if _DRAFT.fullmatch(name):
            _unlink(directory / name)


def _unlink(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)


def _remove_empty(path: Path) -> None:
    with suppress(OSError):  # it holds something else
        path.rmdir()


def set_aside(path: Path, why: str) -> Path:
    """Give a directory a name under which nothing looks for it, and no other one lies. Raises OSError."""
    for number in count(1):
        target = path.with_name(f"{path.name}.{why}{f'-{number}' if number > 1 else ''}")
        if not os.path.lexists(target):
            break
    os.rename(path, target)
    return target


def _set_aside(path: Path, tell: Callable[[str], None]) -> None:
    target = set_aside(path, "damaged")
    tell(f"warning: {path} has no {MANIFEST} any more, so it is no checkpoint: set aside as {target.name}, not deleted")
