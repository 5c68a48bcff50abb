"""State <-> directory. A checkpoint that was announced survives kill -9 and power loss; a damaged one is never used.

    checkpoints/
      step-00002000/
        parameters-0.safetensors  averages-0.safetensors  optimizer-0.safetensors     one of each per shard
        manifest.json             written last: a directory without it is not a checkpoint

Every file is written under another name, flushed to the disk and renamed (RELIABILITY S2). The manifest holds the
size and SHA-256 of each file and of itself: one flipped bit is found.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from evener import chaos
from evener.errors import CheckpointError, NonFinite, VersionError
from evener.files import memory, opened
from evener.state.atomic import FileRecord, atomic_write, sync_directory
from evener.state.contents import Contents
from evener.state.leftovers import KINDS, MANIFEST, begin, end, name_of, remove, step_of, sweep
from evener.state.locks import Lock
from evener.state.manifest import Manifest, read_manifest, write_manifest
from evener.state.parts import Names, join, join_numbers
from evener.state.serialized import serialized

log = logging.getLogger(__name__)

__all__ = ["KINDS", "MANIFEST", "Manifest", "Store", "load", "read_manifest"]


class Store:
    """The checkpoints of one logdir, and the lock that keeps a second run out of it.

    Args:
        tell: gets a line for each thing that the file system lacks: locks, names that survive a power loss.

    Raises:
        CheckpointError: the directory cannot be written, or another run holds it.
    """

    def __init__(self, directory: Path, *, writable: bool = True, tell: Callable[[str], None] = log.warning) -> None:
        self.directory = directory
        self._tell = tell
        self._lock: Lock | None = None
        if writable:
            self._lock = Lock(directory, tell)
            sweep(directory, tell)

    def _again(self) -> None:
        """The directory may have been deleted since: then it is made and locked again."""
        if self._lock is not None and self._lock.lost():
            self._lock.close()
            self._lock = Lock(self.directory, self._tell)
            self._tell(f"warning: {self.directory} was deleted, with what was in it; it is made again")

    def close(self) -> None:
        """Release the lock; the kernel does it too, at death."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def path(self, step: int) -> Path:
        return self.directory / name_of(step)

    def write_shard(self, contents: Contents, shard: int) -> dict[str, FileRecord]:
        """Write one shard's files of a checkpoint; it counts only once `commit` is done.

        Raises:
            NonFinite: a parameter is NaN or infinite; nothing is written.
            OSError: the disk is full or broken; no file of this shard is left. `discard` takes the rest.
        """
        if name := _not_finite(contents.parameters, contents.buffers):
            raise NonFinite(f"{name!r} is not finite at step {contents.step}; the checkpoint was not written.")
        self._again()
        path = self.path(contents.step)
        begin(path)
        files: dict[str, FileRecord] = {}
        try:
            chaos.point("checkpoint.writing")
            for kind in KINDS:
                name = f"{kind}-{shard}.safetensors"
                files[name] = atomic_write(path / name, serialized(getattr(contents, kind)))
        except OSError:
            for kind in KINDS:
                (path / f"{kind}-{shard}.safetensors").unlink(missing_ok=True)
            raise  # the directory stays: other shards may be about to write there
        chaos.point("checkpoint.written")
        return files

    def commit(self, manifest: Manifest) -> Path:
        """Make the checkpoint count. When this returns it survives power loss."""
        path = self.path(manifest.step)
        if missing := [path / name for name in manifest.files if not (path / name).exists()]:
            raise CheckpointError(
                f"{missing[0]} is not there, though its ps task wrote it.",
                fix="with ps tasks on several machines, let --logdir be a directory that they share.",
            )
        write_manifest(path, manifest)
        sync_directory(self.directory)
        end(path)
        chaos.point("checkpoint.committed")
        return path

    def discard(self, step: int) -> None:
        """Remove what a failed save left, on all shards; a committed checkpoint stays."""
        if not (self.path(step) / MANIFEST).exists():
            with suppress(OSError):
                remove(self.path(step))

    def keep_newest(self, keep: int, *, upto: int | None = None) -> None:
        """Delete all but the newest `keep` checkpoints, manifest first so that a half-deleted one does not count.

        Args:
            upto: later steps neither count nor go. A run that skipped damaged checkpoints saves at lower steps than
                theirs; counting them would delete the good ones.
        """
        for step in [step for step in self.steps() if upto is None or step <= upto][:-keep]:
            chaos.point("checkpoint.deleting")
            self.forget(step)

    def forget(self, step: int) -> None:
        """Delete one checkpoint, and nothing beside it that somebody has put there."""
        remove(self.path(step))

    def steps(self) -> list[int]:
        """Steps that have a manifest, in order; by number, never by file time."""
        found = (step_of(path.parent.name) for path in self.directory.glob(f"step-*/{MANIFEST}"))
        return sorted(step for step in found if step is not None)

    def newest(self, tell: Callable[[str], None] = log.warning) -> tuple[Manifest, Contents] | None:
        """The newest checkpoint that is whole; None if there never was one.

        Args:
            tell: gets a line for each damaged one that was skipped.

        Raises:
            CheckpointError: there are checkpoints and none loads.
        """
        reasons: list[str] = []
        for step in reversed(self.steps()):
            try:
                loaded = load(self.path(step))
            except (CheckpointError, VersionError) as error:
                reasons.append(error.what)
                tell(f"warning: the checkpoint of step {step} is skipped: {error.what}")
                continue
            return loaded
        if reasons:
            raise CheckpointError(
                f"none of the {len(reasons)} checkpoints in {self.directory} loads: {'; '.join(reasons)}",
                why="starting afresh would hide that training was lost.",
                fix="restore the files, or choose another --logdir to start afresh.",
            )
        return None


def load(path: Path) -> tuple[Manifest, Contents]:
    """One checkpoint, verified, with split tensors joined. `path` is its directory.

    Raises:
        CheckpointError: something is missing, damaged or foreign.
        VersionError: a newer evener wrote it.
    """
    manifest = read_manifest(path)
    groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for name, record in manifest.files.items():
        kind = name.partition("-")[0]
        if kind in groups:
            groups[kind] |= _read_tensors(path / name, record)
    if manifest.buffers is not None and (bad := _not_finite(groups["parameters"], manifest.buffers)):
        raise CheckpointError(f"{path} is damaged: {bad!r} is NaN or infinite in it.")
    names = Names(manifest.shapes, manifest.parts)
    numbers = join_numbers(manifest.values, names)
    try:
        parameters, averages, optimizer = (join(groups[kind], names) for kind in KINDS)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged: parts of a tensor do not fit together ({error}).") from error
    values = {**manifest.values.get("0", {}), "numbers": numbers}
    return manifest, Contents(manifest.step, parameters, averages, optimizer, values)


def _read_tensors(file: Path, record: FileRecord) -> dict[str, Tensor]:
    try:
        with opened(file) as reader:
            size = os.fstat(reader.fileno()).st_size
            if size != record.nbytes:
                raise CheckpointError(f"{file} has {size} bytes, the manifest says {record.nbytes}.")
            if size > memory():
                raise MemoryError
            data = reader.read(record.nbytes)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    except MemoryError as error:
        raise CheckpointError(f"{file} has {record.nbytes} bytes, more than there is memory for.") from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise CheckpointError(f"{file} is damaged: checksum mismatch.")
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # of it, and of PyTorch about what it says
        raise CheckpointError(f"{file} is not a safetensors file: {error}.") from error
    return tensors


def _not_finite(tensors: Mapping[str, Tensor], allowed: Collection[str]) -> str:
    """The first tensor that is NaN or infinite somewhere and may not be.

    A sum is finite only if all is, and takes no memory; `isfinite` of a large layer takes more than the layer does.
    """
    bad = (
        name for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and not bool(torch.isfinite(tensor.sum()))
        and not bool(torch.isfinite(tensor).all())
        and name.partition("[")[0] not in allowed
    )  # fmt: skip
    return next(bad, "")
