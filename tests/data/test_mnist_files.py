"""MNIST from its four files."""

import gzip
import hashlib
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from local_mirror import Server

from evener.data import download, mnist
from evener.errors import InputError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "mnist"
with_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real MNIST files are not in {REAL}")


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def contents(train=5, validation=2, side=28):
    """The four files of a small MNIST: every pixel of image i is i."""
    files = {}
    for prefix, count in (("train", train), ("t10k", validation)):
        numbers = np.arange(count)
        files[f"{prefix}-images-idx3-ubyte"] = idx(np.broadcast_to(numbers[:, None, None], (count, side, side)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(numbers % 10)
    return files


def store(directory, files, compress=()):
    for name, content in files.items():
        packed = name in compress
        (directory / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [0, 2, 4])
def test_plain_and_gzip_files_may_be_mixed(tmp_path, packed):
    store(tmp_path, contents(), compress=list(mnist.FILES)[:packed])
    data = mnist.load(tmp_path)

    inputs, target = data.train.batch(torch.tensor([3, 1]))
    assert inputs.shape == (2, 784)
    assert inputs[0].unique().tolist() == pytest.approx([3 / 255])
    assert target.tolist() == [3, 1]
    assert target.dtype == torch.int64
    assert data.train.inputs.dtype == torch.uint8
    assert len(data.train) == 5
    assert len(data.validation) == 2


def test_missing_files_are_listed_with_the_way_to_get_them(tmp_path):
    files = contents()
    del files["t10k-labels-idx1-ubyte"]
    store(tmp_path, files)
    with pytest.raises(InputError, match=r"no t10k-labels-idx1-ubyte\[\.gz\]\.") as caught:
        mnist.load(str(tmp_path))
    assert str(tmp_path) in caught.value.what
    assert "--download" in caught.value.fix


def test_a_missing_directory_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError) as caught:
        mnist.load(tmp_path / "nowhere")
    assert "no such directory" in caught.value.why


def test_a_truncated_file_is_named(tmp_path):
    files = contents()
    files["train-images-idx3-ubyte"] = files["train-images-idx3-ubyte"][:-1]
    store(tmp_path, files)
    with pytest.raises(InputError, match="train-images-idx3-ubyte") as caught:
        mnist.load(tmp_path)
    assert "--download" in caught.value.fix


def test_images_and_labels_of_different_counts_are_refused(tmp_path):
    store(tmp_path, contents(train=5) | {"train-labels-idx1-ubyte": idx(np.zeros(4))})
    with pytest.raises(InputError, match=r"holds 5 images, but .* holds 4 labels"):
        mnist.load(tmp_path)


@pytest.mark.parametrize("files", [contents(side=32), contents() | {"train-labels-idx1-ubyte": idx(np.full(5, 10))}])
def test_other_images_and_labels_are_refused(tmp_path, files):
    store(tmp_path, files)
    with pytest.raises(InputError, match="are not MNIST"):
        mnist.load(tmp_path)


@pytest.fixture
def mirror(monkeypatch):
    """A mirror with a small MNIST; its checksums take the place of the official ones."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    packed = {name: gzip.compress(content, mtime=0) for name, content in contents().items()}
    server.files = {f"/mnist/{name}.gz": content for name, content in packed.items()}
    monkeypatch.setattr(mnist, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()})
    yield server
    server.close()


def test_download_fetches_what_is_missing_and_touches_nothing_else(tmp_path, mirror, capfd):
    mine = {"train-labels-idx1-ubyte": contents()["train-labels-idx1-ubyte"]}
    store(tmp_path, mine)
    mnist.download(tmp_path, [f"{mirror.base}/gone/", f"{mirror.base}/mnist/"])

    assert len(mnist.load(tmp_path).train) == 5
    assert sorted(os.listdir(tmp_path)) == sorted(name if name in mine else f"{name}.gz" for name in mnist.FILES)
    assert not any("train-labels" in path for path, _ in mirror.asked)
    assert "downloading train-images-idx3-ubyte.gz" in capfd.readouterr().err


def test_load_downloads_when_asked_to(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(mnist.download, "__defaults__", ([f"{mirror.base}/mnist/"],))
    assert len(mnist.load(tmp_path / "new", download=True).validation) == 2


def test_in_a_terminal_there_is_a_progress_bar(tmp_path, mirror, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    mnist.download(tmp_path, [f"{mirror.base}/mnist/"])
    assert "100%" in (shown := capsys.readouterr().err) or "━" in shown
    assert "t10k-labels-idx1-ubyte.gz" in shown


@with_real
def test_the_real_files():
    data = mnist.load(REAL)
    images, labels = data.validation.batch(torch.arange(10_000))

    assert len(data.train) == 60_000
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert images.mean().item() == pytest.approx(0.1325, abs=1e-4)
    assert torch.bincount(data.train.target).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@with_real
def test_the_checksums_are_those_of_the_official_files():
    # The images to train on lie there compressed anew; the others are the official files byte for byte.
    for name in list(mnist.FILES)[1:]:
        assert download._digest(REAL / f"{name}.gz") == mnist.FILES[name]


@with_real
def test_a_truncated_real_file_is_refused(tmp_path):
    for name in mnist.FILES:
        shutil.copy(REAL / f"{name}.gz", tmp_path)
    damaged = tmp_path / "t10k-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:100_000])
    with pytest.raises(InputError, match="t10k-images"):
        mnist.load(tmp_path)
