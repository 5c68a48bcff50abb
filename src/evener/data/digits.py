"""The UCI handwritten digits: 1,797 images that scikit-learn carries along, so no download is needed."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evener.data.dataset import Data, Tensors, unit_range
from evener.errors import InputError

TRAIN = 1437  # four fifths; the other 360 are for validation

_SIDE, _INNER, _BORDER = 28, 20, 4  # MNIST draws its digits 20x20 inside 28x28


def load(seed: int = 0) -> Data:
    """The digits as MNIST would show them: images [B, 784] float32 in 0..1, labels int64 [B].

    Args:
        seed: which 1,437 of the 1,797 images are for training.

    Raises:
        InputError: scikit-learn, or its copy of the digits, is absent or damaged.
    """
    table = _read(_path())
    images = torch.from_numpy(enlarge(table[:, :64].reshape(-1, 8, 8)).reshape(len(table), _SIDE * _SIDE))
    labels = torch.from_numpy(table[:, 64].astype(np.int64))
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).permutation(len(table)))
    train, validation = (
        Tensors(images[part], labels[part], transform=unit_range) for part in (order[:TRAIN], order[TRAIN:])
    )
    return Data(train=train, validation=validation)


def enlarge(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [N, 8, 8] with values 0..16 -> [N, 28, 28] with values 0..255: bilinear, with an empty border of 4.

    Bilinear interpolation is linear in the pixels of each axis, so it is one small matrix from both sides.
    """
    weights = _bilinear(8, _INNER)
    inner = weights @ (images.astype(np.float32) * (255 / 16)) @ weights.T
    framed = np.zeros((len(images), _SIDE, _SIDE), dtype=np.uint8)
    framed[:, _BORDER:-_BORDER, _BORDER:-_BORDER] = np.rint(inner)
    return framed


def _bilinear(small: int, large: int) -> NDArray[np.float32]:
    """Weights [large, small]; pixel centres lie at (i + 0.5), and the edge is repeated outwards."""
    centres = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    distance = np.abs(centres[:, None] - np.arange(small)[None, :])
    weights: NDArray[np.float32] = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def _path() -> Path:
    # Importing scikit-learn takes a second; asking where it lies takes a millisecond.
    spec = importlib.util.find_spec("sklearn")
    for directory in (spec.submodule_search_locations if spec else None) or ():
        path = Path(directory, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise InputError(
        "the UCI digits were not found." if spec else "the UCI digits were not found: scikit-learn is not installed.",
        why="they are read from scikit-learn's files, datasets/data/digits.csv.gz.",
        fix="run `pip install --force-reinstall scikit-learn`, or train on other data.",
    )


def _read(path: Path) -> NDArray[np.uint8]:
    """The table [1797, 65]: 64 pixels 0..16 and the label 0..9 in each row."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.float32).astype(np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read: {error}",
            why="it is scikit-learn's copy of the UCI digits, and it is damaged.",
            fix="run `pip install --force-reinstall scikit-learn`.",
        ) from error
    if table.shape != (1797, 65) or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        raise InputError(
            f"{path} holds a table {list(table.shape)}, not the 1797 digits.",
            why="each row is 64 pixels 0..16 and a label 0..9.",
            fix="run `pip install --force-reinstall scikit-learn`.",
        )
    return table
