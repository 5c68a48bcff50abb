"""TFRecord files that were made to cost time or memory: what is read of them is counted."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evener.data.tfrecord import crc, encode, index as kept_index
from evener.data.tfrecord.example import MOST, Malformed, fields
from evener.data.tfrecord.index import index, path_of
from evener.data.tfrecord.records import Bad, OnDisk, opened, walk
from evener.data.tfrecord.schema import Schema, UnfitRecord
from evener.data.tfrecord.search import VAIN
from evener.errors import InputError


def record(data):
    return crc.head(len(data)) + data + crc.tail(data)


class Counted:
    """A file in memory that counts what is read of it."""

    def __init__(self, content):
        self.path, self.size, self.taken = Path("x.tfrecord"), len(content), 0
        self._content = content

    def read(self, offset, count):
        piece = self._content[offset : offset + count]
        self.taken += len(piece)
        return piece

    def data_from(self, offset):
        return offset


class Sparse:
    """A hole of a terabyte, then a record; counts what is read of it."""

    def __init__(self, content):
        self.path, self.hole, self.taken = Path("x.tfrecord"), 1 << 40, 0
        self.size = self.hole + len(content)
        self._content = content

    def read(self, offset, count):
        count = min(count, self.size - offset)
        self.taken += count
        zeros = max(0, min(count, self.hole - offset))
        at = max(0, offset - self.hole)
        return bytes(zeros) + self._content[at : at + count - zeros]

    def data_from(self, offset):
        return max(offset, self.hole)


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.tfrecord")

    with pytest.raises(InputError, match="it is a FIFO, not a regular file"):
        opened(tmp_path / "x.tfrecord")


def test_a_device_is_refused_and_a_link_to_a_file_is_not(tmp_path):
    (tmp_path / "data").write_bytes(record(b"abc"))
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "zero").symlink_to("/dev/zero")

    assert OnDisk(tmp_path / "link").size == 19
    with pytest.raises(InputError, match="it is a device, not a regular file"):
        opened(tmp_path / "zero")


def test_heads_that_promise_all_of_the_rest_cost_a_few_times_the_file():
    """A damaged length, then 20,000 heads that agree with their checksums and with nothing else."""
    source = Counted(b"x" * 12 + b"".join(crc.head(max(0, 240_000 - 12 * number - 28)) for number in range(20_000)))

    with pytest.raises(InputError, match="so many places look like one that 4 times the bytes of the file were read"):
        list(walk(source, data=True, skip=True))
    assert source.taken < (VAIN + 4) * source.size


def test_many_bad_records_between_good_ones_are_looked_for_once():
    content = (b"\xff" * 5 + record(b"abc")) * 20_000
    source = Counted(content)
    found = list(walk(source, data=True, skip=True))

    assert [isinstance(one, Bad) for one in found] == [True, False] * 20_000
    assert source.taken < 10 * source.size


def test_a_hole_is_passed_over_at_once():
    source = Sparse(record(b"abc"))

    bad, good = walk(source, data=True, skip=True)
    assert (bad.nbytes, good.data) == (1 << 40, b"abc")
    assert source.taken < 2 << 20


def test_a_file_system_says_where_a_hole_ends(tmp_path):
    path = tmp_path / "x.tfrecord"
    with path.open("wb") as file:
        file.truncate(1 << 26)
        file.seek(0, os.SEEK_END)
        file.write(record(b"abc"))

    bad, good = walk(OnDisk(path), data=True, skip=True)
    assert (bad.nbytes, good.data) == (1 << 26, b"abc")
    assert OnDisk(path).data_from(1 << 27) == OnDisk(path).size


def test_a_record_of_very_many_values_that_lie_apart_is_refused():
    with pytest.raises(Malformed, match="more than 1048576 values that lie apart"):
        fields(message(1, message(1, message(1, b"x") + message(2, message(3, b"\x08\x01" * (MOST + 1))))))


def message(number, content):
    length, coded = len(content), bytearray()
    while length > 0x7F:
        coded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *coded, length]) + content


def test_more_whole_numbers_than_a_feature_has_are_not_decoded(monkeypatch):
    monkeypatch.setattr("evener.data.tfrecord.schema.values", None)

    with pytest.raises(UnfitRecord, match="feature 'x' holds 1000 bytes of whole numbers, not int64 "):
        Schema({"x": ("int64", [2])}).batch([encode({"x": np.ones(1000, np.int64)})])


@pytest.mark.parametrize(
    "change",
    [{"lengths": [2**62]}, {"lengths": [-1]}, {"offsets": [2**63 - 20]}, {"offsets": [-16]}, {"lengths": [4]}],
    ids=str,
)
def test_a_kept_index_that_lies_is_not_believed(tmp_path, change):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(record(b"abc"))
    source = OnDisk(path)
    made = index(source)
    lie = {name: np.array(numbers, np.int64) for name, numbers in change.items()}
    kept_index._keep(path, (*source.stamp, source.time_ns), replace(made, **lie))

    assert index(source).lengths.tolist() == [3]
    assert index(source).offsets.tolist() == [0]


@pytest.mark.parametrize("kind", ["fifo", "deep", "large", "link"])
def test_a_kept_index_that_is_none_is_made_anew(tmp_path, kind):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(record(b"abc"))
    beside = path_of(path)
    if kind == "fifo":
        os.mkfifo(beside)
    elif kind == "large":
        with beside.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "link":
        beside.symlink_to("/dev/zero")
    else:
        content = b"[" * 100_000 + b"\n"
        beside.write_bytes(content + crc.tail(content))

    assert len(index(OnDisk(path))) == 1
    assert beside.is_file() and beside.stat().st_size < 1000


def test_a_link_in_the_place_of_an_index_that_is_being_written_is_not_followed(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(record(b"abc"))
    (tmp_path / "precious").write_bytes(b"precious")
    path_of(path).with_name(f"{path_of(path).name}.{os.getpid()}").symlink_to("precious")

    assert len(index(OnDisk(path))) == 1
    assert (tmp_path / "precious").read_bytes() == b"precious"
