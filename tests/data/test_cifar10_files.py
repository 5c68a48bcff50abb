"""CIFAR-10 from files and archives, whole and damaged."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from local_mirror import Server

from evener.data import cifar10
from evener.data.cifar10_files import CLASSES
from evener.data.tfrecord import Part, encode, images, write
from evener.errors import InputError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"
with_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real CIFAR-10 records are not in {REAL}")


def rows(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def binary(count, seed):
    """Records whose labels count up from the seed."""
    labels = (np.arange(count) + seed) % 10
    return np.concatenate([labels[:, None].astype(np.uint8), rows(count, seed)], axis=1).tobytes()


def python(count, seed):
    labels = [(number + seed) % 10 for number in range(count)]
    return pickle.dumps({"data": rows(count, seed), "labels": labels, "batch_label": f"{seed}"}, 2)


BINARY = {f"data_batch_{n}.bin": binary(4, n) for n in (1, 2)} | {"test_batch.bin": binary(3, 9)}
PYTHON = {f"data_batch_{n}": python(4, n) for n in (1, 2)} | {"test_batch": python(3, 9)}


def store(directory, files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def archive(folder, files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in {"readme.html": b"<html>", "batches.meta.txt": b"airplane\n", **files}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def converted(directory):
    store(directory / "from", BINARY)
    images.convert(cifar10.load(directory / "from", transform=same), directory, shards=2)


BINARY_ARCHIVE = archive("cifar-10-batches-bin", BINARY)
PYTHON_ARCHIVE = archive("cifar-10-batches-py", PYTHON)

WAYS = {
    "binary files": lambda at: store(at, BINARY),
    "binary files in their folder": lambda at: store(at / "cifar-10-batches-bin", BINARY),
    "compressed one by one": lambda at: store(at, {f"{n}.gz": gzip.compress(c) for n, c in BINARY.items()}),
    "pickles": lambda at: store(at, PYTHON),
    "pickles in their folder": lambda at: store(at / "cifar-10-batches-py", PYTHON),
    "binary archive": lambda at: store(at, {"cifar-10-binary.tar.gz": BINARY_ARCHIVE}),
    "python archive": lambda at: store(at, {"cifar-10-python.tar.gz": PYTHON_ARCHIVE}),
    "TFRecord": converted,
}


def same(images):
    return images


@pytest.mark.parametrize("way", WAYS)
def test_every_form_gives_the_same_images_and_labels(tmp_path, way):
    WAYS[way](tmp_path)
    data = cifar10.load(str(tmp_path), transform=same)

    images, labels = data.train.batch(torch.arange(8))
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(np.concatenate([rows(4, 1), rows(4, 2)])).view(8, 3, 32, 32))
    assert labels.tolist() == [1, 2, 3, 4, 2, 3, 4, 5]
    assert labels.dtype == torch.int64
    assert data.validation.batch(torch.arange(3))[1].tolist() == [9, 0, 1]


def test_where_a_directory_holds_both_the_binary_files_are_read(tmp_path):
    store(tmp_path, {f"data_batch_{n}": python(1, 7) for n in (1, 2)} | {"test_batch": python(1, 7)} | BINARY)
    data = cifar10.load(tmp_path, transform=same)

    assert (len(data.train), len(data.validation)) == (8, 3)


def test_pickles_whose_names_are_bytes_are_read_too(tmp_path):
    for name, made in PYTHON.items():
        renamed = {key.encode(): value for key, value in pickle.loads(made).items()}
        store(tmp_path, {name: pickle.dumps(renamed, 2)})
    data = cifar10.load(tmp_path, transform=same)

    assert data.train.batch(torch.arange(8))[1].tolist() == [1, 2, 3, 4, 2, 3, 4, 5]


def test_training_batches_are_distorted_and_the_others_are_not(tmp_path):
    store(tmp_path, BINARY)
    data = cifar10.load(tmp_path, transform=same, augment=lambda images, u: images * 0 + u.shape[1], numbers=3)

    assert data.train.random_batch(torch.arange(2), torch.zeros(2, 3, dtype=torch.float64))[0].unique().tolist() == [3]
    assert torch.equal(data.train.batch(torch.tensor([0]))[0], data.train.inputs[:1])


def refused(tmp_path):
    with pytest.raises(InputError) as caught:
        cifar10.load(tmp_path, transform=same)
    assert caught.value.why
    assert caught.value.fix
    return caught.value.what


def test_nothing_there(tmp_path):
    assert refused(tmp_path) == f"CIFAR-10 is not in {tmp_path}."
    assert "not in" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("nbytes", [2 * 3073 + 100, 3072, 0])
def test_a_file_cut_short_is_named_with_record_and_offset(tmp_path, nbytes):
    store(tmp_path, BINARY | {"data_batch_2.bin": BINARY["data_batch_2.bin"][:nbytes]})
    record = nbytes // 3073
    assert refused(tmp_path) == (
        f"{tmp_path}/data_batch_2.bin is cut short: it ends at byte {nbytes}, inside record {record} (from 0), "
        f"which begins at byte {record * 3073}."
    )


def test_a_wrong_label_is_named_with_record_and_offset(tmp_path):
    content = bytearray(BINARY["data_batch_1.bin"])
    content[2 * 3073] = 77
    store(tmp_path, BINARY | {"data_batch_1.bin": bytes(content)})
    assert "record 2 (from 0), at byte 6146, has the label 77" in refused(tmp_path)


def test_a_wrong_label_in_converted_files_is_named(tmp_path):
    records = [encode({"pixels": 3072, "label": label, "image_raw": bytes(3072)}) for label in (3, -1)]
    write(tmp_path, {part: Part(2, records.__getitem__) for part in ("train", "validation")})

    assert "record 1 (from 0), has the label -1" in refused(tmp_path)


def test_converted_files_without_those_to_judge_by_are_no_data_set(tmp_path):
    converted(tmp_path)
    for path in tmp_path.glob("validation*"):
        path.unlink()

    assert "no file validation*.tfrecord" in refused(tmp_path)


def test_a_compressed_file_cut_short_says_how_far_it_could_be_read(tmp_path):
    packed = gzip.compress(BINARY["data_batch_1.bin"])
    store(tmp_path, {"data_batch_1.bin.gz": packed[: len(packed) // 2], "test_batch.bin": BINARY["test_batch.bin"]})
    what = refused(tmp_path)
    assert f"{tmp_path}/data_batch_1.bin.gz is damaged: it cannot be decompressed beyond byte " in what
    assert "in record " in what


def test_a_changed_compressed_file_is_damaged(tmp_path):
    packed = bytearray(gzip.compress(BINARY["data_batch_1.bin"]))
    packed[-5] ^= 1  # of the checksum
    store(tmp_path, {"data_batch_1.bin.gz": bytes(packed), "test_batch.bin": BINARY["test_batch.bin"]})
    assert "is damaged" in refused(tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"])
def test_an_archive_cut_short_says_where(tmp_path, name):
    content = BINARY_ARCHIVE if "binary" in name else PYTHON_ARCHIVE
    store(tmp_path, {name: content[: len(content) // 2]})
    what = refused(tmp_path)
    assert what.startswith(f"{tmp_path / name} is damaged: it cannot be unpacked beyond byte ")


def test_a_damaged_member_of_an_archive_is_named(tmp_path):
    files = BINARY | {"data_batch_2.bin": BINARY["data_batch_2.bin"][:-1]}
    store(tmp_path, {"cifar-10-binary.tar.gz": archive("cifar-10-batches-bin", files)})
    assert "cifar-10-binary.tar.gz: cifar-10-batches-bin/data_batch_2.bin is cut short" in refused(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_pickle_that_would_run_something_is_refused_and_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(tmp_path / "data", PYTHON | {"data_batch_2": pickle.dumps({"data": Evil(), "labels": []}, 2)})
    what = refused(tmp_path / "data")
    assert "data_batch_2 cannot be read: it names posix.system" in what
    assert "at byte" in what
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ([1, 2], "no array 'data'"),
        ({"data": rows(2, 0)[:, :100], "labels": [0, 1]}, "no array 'data'"),
        ({"data": rows(2, 0), "fine_labels": [0, 1]}, "no list 'labels'"),
        ({"data": rows(2, 0), "labels": [0, "cat"]}, "no list 'labels'"),
        ({"data": rows(2, 0), "labels": [0]}, "2 images, but 1 labels"),
        ({"data": rows(2, 0), "labels": [0, 10]}, "record 1 (from 0), has the label 10"),
    ],
)
def test_other_pickles_are_not_taken_for_cifar10(tmp_path, made, what):
    store(tmp_path, PYTHON | {"data_batch_1": pickle.dumps(made, 2)})
    assert what in refused(tmp_path)


@pytest.mark.parametrize(("gone", "missing"), [("data_batch_2.bin", "data_batch_2"), ("test_batch.bin", "test_batch")])
def test_a_gap_between_the_batches_is_no_data_set(tmp_path, gone, missing):
    store(tmp_path, {n: c for n, c in (BINARY | {"data_batch_3.bin": binary(1, 3)}).items() if n != gone})
    assert refused(tmp_path) == f"CIFAR-10 is not complete in {tmp_path}: no {missing}."


@pytest.mark.parametrize("form", ["plain", "gzip", "archive"])
def test_a_file_that_unpacks_to_more_than_there_is_memory_for_is_refused(tmp_path, monkeypatch, form):
    monkeypatch.setattr(cifar10, "MAX_NBYTES", 2 * 3073)
    if form == "archive":
        store(tmp_path, {"cifar-10-binary.tar.gz": BINARY_ARCHIVE})
    else:
        pack = gzip.compress if form == "gzip" else bytes
        store(tmp_path, {name: pack(content) for name, content in BINARY.items()})
    assert "is too large" in refused(tmp_path)


@pytest.fixture
def mirror(monkeypatch):
    """A mirror with a small CIFAR-10; its checksum takes the place of the official one."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    server.files = {"/~kriz/cifar-10-binary.tar.gz": BINARY_ARCHIVE}
    changed = cifar10.ARCHIVES | {"cifar-10-binary.tar.gz": hashlib.sha256(BINARY_ARCHIVE).hexdigest()}
    monkeypatch.setattr(cifar10, "ARCHIVES", changed)
    monkeypatch.setattr(cifar10.download, "__defaults__", ([f"{server.base}/gone/", f"{server.base}/~kriz/"],))
    yield server
    server.close()


def test_download_fetches_the_archive_checks_it_and_reads_it(tmp_path, mirror, capfd):
    data = cifar10.load(tmp_path / "new", download=True, transform=same)

    assert (len(data.train), len(data.validation)) == (8, 3)
    assert os.listdir(tmp_path / "new") == ["cifar-10-binary.tar.gz"]
    assert "downloading cifar-10-binary.tar.gz" in capfd.readouterr().err


def test_what_is_there_is_not_downloaded(tmp_path, mirror):
    for way in ("binary files", "python archive"):
        WAYS[way](tmp_path / way)
        cifar10.download(tmp_path / way)
    assert mirror.asked == []


def test_another_file_under_that_name_is_not_kept(tmp_path, mirror):
    mirror.files["/~kriz/cifar-10-binary.tar.gz"] = PYTHON_ARCHIVE
    with pytest.raises(InputError, match="could not be downloaded") as caught:
        cifar10.download(tmp_path)
    assert "wrong checksum" in caught.value.why
    assert os.listdir(tmp_path) == []


@with_real
def test_the_real_records():
    data = cifar10.load(REAL, transform=same)
    images, labels = data.validation.batch(torch.arange(1000))

    assert (len(data.train), len(data.validation)) == (10_000, 1000)
    assert [CLASSES[label] for label in labels[:4]] == ["cat", "ship", "ship", "airplane"]
    assert torch.bincount(data.train.target).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert data.train.inputs.float().mean((0, 2, 3)).tolist() == pytest.approx([125.3, 123.0, 113.9], abs=1.0)
    assert images.shape == (1000, 3, 32, 32)
