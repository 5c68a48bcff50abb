"""The digits that scikit-learn carries, shown as MNIST shows its own."""

import gzip
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from evener.data import digits
from evener.errors import InputError


@pytest.fixture(scope="module")
def data():
    return digits.load()


def everything(dataset):
    return dataset.batch(torch.arange(len(dataset)))


def test_the_sizes_and_dtypes(data):
    images, labels = everything(data.train)
    assert images.shape == (1437, 784)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.01
    assert 0.9 < images.max() <= 1
    assert labels.dtype == torch.int64
    assert len(data.validation) == 360
    assert data.train.inputs.dtype == torch.uint8


def test_every_class_is_in_both_parts(data):
    for part in (data.train, data.validation):
        assert everything(part)[1].unique().tolist() == list(range(10))


def test_the_split_follows_from_the_seed_and_loses_nothing(data):
    again, other = digits.load(seed=0), digits.load(seed=1)
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert not torch.equal(data.train.target, other.train.target)
    for made in (data, other):
        labels = torch.cat([made.train.target, made.validation.target])
        assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_images_match_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    table = digits._read(digits._path())
    assert np.array_equal(table[:, :64], theirs.data)
    assert np.array_equal(table[:, 64], theirs.target)


def test_enlarging_keeps_flat_areas_flat_and_the_border_empty():
    large = digits.enlarge(np.full((2, 8, 8), 16, dtype=np.uint8))

    assert large.shape == (2, 28, 28)
    assert (large[:, 4:24, 4:24] == 255).all()
    assert large.sum(dtype=np.int64) == 2 * 20 * 20 * 255


def test_enlarging_is_bilinear():
    image = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[:, None].float() * (255 / 16), size=20, mode="bilinear"
    )[:, 0]
    ours = torch.from_numpy(digits.enlarge(image)[:, 4:24, 4:24]).float()
    assert (ours - expected).abs().max() <= 0.51


@pytest.mark.slow
def test_loading_does_not_import_scikit_learn():
    code = "import sys; from evener.data import digits; digits.load(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_scikit_learn_the_error_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="scikit-learn is not installed") as caught:
        digits.load()
    assert "pip install" in caught.value.fix


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"1,2,3\n4,5\n"), gzip.compress(b"1,2\n3,4\n")],
    ids=["no gzip", "uneven rows", "rows too short"],  # else a compressed time would stand in the name
)
def test_a_damaged_copy_is_named(monkeypatch, tmp_path, content):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(content)
    monkeypatch.setattr(digits, "_path", lambda: path)
    with pytest.raises(InputError, match=r"digits\.csv\.gz"):
        digits.load()
