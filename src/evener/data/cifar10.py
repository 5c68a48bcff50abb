"""CIFAR-10: 50,000 small colour images of ten kinds of things to train on and 10,000 to be judged by.

It is published as two archives. The binary one holds records of 3,073 bytes: the label, then 32 x 32 red values, as
many green ones, as many blue ones, each row by row. The python one holds the same numbers as pickles, which are read
as data (`evener.data.pickled`). Both are read as they come, unpacked, or with each file compressed by itself; and so
are TFRecord files that `evener data convert` made of them.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from evener.data import archive
from evener.data.cifar10_files import FIX, RECORD, Images, converted, pickles, records
from evener.data.dataset import Augmented, Data, Tensors
from evener.errors import InputError
from evener.files import opened

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)

#: archive -> SHA-256 of the official file (MD5 c32a1d4ab5d03f1284b67883e8d87530, c58f30108f718f92721af3b95e74349a)
ARCHIVES = {
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}

#: No file may unpack to more than this: fifty official ones.
MAX_NBYTES = 50 * 10_000 * RECORD

_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_BATCH = re.compile(r"(?:data_batch_(?P<number>\d+)|test_batch\w*)(?P<kind>\.bin)?(?P<packed>\.gz)?")


def default_dir() -> Path:
    """Where files go that were asked for without a place: the user's cache."""
    return Path.home() / ".cache" / "evener" / "cifar10"


def load(
    data_dir: str | Path,
    *,
    download: bool = False,
    transform: Callable[[Tensor], Any],
    augment: Callable[[Tensor, Tensor], Any] | None = None,
    numbers: int = 0,
) -> Data:
    """Read CIFAR-10 from a directory. Images stay uint8 in memory (a quarter of the floats) until they are in a batch.

    Args:
        data_dir: holds an archive, or its files: data_batch_1, 2, ... (as many as there are) and a test_batch.
        download: fetch the binary archive first if there is none of these. What is there is never touched.
        transform: uint8 [B, 3, 32, 32] -> what the model takes, for evaluation (and for training without `augment`).
        augment, numbers: for training, see `Augmented`.

    Raises:
        InputError: nothing to read; or a file is truncated or damaged: names it, and where.
    """
    directory = Path(data_dir).expanduser()
    if download:
        _download(directory)
    train, test = read(directory)
    validation = Tensors(*test, transform=transform)
    if augment is None:
        return Data(train=Tensors(*train, transform=transform), validation=validation)
    augmented = Augmented(*train, transform=transform, augment=augment, numbers=numbers)
    return Data(train=augmented, validation=validation)


def read(directory: Path) -> tuple[Images, Images]:
    """The images to train on and those to be judged by; of several sources the first: files .bin, pickles, archives,
    TFRecord.

    Raises:
        InputError: as for `load`.
    """
    for folder in _FOLDERS:
        found = _files_in(directory / folder)
        if "data_batch_1" in found:
            return _joined(directory / folder, {name: _batch(path) for name, path in found.items()})
    for name in ARCHIVES:
        if (directory / name).is_file():
            return _joined(directory / name, dict(_members(directory / name)))
    if any(directory.glob("train*.tfrecord*")):
        return converted(directory)
    raise InputError(
        f"CIFAR-10 is not in {directory}.",
        why=f"it is read from {' or '.join(ARCHIVES)}, or from their files data_batch_1, ... and test_batch."
        if directory.is_dir()
        else "there is no such directory.",
        fix="point --data-dir at the directory that holds them, or add --download (170 MB).",
    )


def download(data_dir: str | Path, mirrors: Sequence[str] = MIRRORS, *, timeout: float = 30.0) -> None:
    """Fetch the official binary archive, unless `data_dir` has CIFAR-10 in some form; goes on where it was cut off.

    Args:
        data_dir: made if it does not exist.
        mirrors: base addresses, tried in this order.
        timeout: seconds that a mirror may be silent.

    Raises:
        InputError: no mirror gave the file with the right checksum.
    """
    from evener.data.download import fetch, shown  # urllib costs 30 ms that most runs need not pay

    directory = Path(data_dir).expanduser()
    there = any("data_batch_1" in _files_in(directory / folder) for folder in _FOLDERS)
    if there or any((directory / name).is_file() for name in ARCHIVES):
        return
    name, sha256 = next(iter(ARCHIVES.items()))
    with shown(name) as progress:
        fetch(
            [f"{base}{name}" for base in mirrors], directory / name, sha256=sha256, progress=progress, timeout=timeout
        )


_download = download  # `load` has an option of the same name


# --- files and archives


def _files_in(folder: Path) -> dict[str, Path]:
    """name without endings -> file; .bin before pickles, unpacked before packed."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda p: (p.suffixes != [".bin"], p.name)):
        match = _BATCH.fullmatch(path.name)
        if match is not None and path.is_file():
            found.setdefault(path.name.removesuffix(".gz").removesuffix(".bin"), path)
    return found


def _batch(path: Path) -> Images:
    try:
        with opened(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = _unpacked(file, path) if packed else _all(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", why=str(error), fix=FIX) from error
    return _parsed(path.name, content, str(path))


def _parsed(name: str, content: bytes, where: str) -> Images:
    return records(content, where) if ".bin" in name else pickles(content, where)


def _all(file: BinaryIO, name: str) -> bytes:
    content = file.read(MAX_NBYTES + 1)
    if len(content) > MAX_NBYTES:
        raise _too_large(name)
    return content


def _too_large(name: str) -> InputError:
    return InputError(
        f"{name} is too large.",
        why=f"it holds more than {MAX_NBYTES} bytes; a batch of CIFAR-10 has {10_000 * RECORD}.",
        fix=FIX,
    )


def _unpacked(file: BinaryIO, path: Path) -> bytes:
    """What a gzip file holds; says where it breaks off."""
    content = io.BytesIO()  # which gives its bytes away without a copy
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            while piece := unpacked.read1(1 << 20):
                content.write(piece)
                if content.tell() > MAX_NBYTES:
                    raise _too_large(str(path))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        done = content.tell()
        raise InputError(
            f"{path} is damaged: it cannot be decompressed beyond byte {done}, in record {done // RECORD} (from 0) "
            f"({error}).",
            why="it was cut short or changed; its last bytes hold a checksum.",
            fix=FIX,
        ) from error
    return content.getvalue()


def _members(path: Path) -> Iterator[tuple[str, Images]]:
    """The batches in an archive, by name without endings. Nothing is unpacked to the disk."""
    last = "its beginning"
    with opened(path) as file:
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                for name, content in archive.members(cast(BinaryIO, unpacked), _limit):
                    last = name.rpartition("/")[2]
                    yield last.removesuffix(".bin"), _parsed(last, content, f"{path}: {name}")
        except (archive.DamagedArchive, EOFError, zlib.error, OSError) as error:
            raise InputError(
                f"{path} is damaged: it cannot be unpacked beyond byte {file.tell()}, behind {last} "
                f"({error or type(error).__name__}).",
                why="it was cut short or changed.",
                fix=FIX,
            ) from error


def _limit(name: str) -> int:
    """The most bytes that a member of an archive may have."""
    return MAX_NBYTES if _BATCH.fullmatch(name.rpartition("/")[2]) else 0


def _joined(source: Path, batches: dict[str, Images]) -> tuple[Images, Images]:
    """All training batches in the order of their numbers, and the test batch."""
    count = sum(name.startswith("data_batch_") for name in batches)
    numbered = [f"data_batch_{number}" for number in range(1, count + 1)]
    tests = sorted(name for name in batches if name.startswith("test_batch"))
    missing = [name for name in (*(numbered or ["data_batch_1"]), *(tests or ["test_batch"])) if name not in batches]
    if missing:
        raise InputError(
            f"CIFAR-10 is not complete in {source}: no {', '.join(missing)}.",
            why="the training batches are numbered from 1 without a gap, and there is a test batch.",
            fix="copy what is missing there, or use another --data-dir with --download.",
        )
    train = tuple(torch.cat([batches[name][part] for name in numbered]) for part in (0, 1))
    return cast(Images, train), batches[tests[0]]
