"""The files of CIFAR-10, binary, pickled or converted, as images and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evener.data import pickled
from evener.data.dataset import Dataset
from evener.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

#: Bytes of one record of the binary files, and of its image.
RECORD, IMAGE = 3073, 3072

FIX = "delete it and run again with --download, or copy it anew."

#: Images uint8 [N, 3, 32, 32] and labels int64 [N].
Images = tuple[Tensor, Tensor]


def records(content: bytes, name: str) -> Images:
    """The images and labels of one binary file.

    Raises:
        InputError: it ends inside a record, or a label is none of the ten.
    """
    count, rest = divmod(len(content), RECORD)
    if rest or not count:
        raise InputError(
            f"{name} is cut short: it ends at byte {len(content)}, inside record {count} (from 0), "
            f"which begins at byte {count * RECORD}.",
            why=f"its records have {RECORD} bytes each, and this one has {rest}.",
            fix=FIX,
        )
    table = np.frombuffer(content, dtype=np.uint8).reshape(count, RECORD)
    labels = table[:, 0].astype(np.int64)
    _check_labels(labels, name, lambda record: f", at byte {record * RECORD}")
    return _images(table[:, 1:]), torch.from_numpy(labels)


def pickles(content: bytes, name: str) -> Images:
    """The images and labels of one file of the python archive; nothing in the pickle is run.

    Raises:
        InputError: it is cut short, damaged, holds more than plain data, or not what CIFAR-10 holds.
    """
    try:
        made = pickled.read(content)
    except pickled.PickleRefused as refused:
        raise InputError(
            f"{name} cannot be read: {refused}.",
            why="the files of the python archive are pickles of lists and arrays; anything else in one is not run.",
            fix=FIX,
        ) from refused
    entries = made if isinstance(made, dict) else {}
    data, labels = (entries.get(key, entries.get(key.encode())) for key in ("data", "labels"))
    if not (isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == IMAGE and len(data)):
        raise _not_cifar(name, f"no array 'data' of {IMAGE} bytes an image")
    if not (isinstance(labels, list) and all(type(label) is int and 0 <= label < 256 for label in labels)):
        raise _not_cifar(name, "no list 'labels' of small whole numbers")
    if len(labels) != len(data):
        raise _not_cifar(name, f"{len(data)} images, but {len(labels)} labels")
    numbers = np.array(labels, dtype=np.int64)
    _check_labels(numbers, name, lambda _: "")
    return _images(data), torch.from_numpy(numbers)


def converted(directory: Path) -> tuple[Images, Images]:
    """What `evener data convert cifar10 --to tfrecord` made of it: the images to train on and those to be judged by.

    Raises:
        InputError: a part is missing, a record is damaged, or what it holds is none of CIFAR-10's.
    """
    from evener.data.tfrecord import images  # most runs read another format

    def part(records: Dataset, name: str) -> Images:
        made, labels = records.batch(torch.arange(len(records)))
        _check_labels(labels.numpy(), name, lambda _: "")
        return made.view(-1, 3, 32, 32), labels

    data = images.load(directory, pixels=IMAGE, transform=lambda rows: rows)
    if not data.validations:
        raise InputError(
            f"there is no file validation*.tfrecord in {directory}.",
            why="the recipe judges by CIFAR-10's test images.",
            fix="convert it again: evener data convert cifar10 --to tfrecord.",
        )
    return part(data.train, f"{directory}/train*.tfrecord"), part(
        data.validations[""], f"{directory}/validation*.tfrecord"
    )


def _images(rows: NDArray[np.uint8]) -> Tensor:
    """Rows [N, 3072] as images uint8 [N, 3, 32, 32]; a copy, since tensors cannot be read-only."""
    return torch.from_numpy(np.array(rows)).view(len(rows), 3, 32, 32)


def _check_labels(labels: NDArray[np.int64], name: str, where: Callable[[int], str]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if len(wrong):
        record = int(wrong[0])
        raise InputError(
            f"{name} is damaged: record {record} (from 0){where(record)}, has the label {labels[record]}.",
            why=f"the labels of CIFAR-10 are 0 to {len(CLASSES) - 1}; this may also be another data set.",
            fix=FIX,
        )


def _not_cifar(name: str, found: str) -> InputError:
    return InputError(
        f"{name} is not a batch of CIFAR-10: it has {found}.",
        why="each is a dict with the images, 'data' [N, 3072], and their 'labels'.",
        fix="point --data-dir at another directory, or add --download.",
    )
