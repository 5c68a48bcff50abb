"""A checkpoint that all towers go on from, though only one of them has its files."""

from __future__ import annotations

import msgspec
import safetensors.torch
from torch import Tensor

from evener.state.checkpoint import KINDS, Manifest
from evener.state.contents import Contents
from evener.worker.allreduce.group import Group

Restored = tuple[Manifest, Contents] | None


def share_restored(group: Group, restored: Restored) -> Restored:
    """Tower 0's checkpoint on all towers, bit for bit: only its machine needs the files.

    Some tensors at a time, so that it is not in memory again as a whole.
    """
    parts = _in_parts(restored[1]) if restored is not None else []
    head = group.share(_head(restored, len(parts)) if restored is not None else b"")
    if not head:
        return None
    manifest, step, values, count = msgspec.msgpack.decode(head, type=tuple[bytes, int, dict, int])  # type: ignore[type-arg]
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for number in range(count):
        data = group.share(safetensors.torch.save(parts[number]) if group.rank == 0 else b"")
        for key, tensor in safetensors.torch.load(data).items() if group.rank else ():
            kind, _, name = key.partition(":")
            found[kind][name] = tensor
    if group.rank == 0:
        return restored
    return msgspec.json.decode(manifest, type=Manifest), Contents(
        step, found["parameters"], found["averages"], found["optimizer"], values
    )


#: Bytes of tensors that travel together.
_TOGETHER = 16 << 20


def _in_parts(contents: Contents) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = []
    room = 0
    for kind in KINDS:
        for name, tensor in getattr(contents, kind).items():
            if not parts or tensor.nbytes > room:
                parts.append({})
                room = _TOGETHER
            parts[-1][f"{kind}:{name}"] = tensor.contiguous()
            room -= tensor.nbytes
    return parts


def _head(restored: tuple[Manifest, Contents], count: int) -> bytes:
    manifest, contents = restored
    return msgspec.msgpack.encode((msgspec.json.encode(manifest), contents.step, contents.values, count))
