"""A recipe's images as TFRecord files: converted, trained from, with the results of the files they were made of."""

import re
from pathlib import Path

import pytest
import torch
from make_tfrecord import EXAMPLES
from test_mnist_files import contents, store

import evener
from evener.cli import main as cli
from evener.cli.endings import FAILED
from evener.data import mnist
from evener.data.batches import Batches
from evener.data.tfrecord import Part, decode, encode, images, write
from evener.data.tfrecord.records import opened, walk
from evener.errors import ConfigError, InputError
from evener.state.checkpoint import load as load_checkpoint


@pytest.fixture
def idx(tmp_path):
    directory = tmp_path / "idx"
    directory.mkdir()
    store(directory, contents(train=11, validation=4))
    return directory


def convert(*words):
    return cli.main(["data", "convert", "mnist", "--to", "tfrecord", *map(str, words)])


@pytest.mark.parametrize("which", [(), ("--data", "mnist")], ids=["found", "named"])
def test_the_command_says_what_it_wrote(which, idx, tmp_path, capsys):
    out = tmp_path / "out"
    assert convert(out, "--shards", 2, *which, "--data-dir", idx) == cli.OK

    lines = capsys.readouterr().out.splitlines()
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert lines == [
        f"{out}/train-00000-of-00002.tfrecord: 5 records, {sizes['train-00000-of-00002.tfrecord']:,} bytes",
        f"{out}/train-00001-of-00002.tfrecord: 6 records, {sizes['train-00001-of-00002.tfrecord']:,} bytes",
        f"{out}/validation-00000-of-00002.tfrecord: 2 records, {sizes['validation-00000-of-00002.tfrecord']:,} bytes",
        f"{out}/validation-00001-of-00002.tfrecord: 2 records, {sizes['validation-00001-of-00002.tfrecord']:,} bytes",
        f"in all 15 records, {sum(sizes.values()):,} bytes",
    ]


def test_the_schema_is_the_tutorials(idx, tmp_path):
    images.convert(mnist.load(idx), tmp_path / "out")
    path = tmp_path / "out" / "train-00000-of-00001.tfrecord"
    found = [decode(record.data) for record in walk(opened(path), data=True)]
    assert len(found) == 11
    for number, features in enumerate(found):
        assert features.keys() == EXAMPLES[0].keys()
        assert features["image_raw"] == [bytes([number]) * 784]
        assert features["pixels"].tolist() == [784]
        assert features["label"].tolist() == [number % 10]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--shards", "0"], cli.USAGE, "cannot be written into 0 files"),
        (["--shards", "12"], cli.USAGE, "11 train records cannot be written into 12 files"),
        (["--to", "csv"], cli.USAGE, "cannot be converted to 'csv'"),
        (["--shard", "2", "--nonsense"], cli.USAGE, "unknown option"),
        (["--data-dir", "nowhere"], FAILED, "MNIST is not complete in nowhere"),
    ],
)
def test_what_cannot_be_converted_is_said(idx, tmp_path, capsys, words, status, said):
    assert convert(tmp_path / "out", "--data", "mnist", "--data-dir", idx, *words) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_that_exist_are_refused(idx, tmp_path, capsys):
    words = [tmp_path / "out", "--data", "mnist", "--data-dir", idx]
    assert [convert(*words), convert(*words)] == [cli.OK, cli.USAGE]
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "target"),
    [
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4)),
        (torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.int64)),
    ],
    ids=["inputs", "labels", "several labels"],
)
def test_data_that_are_no_images_with_whole_labels_are_refused(tmp_path, inputs, target):
    recipe = evener.Recipe(
        model=lambda: torch.nn.Linear(2, 2),
        data=lambda: (inputs, target),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        name="floats",
    )
    with pytest.raises(ConfigError, match="data of floats cannot be converted"):
        evener.api.convert(recipe, tmp_path / "out")


def test_the_batches_are_those_of_the_idx_files(idx, tmp_path):
    from_idx = mnist.load(idx)
    images.convert(from_idx, tmp_path / "out", shards=3)
    converted = images.load(tmp_path / "out", pixels=784)
    assert converted.train.thread_safe  # read while the batch before is computed
    for part in ("train", "validation"):
        first, second = (Batches(getattr(data, part), batch_size=4, seed=5) for data in (from_idx, converted))
        for lease in range(8):
            for left, right in zip(first.batch(lease), second.batch(lease), strict=True):
                assert left.dtype == right.dtype
                assert torch.equal(left, right)


def trained(tmp_path, name, **options):
    result = evener.run("mnist", train_steps=12, batch_size=4, seed=3, quiet=True, logdir=tmp_path / name,
                        recipe_options={"hidden": 7, **options})  # fmt: skip
    return load_checkpoint(Path(result.checkpoint))[1].parameters, result


def test_training_gives_the_same_bits_as_from_the_idx_files(idx, tmp_path):
    images.convert(mnist.load(idx), tmp_path / "out", shards=2)
    first, one = trained(tmp_path, "a", data="mnist", data_dir=str(idx))
    second, other = trained(tmp_path, "b", data="tfrecord", data_dir=str(tmp_path / "out"))

    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one.validation_accuracy == other.validation_accuracy


@pytest.mark.slow
def test_workers_that_share_leases_give_the_same_bits_too(tmp_path, capsys):
    assert convert(tmp_path / "out") == cli.OK  # the digits
    losses = set()
    for name, words in {"a": ["digits"], "b": ["tfrecord", "--data-dir", str(tmp_path / "out")]}.items():
        result = evener.run(
            "mnist", ps=1, workers=2, mode="sync", train_steps=20, quiet=True, logdir=tmp_path / name,
            recipe_options={"data": words[0]} | ({"data_dir": words[2]} if words[1:] else {}),
        )  # fmt: skip
        losses.add(result.validation["validation_loss"])
    assert len(losses) == 1


def example(number):
    return encode({"image_raw": bytes([number]) * 784, "pixels": 784, "label": number})


def test_a_damaged_file_ends_the_run_or_its_records_are_left_out(tmp_path, capsys):
    (made,) = write(tmp_path / "out", {"train": Part(9, example)})
    content = bytearray(made.path.read_bytes())
    content[2000] ^= 1
    made.path.write_bytes(content)

    with pytest.raises(InputError, match=r"train-00000-of-00001\.tfrecord: record 2 at byte 1720 is bad"):
        trained(tmp_path, "a", data="tfrecord", data_dir=str(tmp_path / "out"))
    trained(tmp_path, "b", data="tfrecord", data_dir=str(tmp_path / "out"), skip_bad_records="true")
    assert "skipped 1 bad record, kept 8" in capsys.readouterr().err


def test_old_files_are_found_by_the_beginning_of_their_names(tmp_path):
    (made,) = write(tmp_path / "out", {"train": Part(3, example)})
    made.path.rename(tmp_path / "train.tfrecords")
    data = images.load(tmp_path, pixels=784)
    assert len(data.train) == 3
    assert data.validation is None


def test_a_directory_without_files_is_named(tmp_path):
    for directory, why in ((tmp_path, "are named train"), (tmp_path / "nowhere", "no such directory")):
        with pytest.raises(InputError, match=r"no file train\*\.tfrecord in") as caught:
            images.load(directory, pixels=784)
        assert why in caught.value.why


def test_options_that_do_not_belong_together_are_refused():
    with pytest.raises(ConfigError, match="needs the directory of the TFRecord files"):
        evener.recipes.recipe.resolve("mnist", {"data": "tfrecord"})
    with pytest.raises(ConfigError, match="option skip_bad_records=True"):
        evener.recipes.recipe.resolve("mnist", {"skip_bad_records": "true"})


def test_the_programs_of_the_manual_run(tmp_path, monkeypatch):
    manual = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    monkeypatch.chdir(tmp_path)
    assert "$ evener data convert mnist --to tfrecord digits" in manual
    assert convert("digits") == cli.OK
    own, stream, writing = ({}, {}, {})
    for block, names in zip(re.findall(r"```python\n(.*?)```", manual, re.DOTALL), (own, stream, writing), strict=True):
        exec(block, names)
    data = own["recipe"]().data()
    assert [len(part) for part in data] == [1437, 360]
    assert data[0].batch(torch.tensor([0]))[0].shape == (1, 784)
    assert stream["images"].shape[1] == 784
    assert len(list(tmp_path.glob("squares/train-*"))) == 4
