"""Models and memory: the tensors of a layout, seen as views of the bytes that travel."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import mmap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evener.devices.process import LARGE
from evener.wire.layout import ITEMSIZE, Layout, Piece, Spec

CPU = torch.device("cpu")
#: Numbers of a large tensor that change places, or are summed, at once: what that takes is small.
PIECE = 1 << 20
#: Memory of this process; on another device a flat uint8 tensor.
Bytes = memoryview | bytearray | Tensor


def specs_of(model: nn.Module, changing: Collection[str] = ()) -> list[Spec]:
    """The tensors of a model that travel: trained parameters and persistent buffers, in the model's order.

    Frozen parameters stay where they are: every task builds them from the same seed, and `digest_of` lets tasks check
    that they agree. Those that the model changes itself travel as buffers do.

    Args:
        changing: frozen parameters, or modules that hold them, by name (`Recipe.changing`).
    """
    trained = [_spec(name, p, trained=True) for name, p in model.named_parameters() if p.requires_grad]
    moved = [
        _spec(name, p, trained=False) for name, p in model.named_parameters()
        if not p.requires_grad and any(f"{name}.".startswith(f"{other}.") for other in changing)
    ]  # fmt: skip
    return trained + moved + [_spec(name, buffer, trained=False) for name, buffer in persistent_buffers(model)]


def _spec(name: str, tensor: Tensor, *, trained: bool) -> Spec:
    return Spec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), trained)


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that `state_dict` would hold, such as BatchNorm's running statistics; a tied one under its first name."""
    passing = {
        f"{prefix}.{leaf}".removeprefix(".")
        for prefix, module in model.named_modules(remove_duplicate=False)
        for leaf in module._non_persistent_buffers_set
    }
    return ((name, buffer) for name, buffer in model.named_buffers() if name not in passing)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied ones under their first name."""
    return {**dict(model.named_parameters()), **dict(persistent_buffers(model))}


def frozen(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Parameters that neither train nor travel."""
    travelling = {spec.name for spec in layout.specs}
    return {name: p.detach() for name, p in model.named_parameters() if name not in travelling}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Equal exactly if the tensors are equal, bit for bit, with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def dtype_of(name: str) -> torch.dtype:
    """ "float32" -> torch.float32."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def as_tensor(part: Bytes, dtype: str) -> Tensor:
    """Bytes seen as a flat tensor; nothing is copied."""
    if isinstance(part, Tensor):
        return part.view(dtype_of(dtype))
    if len(part) == 0:
        return torch.empty(0, dtype=dtype_of(dtype))
    return torch.frombuffer(part, dtype=dtype_of(dtype))


def overwrite(target: Tensor, source: Tensor) -> None:
    """Copy to memory that another process has read.

    By libc, which goes past the caches for large blocks in tasks (`copying_variables`); PyTorch's own copies never do.
    """
    alike = source.dtype == target.dtype and source.shape == target.shape and source.layout == torch.strided
    here = source.device.type == target.device.type == "cpu" and not (source.is_conj() or source.is_neg())
    if alike and here and source.is_contiguous() and target.is_contiguous():
        ctypes.memmove(target.data_ptr(), source.data_ptr(), target.nbytes)
    else:
        target.copy_(source)


def zeros(nbytes: int, device: torch.device = CPU) -> Tensor:
    """Fresh bytes [nbytes]. Many of them take memory as they are written, not before: in a buffer that is made for
    what may never come, or beside a model that goes when it has moved into it."""
    if device.type != "cpu" or nbytes < LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return torch.zeros(nbytes, dtype=torch.uint8, device=device)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):  # a kernel or a system that has no huge ones
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _elsewhere(part: Bytes) -> bool:
    return isinstance(part, Tensor) and part.device.type != "cpu"


def _bytes(part: Bytes) -> Any:
    return part.numpy().data if isinstance(part, Tensor) else part


class Slot:
    """One shard's slice of every flat buffer, seen as tensors: parameters, gradients or averages.

    Args:
        layout: where tensors lie.
        shard: whose slice.
        parts: the bytes of the slice, one range per dtype (`Layout.ranges`); fresh zeros if None.
        device: of fresh zeros.
    """

    def __init__(
        self,
        layout: Layout,
        shard: int,
        parts: Sequence[Bytes] | None = None,
        *,
        device: torch.device = CPU,
    ) -> None:
        self.layout = layout
        self.shard = shard
        if parts is None:
            # torch's allocator aligns to cache lines, bytearray does not
            parts = [zeros(nbytes, device) for _, nbytes in layout.ranges(shard)]
        #: What travels; empty where the memory is not this process's own.
        self.parts = [memoryview(_bytes(part)) for part in parts if not _elsewhere(part)]
        self.pieces = layout.on(shard)
        self.views: list[Tensor] = []
        flats = {
            segment.dtype: as_tensor(part, segment.dtype) for segment, part in zip(layout.segments, parts, strict=True)
        }
        #: The whole slice of each dtype [n].
        self.flats = list(flats.values())
        self.device = self.flats[0].device if self.flats else device
        starts = {segment.dtype: segment.bounds[shard] for segment in layout.segments}
        for piece in self.pieces:
            offset = piece.offset - starts[piece.spec.dtype]
            view = flats[piece.spec.dtype][offset : offset + piece.stop - piece.start]
            self.views.append(view.view(piece.spec.shape) if piece.whole else view)
        #: The trained run of each dtype, contiguous [n]: what whole-shard arithmetic works on.
        self.trained: list[Tensor] = []
        #: The buffers' run of each dtype, contiguous [n].
        self.buffers: list[Tensor] = []
        for dtype, flat in flats.items():
            first = min((p.offset - starts[dtype] for p in self.pieces if p.spec.dtype == dtype and p.spec.trained),
                        default=flat.numel())  # fmt: skip
            if first < flat.numel():
                self.trained.append(flat[first:])
            if first > 0:
                self.buffers.append(flat[:first])

    def named(self) -> Iterator[tuple[Piece, Tensor]]:
        return zip(self.pieces, self.views, strict=True)

    def copied_buffers(self) -> list[Tensor]:
        return [flat.clone() for flat in self.buffers]

    def put_buffers(self, copies: Sequence[Tensor]) -> None:
        for flat, copy in zip(self.buffers, copies, strict=True):
            flat.copy_(copy)

    def swap(self, other: Slot) -> None:
        """Each gets what the other one has, with no memory for all of it."""
        for mine, theirs in zip(self.views, other.views, strict=True):
            for here, there in zip(torch.split(mine.view(-1), PIECE), torch.split(theirs.view(-1), PIECE), strict=True):
                before = here.clone()
                here.copy_(there)
                there.copy_(before)

    def infinite_buffers(self) -> frozenset[str]:
        """The names of buffers that hold NaN or infinity."""
        return frozenset(
            piece.key for piece, view in self.named() if not piece.spec.trained and not bool(torch.isfinite(view).all())
        )

    def first_non_finite(self, allowed: Collection[str] = ()) -> str:
        """The name of a tensor that holds NaN or infinity; empty when all is finite.

        Args:
            allowed: buffers that may.

        Each tensor is looked at only where `all_finite` is not sure.
        """
        if all_finite(self.trained):
            if all_finite(self.buffers):
                return ""
            suspects = [(piece, view) for piece, view in self.named() if not piece.spec.trained]
        else:
            suspects = list(self.named())
        for piece, view in suspects:
            if piece.key not in allowed and not bool(torch.isfinite(view).all()):
                return piece.key
        return ""


def whole_views(layout: Layout, block: Bytes) -> dict[str, Tensor]:
    """Every tensor of the layout as one view of the whole memory block, also where shards split it.

    Each has a version counter of its own, as tensors of a plain model have: with the block's common one, autograd
    would take a BatchNorm layer that counts its batch for a change of everything that it saved for the backward pass.
    On the CPU each has a storage of its own too: `torch.save` refuses two dtypes in one, and would write all of it.
    """
    flats = flats_of(layout, block)
    views: dict[str, Tensor] = {}
    for piece in layout.pieces:  # a split tensor's parts follow each other without a gap: its first part says where
        if piece.start == 0:
            part = flats[piece.spec.dtype][piece.offset : piece.offset + piece.spec.numel]
            if part.device == CPU and part.numel():
                part = torch.frombuffer(part.view(torch.uint8).numpy(), dtype=part.dtype)
            views[piece.spec.name] = part.view(piece.spec.shape).data
    return views


def flats_of(layout: Layout, block: Bytes) -> dict[str, Tensor]:
    """All numbers of each dtype in a whole memory block, flat [n]."""
    if layout.nbytes == 0:
        return {}
    ends = {one.dtype: one.offset_nbytes + one.numel * ITEMSIZE[one.dtype] for one in layout.segments}
    return {one.dtype: as_tensor(_cut(block, one.offset_nbytes, ends[one.dtype]), one.dtype) for one in layout.segments}


def all_finite(flats: Iterable[Tensor]) -> bool:
    """Whether no number is NaN or infinite. False where that is not sure: a sum may overflow.

    The sum is 40 times cheaper than looking at each element, and is not finite if any element is not.
    """
    return all(math.isfinite(flat.sum()) for flat in flats)


def _cut(block: Bytes, start: int, stop: int) -> Bytes:
    return block[start:stop] if isinstance(block, Tensor) else memoryview(block)[start:stop]


def spans(layout: Layout) -> dict[str, tuple[int, int]]:
    """Where every whole tensor lies in a memory block: (first byte, byte after the last), in the block's order."""
    found: dict[str, tuple[int, int]] = {}
    starts = {segment.dtype: segment.offset_nbytes for segment in layout.segments}
    for piece in layout.pieces:
        if piece.start == 0:
            itemsize = ITEMSIZE[piece.spec.dtype]
            first = starts[piece.spec.dtype] + piece.offset * itemsize
            found[piece.spec.name] = (first, first + piece.spec.numel * itemsize)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def bind(model: nn.Module, views: dict[str, Tensor]) -> None:
    """Let the model's parameters and buffers live in these views; their values move along.

    Empty buffers stay the model's own: some get their size in the first forward, which is told (`Towers.collect`).
    """
    for name, parameter in model.named_parameters():
        if name in views:
            views[name].copy_(parameter.detach())
            parameter.data = views[name]
    for name, buffer in list(persistent_buffers(model)):
        if name in views and buffer.numel():
            views[name].copy_(buffer)
            buffer.data = views[name]


def let_go(model: nn.Module) -> None:
    """Give back the memory of a model whose values are elsewhere by now; it can compute nothing any more.

    Whoever made it may still refer to it, so it is emptied rather than forgotten.
    """
    for tensor in named_tensors(model).values():
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


def copied(tensor: Tensor) -> Tensor:
    """In this process's own memory, whatever happens to the tensor from now on."""
    return tensor.detach().to("cpu", copy=True)


def beside(parameter: Tensor, key: str, value: Any) -> Any:
    """Optimizer state on its parameter's device; `step` stays on the CPU, as `torch.optim` keeps it."""
    return value.to(parameter.device) if isinstance(value, Tensor) and key != "step" else value
