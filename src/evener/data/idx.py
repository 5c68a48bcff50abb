"""IDX files, the format of MNIST: a magic number, the sizes, then the numbers; plain or gzip.

Magic 0x00000803 is bytes 0, 0, dtype 0x08 (uint8), 3 dimensions; then 3 sizes as big-endian int32, then all values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from evener import files
from evener.errors import InputError

UINT8 = 0x08

#: No array larger than this is made, whatever a header says.
MAX_NBYTES = 2 * 1024**3

# Deflate cannot shrink anything more than this; a header that promises more than the file can hold is wrong.
_BEST_DEFLATE = 1032


def read(path: Path, *, dimensions: int, fix: str, max_nbytes: int = MAX_NBYTES) -> NDArray[np.uint8]:
    """Read a uint8 array of `dimensions` dimensions (1: labels, 3: images).

    What the header promises is compared with what the file can hold before memory is taken, and with what it does
    hold after.

    Args:
        path: the file; gzip is known by its first bytes, since browsers unpack files and keep their names.
        dimensions: what the magic number must say.
        fix: what the reader of an error message can do about a bad file.
        max_nbytes: larger arrays are refused.

    Raises:
        InputError: missing, unreadable, of another format, truncated, too long or damaged.
    """
    try:
        with _opened(path) as (file, packed):
            shape = _header(file, path, dimensions, fix)
            nbytes = math.prod(shape)
            if not 0 < nbytes <= max_nbytes:
                raise _wrong(path, f"1 to {max_nbytes} values", f"a header that says {list(shape)}", fix)
            _check_size(path, nbytes, None if packed else 4 + 4 * dimensions, fix)
            array = np.empty(shape, dtype=np.uint8)
            found = _fill(file, array)
            if found != nbytes:
                raise _wrong(path, f"{nbytes} bytes after the header", f"{found}", fix)
            if file.read(1):
                raise _wrong(path, f"{nbytes} bytes after the header", "more", fix)
            return array
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.", why="the data set needs it.", fix=fix) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}", why="it cannot be decompressed to its end.", fix=fix) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", why=str(error), fix=fix) from error


def same_count(images: Path, labels: Path, counts: tuple[int, int], fix: str) -> None:
    """Refuse two files that do not belong together.

    Raises:
        InputError: unequal counts of images and labels.
    """
    if counts[0] != counts[1]:
        raise InputError(
            f"{images} holds {counts[0]} images, but {labels} holds {counts[1]} labels.",
            why="every image needs its label.",
            fix=fix,
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file and whether it is compressed."""
    with files.opened(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(BinaryIO, unpacked), True
        else:
            yield file, False


def _header(file: BinaryIO, path: Path, dimensions: int, fix: str) -> tuple[int, ...]:
    nbytes = 4 + 4 * dimensions
    expected = bytes([0, 0, UINT8, dimensions])
    head = file.read(nbytes)
    if head[:4] != expected:
        raise _wrong(path, f"an IDX file with magic number 0x{expected.hex()}", f"0x{head[:4].hex()}", fix)
    if len(head) < nbytes:
        raise _wrong(path, f"a header of {nbytes} bytes", f"{len(head)}", fix)
    return struct.unpack(f">{dimensions}I", head[4:])


def _check_size(path: Path, nbytes: int, header: int | None, fix: str) -> None:
    """Compare the promised bytes with the file's size; exactly if it is plain (`header` is its header in bytes)."""
    size = path.stat().st_size
    if header is None and size * _BEST_DEFLATE < nbytes:
        raise _wrong(path, f"{nbytes} bytes after the header", f"a compressed file of only {size} bytes", fix)
    if header is not None and size != header + nbytes:
        raise _wrong(path, f"a file of {header + nbytes} bytes, as its header says", f"{size}", fix)


def _fill(file: BinaryIO, array: NDArray[np.uint8]) -> int:
    """Read into `array` until it is full or the file ends; returns the bytes read."""
    view = array.reshape(-1).data
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def _wrong(path: Path, expected: str, found: str, fix: str) -> InputError:
    return InputError(
        f"{path} is not the file that it should be: expected {expected}, found {found}.",
        why="it was cut short, mixed up or damaged.",
        fix=fix,
    )
