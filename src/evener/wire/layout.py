"""Where every tensor lies: one flat buffer per dtype, each shard one contiguous slice of it.

Every task computes the layout from the model alone, without talking; a fingerprint lets them check that they agree.
All offsets are in elements of the tensor's dtype unless a name says ``nbytes``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod

from evener.errors import ConfigError

ITEMSIZE = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1,
    "uint8": 1, "bool": 1,
}  # fmt: skip
#: Tensors and cuts start at multiples of this many elements, so that vector instructions see aligned memory.
ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor that travels: a trained parameter, or a buffer such as BatchNorm's running mean."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trained: bool

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Piece:
    """The elements [start, stop) of one flattened tensor, at `offset` of its dtype's flat buffer, on one shard."""

    spec: Spec
    start: int
    stop: int
    offset: int
    shard: int

    @property
    def whole(self) -> bool:
        return self.stop - self.start == self.spec.numel

    @property
    def key(self) -> str:
        """The piece's name in files: ``fc.weight``, or ``fc.weight[0:1024]`` for a part of it."""
        return self.spec.name if self.whole else f"{self.spec.name}[{self.start}:{self.stop}]"


@dataclass(frozen=True, slots=True)
class Segment:
    """The flat buffer of one dtype inside the memory block."""

    dtype: str
    offset_nbytes: int
    numel: int
    bounds: tuple[int, ...]  # P + 1 offsets: shard s owns [bounds[s], bounds[s + 1])


Share = tuple[Spec, int, int]  # a tensor's elements [start, stop)


def _padded(numel: int) -> int:
    return -(-numel // ALIGNMENT) * ALIGNMENT


def _even(specs: Sequence[Spec], shards: int) -> list[list[Share]]:
    """Cut each dtype's flat buffer into equal slices. At most `shards` - 1 tensors are split, whatever their sizes."""
    placed: list[list[Share]] = [[] for _ in range(shards)]
    ordered = sorted(specs, key=lambda spec: (spec.dtype, spec.trained))
    for _, group in groupby(ordered, key=lambda spec: spec.dtype):
        tensors = list(group)
        total = sum(_padded(spec.numel) for spec in tensors)
        cuts = [_padded(total * shard // shards) for shard in range(shards)] + [total]
        at = 0
        for spec in tensors:
            for shard in range(shards):
                start, stop = max(at, cuts[shard]) - at, min(at + spec.numel, cuts[shard + 1]) - at
                if start < stop or (spec.numel == 0 and shard == 0):
                    placed[shard].append((spec, start, max(start, stop)))
            at += _padded(spec.numel)
    return placed


def _round_robin(specs: Sequence[Spec], shards: int) -> list[list[Share]]:
    """Tensor k to shard k mod P, in order of construction, as TensorFlow's replica_device_setter (SEMANTICS P2)."""
    return [[(spec, 0, spec.numel) for spec in specs[shard::shards]] for shard in range(shards)]


def _greedy(specs: Sequence[Spec], shards: int) -> list[list[Share]]:
    """Each tensor to the shard with the fewest bytes so far, lowest index on a tie (SEMANTICS P10)."""
    placed: list[list[Share]] = [[] for _ in range(shards)]
    load = [0] * shards
    for spec in specs:
        shard = load.index(min(load))
        placed[shard].append((spec, 0, spec.numel))
        load[shard] += spec.numel * ITEMSIZE[spec.dtype]
    return placed


PLACEMENTS: dict[str, Callable[[Sequence[Spec], int], list[list[Share]]]] = {
    "even": _even,
    "round_robin": _round_robin,
    "greedy": _greedy,
}


class Layout:
    """The placement of a model's tensors on `shards` servers and in one block of memory.

    Args:
        specs: the tensors in the model's order. Buffers are placed before parameters, so that the parameters of a
            shard are one contiguous run.
        shards: how many ps tasks there are; at least 1.
        placement: "even" (equal bytes, large tensors split; the default), "round_robin" or "greedy" (whole tensors).
        stages: tensor -> shard, instead of a placement: where shards are the stages of a pipeline.

    Raises:
        ConfigError: a dtype that cannot travel, or an unknown placement.
    """

    def __init__(
        self,
        specs: Iterable[Spec],
        *,
        shards: int = 1,
        placement: str = "even",
        stages: Mapping[str, int] | None = None,
    ) -> None:
        self.specs = tuple(specs)
        self._stages = stages
        self.shards = shards
        self.placement = placement
        if placement not in PLACEMENTS:
            raise ConfigError(f"unknown placement {placement!r}.", fix=f"use one of: {', '.join(PLACEMENTS)}.")
        for spec in self.specs:
            if spec.dtype not in ITEMSIZE:
                raise ConfigError(
                    f"tensor {spec.name!r} has dtype {spec.dtype}, which cannot be placed on a server.",
                    why=f"evener moves {', '.join(ITEMSIZE)}.",
                    fix="register it with persistent=False, if it is made anew with the model; or keep it as another "
                    "dtype, a complex one as its real view (torch.view_as_real).",
                )
        self.segments, self.pieces = self._lay()

    def _lay(self) -> tuple[tuple[Segment, ...], tuple[Piece, ...]]:
        segments: list[Segment] = []
        pieces: list[Piece] = []
        nbytes = 0
        if self._stages is None:
            placed = PLACEMENTS[self.placement](self.specs, self.shards)
        else:
            homes = self._stages
            placed = [
                [(spec, 0, spec.numel) for spec in self.specs if homes[spec.name] == shard]
                for shard in range(self.shards)
            ]
        for dtype in sorted({spec.dtype for spec in self.specs}):
            bounds, at = [0], 0
            for shard, shares in enumerate(placed):
                mine = (share for share in shares if share[0].dtype == dtype)
                for spec, start, stop in sorted(mine, key=lambda share: share[0].trained):
                    pieces.append(Piece(spec, start, stop, at, shard))
                    at += _padded(stop - start)
                bounds.append(at)
            segments.append(Segment(dtype, nbytes, at, tuple(bounds)))
            nbytes += -(-at * ITEMSIZE[dtype] // 4096) * 4096  # whole pages: dtypes never share a page
        return tuple(segments), tuple(pieces)

    @property
    def nbytes(self) -> int:
        """Size of the memory block that holds every segment."""
        if not self.segments:
            return 0
        last = self.segments[-1]
        return last.offset_nbytes + last.numel * ITEMSIZE[last.dtype]

    @cached_property
    def keys(self) -> dict[Piece, str]:
        """The name of every piece in files: that of its tensor; of a part of one, a name that no tensor has."""
        names = {spec.name for spec in self.specs}
        keys: dict[Piece, str] = {}
        for piece in self.pieces:
            key = piece.key
            while not piece.whole and key in names:
                key += "'"
            keys[piece] = key
        return keys

    @cached_property
    def parts(self) -> dict[str, tuple[str, int, int]]:
        """What the names of `keys` mean that are of a part: (tensor, start, stop)."""
        return {key: (p.spec.name, p.start, p.stop) for p, key in self.keys.items() if not p.whole}

    def on(self, shard: int) -> tuple[Piece, ...]:
        """The pieces of one shard, in the order of its memory."""
        return tuple(piece for piece in self.pieces if piece.shard == shard)

    def ranges(self, shard: int) -> tuple[tuple[int, int], ...]:
        """(offset, nbytes) in the memory block of one shard's slice of each dtype, empty slices included."""
        return tuple(
            (
                segment.offset_nbytes + segment.bounds[shard] * ITEMSIZE[segment.dtype],
                (segment.bounds[shard + 1] - segment.bounds[shard]) * ITEMSIZE[segment.dtype],
            )
            for segment in self.segments
        )

    def what(self, key: str) -> str:
        """A tensor of a gradient, or a part of one, for people."""
        return f"the {'gradient of' if key.partition('[')[0] in self.trained else 'buffer'} {key!r}"

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The names of the tensors that are trained, in the model's order."""
        return tuple(spec.name for spec in self.specs if spec.trained)

    def mask(self, names: Collection[str]) -> bytes:
        """Some trained tensors as bits, in the model's order; empty for none of them."""
        if not names:
            return b""
        bits = sum(1 << index for index, name in enumerate(self.trained) if name in names)
        return bits.to_bytes(-(-len(self.trained) // 8), "little")

    def named(self, mask: bytes) -> frozenset[str]:
        """The trained tensors of a mask. Bits beyond the last tensor mean nothing."""
        bits = int.from_bytes(mask, "little")
        return frozenset(name for index, name in enumerate(self.trained) if bits >> index & 1) if bits else frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two tasks exactly if they place the same tensors on the same shards."""
        text = repr((self.specs, self.shards, self.placement))
        if self._stages is not None:
            text += repr(sorted(self._stages.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: Iterable[Spec], *, here: str, there: str) -> str:
        """One sentence about the first tensor in which `other` differs; empty when only the placement differs."""
        mine, theirs = {spec.name: spec for spec in self.specs}, {spec.name: spec for spec in other}
        for name, spec in mine.items():
            twin = theirs.get(name)
            if twin is None:
                return f"{there} lacks {name!r} that {here} has"
            if twin.shape != spec.shape:
                return f"{name!r} is {list(spec.shape)} on {here}, {list(twin.shape)} on {there}"
            if twin.dtype != spec.dtype:
                return f"{name!r} is {spec.dtype} on {here}, {twin.dtype} on {there}"
            if twin.trained != spec.trained:
                return f"{name!r} is trained on {here if spec.trained else there} only"
        extra = next((name for name in theirs if name not in mine), None)
        return f"{there} has {extra!r} that {here} lacks" if extra else ""
