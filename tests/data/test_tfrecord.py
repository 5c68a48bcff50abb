"""TFRecord files: damage is named or counted, records come by index or as a stream, writing is all or nothing."""

import gzip
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from make_tfrecord import EXAMPLES
from torch.utils.data import DataLoader

from evener.data.batches import Batches
from evener.data.dataset import Tensors
from evener.data.tfrecord import Part, Stream, TFRecords, crc, encode, files, index, records, write
from evener.data.tfrecord.records import MAX_RECORD, Bad, Unpacked, opened, walk
from evener.data.tfrecord.writer import frame
from evener.errors import ConfigError, InputError

HERE = Path(__file__).parent
FEATURES = {"x": ("uint8", [3]), "label": ("int64", [])}


def record(number):
    return encode({"x": bytes([number % 256, 1, 2]), "label": number})


def stored(path, numbers):
    path.write_bytes(b"".join(frame(record(number)) for number in numbers))
    return path


def dataset(paths, **options):
    return TFRecords(paths, features=FEATURES, inputs="x", target="label", **options)


def labels(data):
    return data.batch(torch.arange(len(data)))[1].tolist()


def streamed(stream):
    return [element["label"].tolist() for element in stream]


# --- the checksum


def test_the_checksum_is_castagnolis_masked():
    assert crc.masked(b"") == 0xA282EAD8
    assert ((crc.masked(b"123456789") - 0xA282EAD8) % 2**32) == (0xE3069283 >> 15 | 0xE3069283 << 17) % 2**32
    # RFC 3720 B.4: 32 bytes of zeros, and of ones
    assert ((crc.masked(bytes(32)) - 0xA282EAD8) % 2**32) == (0x8A9136AA >> 15 | 0x8A9136AA << 17) % 2**32
    assert ((crc.masked(b"\xff" * 32) - 0xA282EAD8) % 2**32) == (0x62A8AB43 >> 15 | 0x62A8AB43 << 17) % 2**32


@given(st.binary(max_size=50), st.integers(0, 2**64 - 1))
def test_heads_are_found_wherever_they_are(noise, length):
    found = crc.heads(np.frombuffer(noise + crc.head(length) + noise, np.uint8)).tolist()
    assert len(noise) in found
    assert all((noise + crc.head(length) + noise)[at : at + 12] == crc.head(length) for at in found)


# --- damage

NUMBERS = [3, 1, 4, 1000]
STARTS = np.cumsum([0] + [len(record(n)) + 16 for n in NUMBERS]).tolist()


def reading_ways(path):
    """The three ways to read a whole file; each gives its labels."""
    return (
        lambda **skip: labels(dataset(path, cache_index=False, **skip)),
        lambda **skip: labels(dataset(path, cache_index=True, **skip)),
        lambda **skip: streamed(Stream(path, FEATURES, **skip)),
    )


def test_one_flipped_bit_anywhere_is_named_or_its_record_left_out(tmp_path, capsys):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        number = int(np.searchsorted(STARTS, place, side="right")) - 1
        for read in reading_ways(path):
            with pytest.raises(InputError) as caught:
                read()
            assert f"{path}: record {number} at byte {STARTS[number]} is bad" in caught.value.what
            assert "skip_bad_records" in caught.value.fix
            assert read(skip_bad_records=True) == NUMBERS[:number] + NUMBERS[number + 1 :]
            said = capsys.readouterr().err
            assert said.startswith(f"skipped 1 bad record, kept 3; the first: {path}, record {number} at byte")


def test_a_file_cut_at_any_byte_is_named_or_its_last_record_left_out(tmp_path):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)
    whole = path.read_bytes()
    for size in range(len(whole) - 1, -1, -1):
        os.truncate(path, size)
        number = int(np.searchsorted(STARTS, size, side="right")) - 1
        for read in reading_ways(path):
            if size in STARTS:  # nothing in the file says that there was more
                assert read() == NUMBERS[:number]
                continue
            with pytest.raises(InputError) as caught:
                read()
            assert f"{path}: record {number} at byte {STARTS[number]} is bad: the file ends after" in caught.value.what
            assert read(skip_bad_records=True) == NUMBERS[:number]


def test_every_bad_stretch_is_counted_once(tmp_path, capsys):
    path = tmp_path / "x.tfrecord"
    good = [frame(record(number)) for number in range(8)]
    broken = bytearray(b"".join(good))
    starts = np.cumsum([0, *map(len, good)])
    broken[starts[1] + 15] ^= 1  # data
    broken[starts[3]] ^= 1  # two lengths, one after the other
    broken[starts[4] + 9] ^= 1
    path.write_bytes(broken[:-3])

    data = dataset(path, skip_bad_records=True)
    assert labels(data) == [0, 2, 5, 6]
    assert data.skipped == 3
    assert "skipped 3 bad records, kept 4" in capsys.readouterr().err
    assert dataset(path, skip_bad_records=True).skipped == 3  # by the kept index
    assert "skipped 3 bad records, kept 4" in capsys.readouterr().err
    stream = Stream(path, FEATURES, skip_bad_records=True)
    assert streamed(stream) == [0, 2, 5, 6]
    assert stream.skipped.count == 3
    with pytest.raises(InputError):
        labels(dataset(path))  # what was left out for one reader is not for another


def test_records_behind_a_long_stretch_of_rubbish_are_found_again(tmp_path):
    path = tmp_path / "x.tfrecord"
    for rubbish in (bytes(300_000), np.random.default_rng(0).bytes(300_000), crc.head(5) * 10, crc.head(2**40)):
        path.write_bytes(frame(record(1)) + rubbish + frame(record(2)))
        first, *bad, last = walk(opened(path), data=True, skip=True)
        assert all(isinstance(stretch, Bad) for stretch in bad)
        assert (bad[0].number, bad[0].offset) == (1, first.length + 16)
        assert sum(stretch.nbytes for stretch in bad) == len(rubbish)
        assert (last.number, last.data) == (1 + len(bad), record(2))


def test_a_record_is_found_again_wherever_it_lies_in_the_blocks_of_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_BLOCK", 64)
    path = tmp_path / "x.tfrecord"
    for length in range(12, 12 + 64):
        path.write_bytes(bytes(length) + frame(record(2)))
        bad, good = walk(opened(path), data=True, skip=True)
        assert (bad.nbytes, good.data) == (length, record(2))


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=60)
def test_any_bytes_are_records_or_an_error(tmp_path_factory, content, after_a_good_one):
    assume(content[:3] != b"\x1f\x8b\x08")  # gzip
    path = tmp_path_factory.getbasetemp() / "any.tfrecord"
    path.write_bytes(frame(record(5)) * after_a_good_one + content)
    found = list(walk(opened(path), data=True, skip=True))
    assert sum(len(f.data) + 16 if not isinstance(f, Bad) else f.nbytes for f in found) == path.stat().st_size
    if content:
        with pytest.raises(InputError, match=r"any\.tfrecord"):
            labels(dataset(path, cache_index=False))


@pytest.mark.parametrize("length", [MAX_RECORD, MAX_RECORD + 1, 2**63, 2**64 - 1])
def test_a_length_that_promises_too_much_takes_no_memory(tmp_path, length):
    for name, content in (("x", crc.head(length) + bytes(20)), ("x.gz", gzip.compress(crc.head(length) + bytes(20)))):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match="record 0 at byte 0 is bad"):
            dataset(path)


def test_another_kind_of_file_is_asked_about(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="is this a TFRecord file"):
        dataset(path)


def test_a_good_record_of_another_schema_is_an_error_even_when_bad_ones_are_skipped(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(frame(record(1)) + frame(encode({"y": 1})) + frame(b"\xff"))
    data = dataset(path, skip_bad_records=True)
    offset = len(record(1)) + 16
    for read in (lambda: data.batch(torch.tensor([0, 1])), lambda: streamed(Stream(path, FEATURES))):
        with pytest.raises(InputError, match=rf"x.tfrecord: record 1 at byte {offset} does not fit: .*no feature 'x'"):
            read()
    with pytest.raises(InputError, match=r"record 2 at byte \d+ does not fit: its data are no tf.train.Example"):
        data.batch(torch.tensor([2]))


# --- gzip


def test_gzip_is_unpacked_into_memory_and_known_by_its_bytes(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(gzip.compress(stored(path, NUMBERS).read_bytes()))
    assert labels(dataset(path)) == NUMBERS
    assert streamed(Stream(path, FEATURES)) == NUMBERS
    assert not index.path_of(path).exists()


def test_a_plain_file_whose_first_length_looks_like_gzip_is_plain(tmp_path):
    wanted = 0x00088B1F  # its first bytes are 1f 8b 08
    rest = wanted - len(encode({"label": 9, "x": bytes(3), "rest": bytes(200_000)})) + 200_000
    content = encode({"label": 9, "x": bytes(3), "rest": bytes(rest)})
    assert len(content) == wanted
    path = tmp_path / "x.tfrecord"
    path.write_bytes(frame(content))
    assert path.read_bytes()[:3] == b"\x1f\x8b\x08"
    assert labels(dataset(path)) == [9]


def test_damaged_or_too_large_gzip_is_refused(tmp_path):
    path = tmp_path / "x.tfrecord.gz"
    packed = gzip.compress(b"".join(frame(record(number)) for number in range(50)))
    for content in (packed[:-1], packed[: len(packed) // 2], packed[:-6] + b"\x00" + packed[-5:]):
        path.write_bytes(content)
        for skip in (False, True):  # what cannot be unpacked cannot be left out
            with pytest.raises(InputError, match=r"x.tfrecord.gz is damaged after \d+ unpacked bytes"):
                dataset(path, skip_bad_records=skip)
    path.write_bytes(packed)
    with pytest.raises(InputError, match="more than 100 bytes when unpacked"):
        Unpacked(path, max_nbytes=100)


# --- by index


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.data())
@settings(max_examples=40)
def test_files_are_one_data_set_in_their_order(tmp_path_factory, counts, data):
    directory = tmp_path_factory.mktemp("files")
    starts = np.cumsum([0, *counts])
    paths = [stored(directory / f"{n}.tfrecord", range(starts[n], starts[n + 1])) for n in range(len(counts))]
    made = dataset(paths)
    assert len(made) == starts[-1]
    if len(made):
        asked = data.draw(st.lists(st.integers(0, len(made) - 1), max_size=10))
        inputs, target = made.batch(torch.tensor(asked, dtype=torch.int64))
        assert target.tolist() == asked
        assert inputs.tolist() == [[number, 1, 2] for number in asked]


def test_leases_give_the_same_batches_as_data_in_memory(tmp_path):
    numbers = torch.arange(23)
    memory = Tensors(torch.stack([numbers, numbers * 0 + 1, numbers * 0 + 2], 1).to(torch.uint8), numbers)
    write(tmp_path, {"train": Part(23, record)}, shards=3)
    on_disk = dataset(str(tmp_path / "train-*"))
    first, second = (Batches(data, batch_size=4, seed=7) for data in (memory, on_disk))
    for lease in range(20):
        for left, right in zip(first.batch(lease), second.batch(lease), strict=True):
            assert torch.equal(left, right)


def test_inputs_may_be_several_and_are_transformed(tmp_path):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)
    one = TFRecords(path, features=FEATURES, inputs="x", target="label", transform=lambda x: x.float() / 2)
    assert one.batch(torch.tensor([2]))[0].tolist() == [[2, 0.5, 1]]
    two = TFRecords(path, features={**FEATURES}, inputs=["x", "label"], target="label")
    assert two.batch(torch.tensor([1]))[0]["label"].tolist() == [1]
    assert (one.thread_safe, two.thread_safe) == (False, True)  # a transform may ask PyTorch for random numbers
    with pytest.raises(ConfigError, match="no feature 'image'"):
        TFRecords(path, features=FEATURES, inputs="image", target="label")
    with pytest.raises(ConfigError, match="target 'label' is read as bytes"):
        TFRecords(path, features={"x": ("uint8", [3]), "label": ("bytes", [])}, inputs="x", target="label")


def test_more_files_than_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_OPEN", 2)
    paths = [stored(tmp_path / f"{n}.tfrecord", [n]) for n in range(5)]
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    data = dataset(paths)
    for _ in range(2):
        assert labels(data) == [0, 1, 2, 3, 4]
    assert len(os.listdir("/proc/self/fd")) <= before + 2 if before else True


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch):
    paths = [stored(tmp_path / f"{n}.tfrecord", range(5)) for n in range(2)]
    data = dataset(paths)
    os.truncate(paths[0], 30)
    with pytest.raises(InputError, match=r"0.tfrecord: record 4 at byte \d+ is bad: 0 of its"):
        data.batch(torch.tensor([4]))
    monkeypatch.setattr(files, "MAX_OPEN", 1)
    data = dataset([stored(path, range(5)) for path in paths])
    stored(paths[0], range(6))
    with pytest.raises(InputError, match=r"0.tfrecord has changed while it was read"):
        data.batch(torch.tensor([0]))


def test_a_time_that_lies_is_no_change(tmp_path, monkeypatch):
    """Some file systems tell another time a second later, or none at all."""
    monkeypatch.setattr(files, "MAX_OPEN", 1)
    paths = [stored(tmp_path / f"{n}.tfrecord", range(5)) for n in range(2)]
    data = dataset(paths)
    os.utime(paths[0], ns=(0, 0))
    assert labels(data) == [*range(5), *range(5)]


@pytest.mark.parametrize("what", [[4, 0, 1, 2, 3], [0, 1, 2, 4, 3]], ids=["beginning", "end"])
def test_a_change_is_seen_without_the_time(tmp_path, monkeypatch, what):
    monkeypatch.setattr(files, "MAX_OPEN", 1)
    paths = [stored(tmp_path / f"{n}.tfrecord", range(5)) for n in range(2)]
    data = dataset(paths)
    before = paths[0].stat()
    stored(paths[0], what)
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=r"0.tfrecord has changed while it was read"):
        data.batch(torch.tensor([0]))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere"):
        dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no TFRecord files were named"):
        dataset([])
    with pytest.raises(InputError, match=r"there is no file|not a regular file"):
        dataset(tmp_path)
    write(tmp_path, {"train": Part(9, record)}, shards=3)
    (tmp_path / "train-00001-of-00003.tfrecord").unlink()
    with pytest.raises(InputError, match=r"1 of 3 files are missing: .*train-00001-of-00003.tfrecord"):
        dataset(tmp_path / "train-*")
    (tmp_path / "train-00000-of-00003.tfrecord").unlink()
    with pytest.raises(InputError, match=r"2 of 3 files are missing: .*train-00000-of-00003.tfrecord, \.\.\."):
        dataset(tmp_path / "train-*")


def test_files_may_be_named_from_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    stored(tmp_path / "x.tfrecord", NUMBERS)
    assert labels(dataset("~/x.tfrecord")) == labels(dataset("~/*.tfrecord")) == NUMBERS


# --- the kept index


def test_the_index_is_kept_and_used(tmp_path, monkeypatch):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)
    dataset(path)
    assert [name for name in os.listdir(tmp_path) if name != path.name] == [".x.tfrecord.evener-index"]

    def never(*args, **kwargs):
        raise AssertionError("the file was gone through again")

    monkeypatch.setattr(index, "walk", never)
    assert labels(dataset(path)) == NUMBERS
    with pytest.raises(AssertionError):
        dataset(path, cache_index=False)
    with pytest.raises(AssertionError):
        dataset(path, skip_bad_records=True)  # the kept one says nothing about the data


def test_an_index_of_other_contents_is_not_used(tmp_path):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)
    dataset(path)
    before = path.stat()
    stored(path, NUMBERS[::-1])
    os.utime(path, ns=(0, before.st_mtime_ns + 1))
    assert labels(dataset(path)) == NUMBERS[::-1]


def test_a_damaged_index_is_made_again(tmp_path):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)
    dataset(path)
    kept = index.path_of(path)
    whole = kept.read_bytes()
    for place in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[place] ^= 1
        for content in (bytes(broken), whole[:place]):
            kept.write_bytes(content)
            assert labels(dataset(path)) == NUMBERS
            assert kept.read_bytes() == whole


@pytest.mark.parametrize("change", [{"lengths": -1}, {"offsets": 10**9}, {"offsets": -5}, {"lengths": 2**40}])
def test_an_index_that_lies_is_not_believed(tmp_path, change):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)
    source = opened(path)
    made = index.index(source)
    ((name, value),) = change.items()
    getattr(made, name)[1] = value
    index._keep(path, (*source.stamp, source.time_ns), made)
    assert labels(dataset(path)) == NUMBERS


@pytest.mark.parametrize(("where", "how"), [(os, "fdopen"), (Path, "replace")])
def test_a_directory_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, where, how):
    path = stored(tmp_path / "x.tfrecord", NUMBERS)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(where, how, refuse)
    assert labels(dataset(path)) == NUMBERS
    assert os.listdir(tmp_path) == ["x.tfrecord"]


# --- as a stream


@pytest.fixture
def hundred(tmp_path):
    return [stored(tmp_path / f"{part}.tfrecord", range(part * 50, part * 50 + 50)) for part in range(2)]


def test_a_stream_is_in_the_order_of_the_files(hundred):
    assert streamed(Stream(hundred, FEATURES)) == list(range(100))


@given(st.integers(1, 7), st.integers(1, 120), st.integers(0, 3), st.integers(1, 30))
@settings(max_examples=25)
def test_the_shards_of_a_stream_are_everything_once(hundred_once, count, buffer, seed, size):
    found = []
    for shard in range(count):
        stream = Stream(hundred_once, FEATURES).shard(shard, count).shuffle(buffer, seed=seed).batch(size)
        batches = streamed(stream)
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        found += [label for batch in batches for label in batch]
    assert sorted(found) == list(range(100))


@pytest.fixture(scope="module")
def hundred_once(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hundred")
    return [stored(directory / f"{part}.tfrecord", range(part * 50, part * 50 + 50)) for part in range(2)]


def test_a_shuffle_buffer_moves_records_and_every_pass_is_another_order(hundred):
    shuffled = Stream(hundred, FEATURES).shuffle(10, seed=1)
    first, second = np.array(streamed(shuffled.repeat(2))).reshape(2, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != list(range(100))
    assert first.tolist() != second.tolist()
    assert all(label <= place + 10 for place, label in enumerate(first))  # it cannot come before it was read
    assert streamed(shuffled.repeat(2)) == [*first, *second]  # the seed decides
    assert len({tuple(one) for one in np.array(streamed(shuffled.repeat(2).repeat(2))).reshape(4, 100)}) == 4
    assert streamed(Stream(hundred, FEATURES).shuffle(10, seed=2)) != first.tolist()


def test_the_order_of_the_steps_counts(hundred):
    assert streamed(Stream(hundred, FEATURES).repeat(2)) == [*range(100), *range(100)]
    assert streamed(Stream(hundred, FEATURES).repeat(0)) == []
    mixed = streamed(Stream(hundred, FEATURES).repeat(2).shuffle(200))
    assert sorted(mixed) == sorted([*range(100), *range(100)])
    assert len(set(mixed[:100])) < 100  # the passes mix, as in tf.data
    endless = iter(Stream(hundred, FEATURES).repeat().batch(30))
    assert [next(endless)["label"][0].item() for _ in range(5)] == [0, 30, 60, 90, 20]


def test_an_endless_stream_of_nothing_ends(tmp_path):
    assert streamed(Stream(stored(tmp_path / "none.tfrecord", []), FEATURES).repeat()) == []


def test_the_last_batch_may_be_dropped(hundred):
    stream = Stream(hundred, FEATURES)
    assert [len(batch) for batch in streamed(stream.batch(30))] == [30, 30, 30, 10]
    assert [len(batch) for batch in streamed(stream.batch(30, drop_last=True))] == [30, 30, 30]


def test_steps_that_make_no_sense_are_refused(hundred):
    stream = Stream(hundred, FEATURES)
    for step in (
        lambda: stream.shard(2, 2),
        lambda: stream.shard(0, 0),
        lambda: stream.shuffle(0),
        lambda: stream.repeat(-1),
        lambda: stream.batch(0),
        lambda: stream.batch(3).shuffle(10),
    ):
        with pytest.raises(ConfigError):
            step()


@pytest.mark.slow
def test_workers_of_a_dataloader_share_the_records(hundred):
    loader = DataLoader(Stream(hundred, FEATURES).shuffle(10).batch(7), batch_size=None, num_workers=2)
    assert sorted(label for batch in streamed(loader) for label in batch) == list(range(100))


# --- written


def test_what_is_written_is_read_and_told(tmp_path):
    made = write(tmp_path / "new" / "place", {"train": Part(10, record), "validation": Part(3, record)}, shards=3)

    names = [f"{part}-0000{n}-of-00003.tfrecord" for part in ("train", "validation") for n in range(3)]
    assert [written.path.name for written in made] == names == sorted(os.listdir(tmp_path / "new" / "place"))
    assert [written.records for written in made] == [3, 3, 4, 1, 1, 1]
    assert all(written.nbytes == written.path.stat().st_size for written in made)
    assert labels(dataset(tmp_path / "new/place/train-*")) == list(range(10))


def test_files_that_exist_are_never_replaced(tmp_path):
    write(tmp_path, {"train": Part(2, record)})
    before = (tmp_path / "train-00000-of-00001.tfrecord").read_bytes()
    for shards in (1, 2):  # a second set beside the first would be read with it
        with pytest.raises(ConfigError, match=r"train-00000-of-00001.tfrecord exists already"):
            write(tmp_path, {"validation": Part(9, record), "train": Part(9, record)}, shards=shards)
    assert os.listdir(tmp_path) == ["train-00000-of-00001.tfrecord"]
    assert (tmp_path / "train-00000-of-00001.tfrecord").read_bytes() == before


def test_another_process_that_is_quicker_is_not_overwritten(tmp_path):
    def quicker(number):
        (tmp_path / "train-00000-of-00001.tfrecord").write_bytes(b"theirs")
        return record(number)

    with pytest.raises(ConfigError, match="exists already"):
        write(tmp_path, {"train": Part(1, quicker)})
    assert (tmp_path / "train-00000-of-00001.tfrecord").read_bytes() == b"theirs"
    assert len(os.listdir(tmp_path)) == 1


def test_a_failure_leaves_nothing(tmp_path):
    def fails(number):
        raise OSError(28, "No space left on device") if number else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"train": Part(5, fails)})
    with pytest.raises(InputError, match="No space left"):
        write(tmp_path, {"train": Part(5, lambda number: record(number) if number < 3 else fails(number))})
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file", {"train": Part(5, record)})


def test_all_data_are_on_the_disk_before_a_file_has_its_name(tmp_path, monkeypatch):
    calls, fsync, link = [], os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("flushed") or fsync(file))
    monkeypatch.setattr(os, "link", lambda made, path: calls.append("named") or link(made, path))
    write(tmp_path, {"train": Part(5, record)}, shards=2)
    assert calls == ["flushed", "flushed", "named", "named"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path, {"train": Part(5, record)})
    assert labels(dataset(tmp_path / "train*")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shards", [0, -1, 6])
def test_shards_that_cannot_be_filled_are_refused(tmp_path, shards):
    with pytest.raises(ConfigError, match=f"5 train records cannot be written into {shards} files"):
        write(tmp_path, {"train": Part(5, record)}, shards=shards)


# --- TensorFlow itself

IMAGE = {"image_raw": ("uint8", [784]), "pixels": ("int64", []), "label": ("int64", [])}


@pytest.mark.parametrize("name", ["tensorflow.tfrecord", "tensorflow.tfrecord.gz"])
def test_a_file_of_tensorflow_makes_batches(name):
    data = TFRecords(HERE / name, features=IMAGE, inputs="image_raw", target="label", cache_index=False)
    images, target = data.batch(torch.tensor([2, 0, 3]))
    assert target.tolist() == [2, 0, 3]
    assert [bytes(image.tolist()) for image in images] == [EXAMPLES[n]["image_raw"][0] for n in (2, 0, 3)]


def python_with_tensorflow():
    python = os.environ.get("TENSORFLOW_PYTHON") or (sys.executable if find_spec("tensorflow") else None)
    return python or pytest.skip("tensorflow is not installed; set TENSORFLOW_PYTHON to a Python that has it")


@pytest.mark.slow
def test_tensorflow_reads_what_evener_wrote(tmp_path):
    python = python_with_tensorflow()
    wrote = {"image": bytes(range(256)), "label": -3, "many": np.arange(-70_000, 70_000), "none": [],
             "größe": [1.5, 1e-40], "texts": ["Ä", b"", b"\xff"], "no floats": np.empty(0, np.float32)}  # fmt: skip
    made = write(tmp_path, {"train": Part(3, lambda n: encode({**wrote, "label": n - 1}))}, shards=2)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run([python, HERE / "make_tfrecord.py", "read", *(w.path for w in made)], text=True, check=True,
                          capture_output=True, env=clean, timeout=100).stdout  # fmt: skip
    lines = [json.loads(line) for line in told.splitlines() if re.match(r"\{", line)]

    assert [line["label"] for line in lines] == [["int64_list", [n - 1]] for n in range(3)]
    for line in lines:
        assert line["image"] == ["bytes_list", [bytes(range(256)).hex()]]
        assert line["many"] == ["int64_list", list(range(-70_000, 70_000))]
        assert line["none"] == ["bytes_list", []]
        assert line["größe"] == ["float_list", np.array([1.5, 1e-40], np.float32).tolist()]
        assert line["texts"] == ["bytes_list", ["Ä".encode().hex(), "", "ff"]]
        assert line["no floats"] == ["float_list", []]
