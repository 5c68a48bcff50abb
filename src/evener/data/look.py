"""The first samples of a data set, looked at before anything is trained on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evener.data.dataset import Data, Dataset, MapStyle
from evener.data.loader import FromLoader
from evener.errors import InputError


def look_at(data: Data, *, pairs: bool = True) -> str:
    """Ask every set for its first samples, and the training set for one of its middle and its last too.

    Args:
        pairs: batches are (inputs, target), as they are unless the recipe's own `step` takes them.

    Returns:
        Those of the training set in a few words (`described`): on another task they must be the same.

    Raises:
        InputError: they are no batch of inputs and target, or cannot be put together to one.
        Exception: what the user's own data set raises.
    """
    words = ""
    for name, dataset in {"train": data.train, **data.validations}.items():
        batch = _first_of(dataset, train=name == "train")
        if pairs:
            _check_pair(batch, f"the {name or 'validation'} set ({_kind(dataset)})")
        words = words or described(batch)
    return words


def _first_of(dataset: Dataset, *, train: bool) -> Any:
    if isinstance(dataset, FromLoader):
        return dataset.first()
    last = len(dataset) - 1
    numbers = sorted({0, min(1, last), last // 2, last} if train else {0, min(1, last)})
    return dataset.batch(torch.tensor(numbers))


def _kind(dataset: Dataset) -> str:
    if isinstance(dataset, FromLoader):
        return f"a DataLoader of {type(dataset.loader.dataset).__name__}"
    return type(dataset.samples if isinstance(dataset, MapStyle) else dataset).__name__


def _check_pair(batch: Any, of: str) -> None:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(
            f"a batch of {of} is {_describe(batch)}, not a pair (inputs, target).",
            why="the model is called with the inputs, the loss with the model's output and the target.",
            fix="let batch(indices) return (inputs, target), several inputs or targets in a tuple or a dictionary of "
            "their own; or give the recipe a step=(model, batch) -> loss, which takes batches of any form.",
        )
    if not _holds_tensor(batch[1]):
        raise InputError(
            f"the target of {of} is {_describe(batch[1])}, without a tensor.",
            why="losses compare numbers.",
            fix="encode it as numbers, classes as 0, 1, 2, ...",
        )


def described(batch: Any) -> str:
    """A batch in a few words, the same on machines that round otherwise: dtype, shape, and mean and spread or a sum.

    >>> described((torch.tensor([[1.0, 3.0]]), torch.tensor([2])))
    'float32[1, 2] 2+-1, int64[1] sum 2'
    """
    if isinstance(batch, Tensor):
        head = f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
        if batch.numel() == 0 or batch.is_complex() or batch.layout != torch.strided:
            return head
        if not batch.is_floating_point():
            weights = torch.arange(1, batch.numel() + 1)
            return f"{head} sum {int((batch.reshape(-1).long() * weights).sum()) % 10**9}"
        wide = batch.double()
        return f"{head} {float(wide.mean()):.3g}+-{float(wide.std(correction=0)):.3g}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {described(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return ", ".join(map(described, batch))
    return type(batch).__name__


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict | tuple | list):
        return any(map(_holds_tensor, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
