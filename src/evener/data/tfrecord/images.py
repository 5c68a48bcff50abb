"""Images and their labels in the schema of the TensorFlow 1 tutorials: image_raw, pixels and label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evener.data.dataset import Data, Tensors, unit_range
from evener.data.tfrecord.dataset import TFRecords
from evener.data.tfrecord.example import encode
from evener.data.tfrecord.writer import Part, Written, write
from evener.errors import ConfigError, InputError


def convert(data: Data, directory: str | Path, *, shards: int = 1, name: str = "") -> list[Written]:
    """Write the train and validation images of a recipe as TFRecord files, in their order.

    Raises:
        ConfigError: they are not uint8 images in memory with whole labels; or see `write`.
        InputError: the directory cannot be written.
    """
    parts = {"train": data.train} | ({"validation": data.validation} if data.validation is not None else {})
    return write(directory, {part: _part(dataset, name or "this recipe") for part, dataset in parts.items()},
                 shards=shards)  # fmt: skip


def load(
    data_dir: str | Path,
    *,
    pixels: int,
    transform: Callable[[Tensor], Any] = unit_range,
    skip_bad_records: bool = False,
) -> Data:
    """Read train*.tfrecord and, if there are such files, validation*.tfrecord (also .tfrecords, .gz) of a directory.

    Args:
        pixels: numbers of one image, which is uint8 [pixels] before `transform`; labels are int64.
        transform: of a batch's images; it runs in another thread than training and takes no random numbers there.

    Raises:
        InputError: no train files, or what `TFRecords` says.
    """
    directory = Path(data_dir).expanduser()
    features = {"image_raw": ("uint8", [pixels]), "label": ("int64", [])}
    found = {}
    for part in ("train", "validation"):
        paths = sorted(path for path in directory.glob(f"{part}*.tfrecord*") if path.is_file())
        if paths:
            found[part] = TFRecords(
                paths, features=features, inputs="image_raw", target="label", transform=transform,
                skip_bad_records=skip_bad_records, thread_safe=True,
            )  # fmt: skip
    if "train" not in found:
        raise InputError(
            f"there is no file train*.tfrecord in {directory}.",
            why="the files of a data set are named train*.tfrecord and validation*.tfrecord."
            if directory.is_dir()
            else "there is no such directory.",
            fix="point --data-dir at their directory, rename your files so, or make them: evener data convert.",
        )
    return Data(train=found["train"], validation=found.get("validation"))


def _part(dataset: object, name: str) -> Part:
    inputs, target = getattr(dataset, "inputs", None), getattr(dataset, "target", None)
    if not (
        isinstance(dataset, Tensors)
        and isinstance(inputs, Tensor)
        and isinstance(target, Tensor)
        and inputs.dtype == torch.uint8
        and target.dim() == 1
        and not target.is_floating_point()
    ):
        raise ConfigError(
            f"the data of {name} cannot be converted: {type(dataset).__name__}.",
            why="images in memory, uint8 [N, ...], and whole labels [N] are written as image_raw, pixels and label.",
            fix="write your own Examples with evener.data.tfrecord.write and encode.",
        )
    images, labels = inputs.reshape(len(inputs), -1).numpy(), target.tolist()
    pixels = images.shape[1]

    def record(number: int) -> bytes:
        return encode({"pixels": pixels, "label": labels[number], "image_raw": images[number].tobytes()})

    return Part(len(images), record)
