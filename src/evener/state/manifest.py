"""The manifest of a checkpoint: written last, sealed by its own checksum, believed only as far as it can be true."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from evener import files
from evener.errors import CheckpointError, VersionError
from evener.policy.leases import LeaseState
from evener.policy.stretches import Stretch, StretchState, in_leases, in_samples
from evener.state.atomic import FileRecord, atomic_write
from evener.state.leftovers import KINDS, MANIFEST, is_shard, step_of

FORMAT = 1
#: Of a run whose batches are stretches of samples; also the newest that is read.
BY_SAMPLES = 2
#: Bytes of a manifest. The most that a model may have, 100,000 tensors, take about 20 MB.
LARGEST = 32 << 20
#: Lists and objects in each other, in what is free to have any form: options, settings, schedules.
DEPTH = 64
#: Whole numbers above it do not travel between tasks.
MOST = 2**52


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds besides tensors."""

    format: int = FORMAT
    step: int
    shards: int
    recipe: str
    options: dict[str, Any]  # of the recipe: `evener eval` needs them again
    files: dict[str, FileRecord]
    shapes: dict[str, list[int]]  # of every tensor that travels, to join split ones
    parts: dict[str, tuple[str, int, int]] | None = None  # `Layout.parts`: which names in files are of parts
    values: dict[str, dict[str, Any]]  # per shard index: groups, schedule
    next_lease: int
    unapplied: list[int]  # leases below next_lease whose gradient is not in these parameters
    skipped: list[int] = []  # and those that were given up, which are not to be given out again
    buffers: list[str] | None = None  # tensors that nobody trains, a mask may be infinite; None: not known
    seqs: dict[str, tuple[int, int]]  # worker -> (epoch, last push applied): rolls back with the parameters
    batch_size: int = 0  # what a lease meant; 0: not known
    samples: int = 0  # of the training data; 0: not known
    seed: int = -1  # of their order; -1: not known
    examples: int = 0
    dropped: int = 0
    evener: str = ""
    script: str = ""  # JSON: what a script with a loop of its own keeps
    counted: int = 0  # and its updates that count for the length of the run
    #: Where batches are stretches of samples, `next_lease` counts these, `batch_size` is 1, and these are the stretches
    #: that are unapplied, and given up; `unapplied` and `skipped` are empty.
    by_samples: bool = False
    unapplied_samples: list[Stretch] = []
    skipped_samples: list[Stretch] = []

    @property
    def book(self) -> LeaseState:
        """Which batches are applied."""
        return LeaseState(self.next_lease, tuple(self.unapplied), tuple(self.skipped))

    def with_book(self, book: LeaseState | StretchState) -> Manifest:
        """The same, with what a book says of batches, in its unit."""
        if isinstance(book, LeaseState):
            numbers = {"unapplied": list(book.unapplied), "skipped": list(book.skipped)}
            return msgspec.structs.replace(self, next_lease=book.next_lease, **numbers)
        return msgspec.structs.replace(
            self, format=BY_SAMPLES, by_samples=True, batch_size=1, next_lease=book.next_lease,
            unapplied=[], unapplied_samples=list(book.unapplied),
            skipped=[], skipped_samples=list(book.skipped),
        )  # fmt: skip

    @property
    def stretches(self) -> StretchState:
        """The same in samples, whatever a lease meant."""
        if not self.by_samples:
            return in_samples(self.book, self.batch_size or 1)
        return StretchState(self.next_lease, tuple(self.unapplied_samples), tuple(self.skipped_samples))


#: Written where they say anything: manifests of recipes are as they were.
_LATER = ("script", "counted", "by_samples", "unapplied_samples", "skipped_samples")


class _Sealed(msgspec.Struct, frozen=True):
    sha256: str
    body: msgspec.Raw


class _Head(msgspec.Struct, frozen=True):
    format: Any = None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """All or nothing. Raises OSError."""
    names = (name for name in manifest.__struct_fields__ if name not in _LATER or getattr(manifest, name))
    body = msgspec.json.encode({name: getattr(manifest, name) for name in names})
    sealed = _Sealed(hashlib.sha256(body).hexdigest(), msgspec.Raw(body))
    atomic_write(path / MANIFEST, [msgspec.json.encode(sealed)])


def read_manifest(path: Path) -> Manifest:
    """The manifest in a checkpoint's directory.

    Raises:
        CheckpointError: it is missing, damaged or foreign, or says what cannot be.
        VersionError: a newer evener wrote it.
    """
    file = path / MANIFEST
    try:
        sealed = msgspec.json.decode(files.content(file, LARGEST), type=_Sealed)
        if hashlib.sha256(bytes(sealed.body)).hexdigest() != sealed.sha256:
            raise CheckpointError(f"{file} is damaged: checksum mismatch.")
        head = msgspec.json.decode(sealed.body, type=_Head)
        if isinstance(head.format, int) and head.format > BY_SAMPLES:
            raise VersionError(f"{file} has format {head.format}, this evener reads up to {BY_SAMPLES}.",
                               fix="update evener.")  # fmt: skip
        manifest = msgspec.json.decode(sealed.body, type=Manifest)
    except OSError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: {MANIFEST} cannot be read ({error.strerror}).",
            fix="name a directory like .../checkpoints/step-00002000.",
        ) from error
    except files.NOT_JSON as error:
        raise CheckpointError(f"{file} is not a manifest of evener: {error}.") from error
    for complaint in _complaints(manifest, path):
        raise CheckpointError(f"{file} says what cannot be: {complaint}.")
    return manifest


def _complaints(manifest: Manifest, path: Path) -> Iterator[str]:
    """What no checkpoint can say, though its form is right."""
    if step_of(path.name) not in (None, manifest.step):
        yield f"it is of step {manifest.step}"
    counts = {name: getattr(manifest, name) for name in _COUNTS}
    yield from (f"{name} is {value}" for name, value in counts.items() if not 0 <= value <= MOST)
    if not 0 < manifest.shards <= MOST or abs(manifest.seed) > 2**64:
        yield f"it has {manifest.shards} shards and the seed {manifest.seed}"
    if len(set(manifest.unapplied)) != len(manifest.unapplied):
        yield "a lease is unapplied twice"
    if any(not 0 <= lease < manifest.next_lease for lease in manifest.unapplied):
        yield f"a lease is unapplied that is not of 0 to {manifest.next_lease - 1}"
    if any(not 0 <= lease < manifest.next_lease for lease in manifest.skipped):
        yield f"a lease was given up that is not of 0 to {manifest.next_lease - 1}"
    for name in ("unapplied_samples", "skipped_samples"):
        if not _ascending(getattr(manifest, name), manifest.next_lease):
            yield f"{name} are no stretches of the samples 0 to {manifest.next_lease - 1}, one after the other"
    for worker, seq in manifest.seqs.items():
        if not (worker.isascii() and worker.isdecimal() and len(worker) < 10 and all(0 <= n <= MOST for n in seq)):
            yield f"worker {worker[:20]!r} made push {seq}"
    yield from (f"it has a file {name[:80]!r}" for name in manifest.files if not _may_be_called(name))
    sizes = [size for shape in manifest.shapes.values() for size in shape]
    sizes += [place for _, start, stop in (manifest.parts or {}).values() for place in (start, stop)]
    if any(not 0 <= size <= MOST for size in sizes):
        yield "a tensor has a size that none can have"
    yield from _values_complaints(manifest)
    if manifest.script and (complaint := script_complaint(manifest.script)):
        yield f"what its script keeps cannot be kept: {complaint}"


def _ascending(stretches: list[Stretch], end: int) -> bool:
    bounds = [bound for stretch in stretches for bound in stretch]
    return all(before < after for before, after in pairwise([-1, *bounds])) and not (bounds and bounds[-1] > end)


def in_unit(manifest: Manifest, batch_size: int, *, by_samples: bool) -> Manifest:
    """The manifest as a run counts that goes on from it: in samples, or in batches of so many.

    Raises:
        CheckpointError: it has applied batches of that size in part.
    """
    if not manifest.by_samples or by_samples:
        return manifest
    book = in_leases(manifest.stretches, batch_size)
    if book is None:
        raise CheckpointError(
            f"the checkpoint of step {manifest.step} has applied {manifest.next_lease} samples, which are no whole "
            f"batches of {batch_size}.",
            why="its workers had batches of their own size, and every sample of an epoch is to come once.",
            fix="go on with --batch-sizes or --batch-by-speed, or with a --batch-size that divides what is applied.",
        )
    return msgspec.structs.replace(
        manifest, by_samples=False, unapplied_samples=[], skipped_samples=[], batch_size=batch_size, format=FORMAT
    ).with_book(book)


_COUNTS = ("step", "next_lease", "batch_size", "samples", "examples", "dropped", "counted")


def script_complaint(text: str) -> str:
    """Why a text cannot be what a script keeps; empty if it can."""
    try:
        value = msgspec.json.decode(text)
    except files.NOT_JSON as error:
        return f"it is not JSON ({str(error)[:120]})"
    return f"more than {DEPTH} lists and objects in each other" if _deeper([value], DEPTH) else ""


def _may_be_called(name: str) -> bool:
    """A later evener may add kinds of files, which are passed over; none has a directory in its name."""
    return is_shard(name) if name.partition("-")[0] in KINDS else "/" not in name


def _values_complaints(manifest: Manifest) -> Iterator[str]:
    """Of optimizers and schedules: here their form, `State.begin` looks at what it means."""
    if _deeper([manifest.options, manifest.values], DEPTH):
        yield f"more than {DEPTH} lists and objects in each other"
    for of_shard in manifest.values.values():
        groups = of_shard.get("groups", [])
        if not isinstance(groups, list) or not all(map(_is_group, groups)):
            yield "the optimizer's groups are none"
        for name in ("numbers", "schedule"):
            if not isinstance(of_shard.get(name, {}), dict):
                yield f"{name} is no object"


def _is_group(group: Any) -> bool:
    names = group.get("params", []) if isinstance(group, dict) else None
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _deeper(values: list[Any], most: int) -> bool:
    """Whether more than `most` lists and objects lie in each other; without recursion, level by level."""
    for _ in range(most):
        values = [
            inner
            for value in values
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return any(isinstance(value, dict | list) for value in values)
