"""MNIST: 60,000 images to train on and 10,000 to be judged by, from the four IDX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evener.data import idx
from evener.data.dataset import Data, Tensors, unit_range
from evener.errors import InputError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

#: name without .gz -> SHA-256 of the official .gz file
FILES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def default_dir() -> Path:
    """Where files go that were asked for without a place: the user's cache."""
    return Path.home() / ".cache" / "evener" / "mnist"


def load(data_dir: str | Path, *, download: bool = False) -> Data:
    """Read MNIST from a directory; the validation set is its 10,000 test images.

    Images lie in memory as uint8 [N, 784] and are float32 in 0..1 in a batch; labels are int64.

    Args:
        data_dir: holds the four IDX files, plain or .gz.
        download: fetch those that are missing first. Files that are there are never touched.

    Raises:
        InputError: files missing, truncated, damaged or not belonging together; names the file.
    """
    directory = Path(data_dir).expanduser()
    if download:
        _download(directory)
    missing = [name for name in FILES if _find(directory, name) is None]
    if missing:
        raise InputError(
            f"MNIST is not complete in {directory}: no {', '.join(f'{name}[.gz]' for name in missing)}.",
            why="it is read from four IDX files, plain or .gz."
            if directory.is_dir()
            else "there is no such directory.",
            fix="point --data-dir at the directory that holds them, or add --download.",
        )
    return Data(train=_part(directory, "train"), validation=_part(directory, "t10k"))


def download(data_dir: str | Path, mirrors: Sequence[str] = MIRRORS, *, timeout: float = 30.0) -> None:
    """Fetch the official files that `data_dir` lacks; what was cut off before goes on where it stopped.

    Several processes may call this for one directory at the same time: one downloads, the others wait for it.

    Args:
        data_dir: made if it does not exist.
        mirrors: base addresses, tried in this order.
        timeout: seconds that a mirror may be silent.

    Raises:
        InputError: no mirror gave a file with the right checksum.
    """
    from evener.data.download import fetch, shown  # urllib costs 30 ms that most runs need not pay

    directory = Path(data_dir).expanduser()
    for name, sha256 in FILES.items():
        if _find(directory, name) is None:
            target = directory / f"{name}.gz"
            with shown(target.name) as progress:
                fetch(
                    [f"{base}{target.name}" for base in mirrors],
                    target,
                    sha256=sha256,
                    progress=progress,
                    timeout=timeout,
                )


def _find(directory: Path, name: str) -> Path | None:
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def _part(directory: Path, prefix: str) -> Tensors:
    """The train or the t10k half: two files that must fit each other."""
    images_path, labels_path = (_find(directory, name) for name in FILES if name.startswith(prefix))
    assert images_path is not None and labels_path is not None  # checked by `load`
    fix = "delete it, then run again with --download."
    images = idx.read(images_path, dimensions=3, fix=fix)
    labels = idx.read(labels_path, dimensions=1, fix=fix)
    idx.same_count(images_path, labels_path, (len(images), len(labels)), "delete both, then run again with --download.")
    if images.shape[1:] != (28, 28) or labels.max(initial=0) > 9:
        raise InputError(
            f"{images_path.name} and {labels_path.name} in {directory} are not MNIST: "
            f"images {list(images.shape[1:])}, labels up to {labels.max(initial=0)}.",
            why="its images are 28x28 pixels and its labels 0..9.",
            fix="point --data-dir at another directory, or delete them and run again with --download.",
        )
    return Tensors(
        torch.from_numpy(images.reshape(len(images), 28 * 28)),
        torch.from_numpy(labels.astype(np.int64)),
        transform=unit_range,
    )


_download = download  # `load` has an option of the same name
