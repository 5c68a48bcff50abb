"""IDX files: read exactly, or refused with the file's name, what was expected and what was found."""

import gzip
import struct

import numpy as np
import pytest

from evener.data import idx
from evener.errors import InputError

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
FIX = "run again with --download."


def encoded(array, *, magic=None, shape=None):
    shape = array.shape if shape is None else shape
    magic = bytes([0, 0, 8, len(shape)]) if magic is None else magic
    return magic + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def read(path, content, dimensions=3, **options):
    path.write_bytes(content)
    return idx.read(path, dimensions=dimensions, fix=FIX, **options)


@pytest.fixture(params=["plain", "gzip"])
def stored(request):
    return gzip.compress if request.param == "gzip" else bytes


def test_an_array_comes_back(tmp_path, stored):
    assert np.array_equal(read(tmp_path / "images", stored(encoded(IMAGES))), IMAGES)
    labels = np.array([3, 1], dtype=np.uint8)
    assert np.array_equal(read(tmp_path / "labels", stored(encoded(labels)), dimensions=1), labels)


def test_gzip_is_known_by_its_bytes_not_by_its_name(tmp_path):
    assert np.array_equal(read(tmp_path / "images.gz", encoded(IMAGES)), IMAGES)


def refused(path, content, *words, **options):
    with pytest.raises(InputError) as caught:
        read(path, content, **options)
    text = str(caught.value)
    assert str(path) in text
    assert FIX in text
    for word in words:
        assert word in text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*images"):
        idx.read(tmp_path / "images", dimensions=3, fix=FIX)


def test_labels_in_the_place_of_images_are_refused(tmp_path, stored):
    refused(tmp_path / "x", stored(encoded(np.zeros(5, np.uint8))), "0x00000803", "0x00000801")


@pytest.mark.parametrize("content", [b"", b"\x00", b"<html>not found</html>"])
def test_something_else_is_refused_with_both_magic_numbers(tmp_path, stored, content):
    refused(tmp_path / "x", stored(content), "0x00000803", f"0x{content[:4].hex()}")


def test_a_header_cut_short_is_refused(tmp_path, stored):
    refused(tmp_path / "x", stored(encoded(IMAGES)[:10]), "header of 16 bytes", "found 10")


def test_a_truncated_plain_file_is_refused_with_both_sizes(tmp_path):
    refused(tmp_path / "x", encoded(IMAGES)[:-1], "a file of 40 bytes", "found 39")


def test_a_truncated_array_inside_gzip_is_refused_with_both_sizes(tmp_path):
    refused(tmp_path / "x", gzip.compress(encoded(IMAGES)[:-1]), "24 bytes", "found 23")


def test_bytes_after_the_end_are_refused(tmp_path, stored):
    refused(tmp_path / "x", stored(encoded(IMAGES) + b"!"), "expected")


@pytest.mark.parametrize("end", [-1, -12, 30])
def test_gzip_that_stops_early_is_refused(tmp_path, end):
    refused(tmp_path / "x.gz", gzip.compress(encoded(IMAGES))[:end], "damaged")


def test_gzip_with_a_flipped_byte_is_refused(tmp_path):
    content = bytearray(gzip.compress(encoded(IMAGES)))
    content[-6] ^= 1  # the checksum at its end
    refused(tmp_path / "x.gz", bytes(content), "damaged")
    content = bytearray(gzip.compress(encoded(IMAGES)))
    content[12:16] = b"\xff\xff\xff\xff"
    refused(tmp_path / "x.gz", bytes(content), "damaged")


@pytest.mark.parametrize("shape", [(2**31, 2**31, 2**31), (60000, 28, 28)])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, stored, monkeypatch, shape):
    def no_memory(*args, **kwargs):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(np, "empty", no_memory)
    refused(tmp_path / "x", stored(encoded(IMAGES, shape=shape)), "expected")


def test_the_limit_and_empty_arrays(tmp_path, stored):
    refused(tmp_path / "x", stored(encoded(IMAGES)), "1 to 23 values", "[2, 3, 4]", max_nbytes=23)
    refused(tmp_path / "x", stored(encoded(IMAGES[:0])), "[0, 3, 4]")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        idx.read(tmp_path, dimensions=3, fix=FIX)


def test_counts_that_differ_name_both_files(tmp_path):
    idx.same_count(tmp_path / "a", tmp_path / "b", (3, 3), FIX)
    with pytest.raises(InputError, match=r"a holds 3 images, but .*b holds 2 labels"):
        idx.same_count(tmp_path / "a", tmp_path / "b", (3, 2), FIX)
