"""Tensors as a safetensors file, piece by piece: what is written is never in memory a second time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import save
from torch import Tensor

#: Dtypes by the name that a file has for them, in the order in which their tensors stand in it.
_KINDS = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ORDER = {dtype: place for place, dtype in enumerate(_KINDS)}


def serialized(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of `safetensors.torch.save`, which would first copy each tensor, and then all of them.

    Tensors on the CPU are not copied at all where they are contiguous; others one at a time.
    """
    if any(tensor.dtype not in _KINDS for tensor in tensors.values()):
        yield save(dict(tensors))  # what an optimizer of a user's own keeps; the parameters have none of these
        return
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER[item[1].dtype], item[0].encode()))
    head, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        head[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if tensor.numel():
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
