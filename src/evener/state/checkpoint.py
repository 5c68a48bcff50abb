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
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors, save as save_safetensors
from torch import Tensor

from evener import chaos
from evener.errors import CheckpointError, NonFinite, VersionError
from evener.state.atomic import Record, atomic_write, sync_directory
from evener.state.locks import Lock
from evener.state.parts import Names, join, join_numbers
from evener.state.state import Contents

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
KINDS = ("parameters", "averages", "optimizer")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds besides tensors."""

    format: int = FORMAT
    step: int
    shards: int
    recipe: str
    options: dict[str, Any]  # of the recipe: `evener eval` needs them again
    files: dict[str, Record]
    shapes: dict[str, list[int]]  # of every tensor that travels, to join split ones
    parts: dict[str, tuple[str, int, int]] | None = None  # `Layout.parts`: which names in files are of parts
    values: dict[str, Any]  # per shard index: groups, schedule
    next_lease: int
    unapplied: list[int]  # leases below next_lease whose gradient is not in these parameters
    skipped: list[int] = []  # and those that were given up, which are not to be given out again
    seqs: dict[str, tuple[int, int]]  # worker -> (epoch, last push applied): rolls back with the parameters
    batch_size: int = 0  # what a lease meant; 0: not known
    samples: int = 0  # of the training data; 0: not known
    seed: int = -1  # of their order; -1: not known
    examples: int = 0
    dropped: int = 0
    evener: str = ""


class _Sealed(msgspec.Struct, frozen=True):
    sha256: str
    body: msgspec.Raw


class Store:
    """The checkpoints of one logdir, and the lock that keeps a second run out of it.

    Args:
        tell: gets a line for each thing that the file system lacks: locks, names that survive a power loss.

    Raises:
        CheckpointError: the directory cannot be written, or another run holds it.
    """

    def __init__(self, directory: Path, *, writable: bool = True, tell: Callable[[str], None] = log.warning) -> None:
        self.directory = directory
        self._lock: Lock | None = None
        if writable:
            self._lock = Lock(directory, tell)
            self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed writer left: directories that never got their manifest, and drafts."""
        for entry in self.directory.glob("step-*"):
            if entry.is_dir() and not (entry / MANIFEST).exists():
                shutil.rmtree(entry, ignore_errors=True)
        for draft in [*self.directory.glob("*.tmp.*"), *self.directory.glob("*/*.tmp.*")]:
            draft.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock; the kernel does it too, at death."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def write_shard(self, contents: Contents, shard: int) -> dict[str, Record]:
        """Write one shard's files of a checkpoint; it counts only once `commit` is done.

        Raises:
            NonFinite: a parameter is NaN or infinite; nothing is written.
            OSError: the disk is full or broken; no file of this shard is left. `discard` takes the rest.
        """
        for name, tensor in contents.parameters.items():
            if name not in contents.buffers and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFinite(f"{name!r} is not finite at step {contents.step}; the checkpoint was not written.")
        path = self.path(contents.step)
        path.mkdir(exist_ok=True)
        files: dict[str, Record] = {}
        try:
            chaos.point("checkpoint.writing")
            for kind in KINDS:
                tensors = {name: t.contiguous() for name, t in getattr(contents, kind).items()}
                name = f"{kind}-{shard}.safetensors"
                files[name] = atomic_write(path / name, [save_safetensors(tensors)])
        except OSError:
            for kind in KINDS:
                (path / f"{kind}-{shard}.safetensors").unlink(missing_ok=True)
            raise  # the directory stays: other shards may be about to write there
        chaos.point("checkpoint.written")
        return files

    def commit(self, manifest: Manifest) -> Path:
        """Make the checkpoint count. When this returns it survives power loss."""
        body = msgspec.json.encode(manifest)
        sealed = _Sealed(hashlib.sha256(body).hexdigest(), msgspec.Raw(body))
        path = self.path(manifest.step)
        if missing := [path / name for name in manifest.files if not (path / name).exists()]:
            raise CheckpointError(
                f"{missing[0]} is not there, though its ps task wrote it.",
                fix="with ps tasks on several machines, let --logdir be a directory that they share.",
            )
        atomic_write(path / MANIFEST, [msgspec.json.encode(sealed)])
        sync_directory(self.directory)
        chaos.point("checkpoint.committed")
        return path

    def discard(self, step: int) -> None:
        """Remove what a failed save left, on all shards; a committed checkpoint stays."""
        if not (self.path(step) / MANIFEST).exists():
            shutil.rmtree(self.path(step), ignore_errors=True)

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
        """Delete one checkpoint."""
        path = self.path(step)
        (path / MANIFEST).unlink(missing_ok=True)
        sync_directory(path)
        shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a manifest, in order; by number, never by file time."""
        found = [path.parent.name.removeprefix("step-") for path in self.directory.glob(f"step-*/{MANIFEST}")]
        return sorted(int(step) for step in found if step.isdigit())

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
    names = Names(manifest.shapes, manifest.parts)
    contents = Contents(
        manifest.step,
        join(groups["parameters"], names),
        join(groups["averages"], names),
        join(groups["optimizer"], names),
        {**manifest.values.get("0", {}), "numbers": join_numbers(manifest.values, names)},
    )
    return manifest, contents


def read_manifest(path: Path) -> Manifest:
    """Without its tensors; raises as `load` does."""
    file = path / MANIFEST
    try:
        sealed = msgspec.json.decode(file.read_bytes(), type=_Sealed)
        if hashlib.sha256(bytes(sealed.body)).hexdigest() != sealed.sha256:
            raise CheckpointError(f"{file} is damaged: checksum mismatch.")
        head = msgspec.json.decode(sealed.body)
        if isinstance(head, dict) and isinstance(head.get("format"), int) and head["format"] > FORMAT:
            raise VersionError(f"{file} has format {head['format']}, this evener reads up to {FORMAT}.",
                               fix="update evener.")  # fmt: skip
        return msgspec.json.decode(sealed.body, type=Manifest)
    except OSError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: {MANIFEST} cannot be read ({error.strerror}).",
            fix="name a directory like .../checkpoints/step-00002000.",
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not a manifest of evener: {error}.") from error


def _read_tensors(file: Path, record: Record) -> dict[str, Tensor]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    if len(data) != record.nbytes:
        raise CheckpointError(f"{file} has {len(data)} bytes, the manifest says {record.nbytes}.")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise CheckpointError(f"{file} is damaged: checksum mismatch.")
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}.") from error
