"""Spoilt files, many of them, through everything that reads what strangers hand over: `make fuzz`.

    python tests/properties/fuzzing_files.py --n 100000 --seed 1

Each reader must end with data or with an EvenerError. Memory is bounded as `fuzzing` bounds it. A reader that does not
end is ended after a minute of processor time, and its file is named.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

import numpy as np
import torch

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent), str(Path(__file__).parents[1] / "data")]
from file_mutations import FileMutator, idx, program, sealed
from fuzzing import measured
from training import recipe_of, restored, save, shards_of, train

from evener.audit import audit
from evener.cluster import tf_config
from evener.data import cifar10, cifar10_files, mnist
from evener.data.tfrecord import TFRecords, crc, encode, index
from evener.errors import EvenerError
from evener.ledger import Begin, Ledger, granted, lost, path_of
from evener.ledger.reading import beginnings, read
from evener.policy.leases import LeaseState
from evener.state.checkpoint import MANIFEST, Store, load
from evener.state.locks import Lock
from evener.task import rendezvous
from evener.task.grants import _read as read_grants
from evener.transport import keys
from evener.weights import read as read_weights, write as write_weights

#: Seconds of processor time for one file.
PATIENCE = 60

RECIPE = recipe_of(
    lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    lr_scheduler=lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, 3),
    ema_decay=0.9,
)


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read a file: what may come, and how it is read."""

    name: str
    make: Callable[[FileMutator], bytes]
    read: Callable[[bytes], object]
    share: float = 1.0


def fuzz_files(files: int, seed: int) -> Counter[str]:
    """So many files in all, over all readers. How many of each were read, and how many refused."""
    outcomes: Counter[str] = Counter()
    rng = Random(f"files {seed}")
    mutator = FileMutator(rng)
    # What readers say of bad records is not looked at.
    with tempfile.TemporaryDirectory() as directory, Patience(), redirect_stderr(io.StringIO()):
        readers = all_readers(Path(directory))
        for number in range(files):
            (reader,) = rng.choices(readers, [reader.share for reader in readers])
            content = reader.make(mutator)
            signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
            try:
                reader.read(content)
                outcomes[f"{reader.name} read"] += 1
            except EvenerError as refused:
                assert str(refused), f"{reader.name}, seed {seed}, file {number}: refused without a word"
                assert len(str(refused)) < 4000, f"{reader.name}, seed {seed}, file {number}: refused at length"
                outcomes[f"{reader.name} refused"] += 1
            except BaseException as error:
                kept = Path(tempfile.gettempdir()) / f"fuzzed-{reader.name}-{seed}-{number}"
                kept.write_bytes(content)
                raise AssertionError(f"{reader.name}, seed {seed}, file {number}, kept as {kept}: {error!r}") from error
    return outcomes


class Patience:
    """Ends a reader that does not end by itself; the file is then named as any that fails."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGVTALRM, self._late)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, self._before)

    def _late(self, _signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no end within {PATIENCE} s of processor time")


# --- readers


def all_readers(directory: Path) -> list[Reader]:
    return [
        *data_readers(directory), *record_readers(directory), *checkpoint_readers(directory), *small_readers(directory),
        *ledger_readers(directory), *weight_readers(directory),
    ]  # fmt: skip


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def data_readers(directory: Path) -> Iterator[Reader]:
    from test_cifar10_files import BINARY_ARCHIVE, PYTHON, archive
    from test_pickled import PYTHON_2

    rows, labels = bytes(range(256)) * 49, bytes([0, 1, 2, 9])  # four images
    pickle, folder = PYTHON["data_batch_1"], directory / "cifar"
    records = bytes([3, *bytes(3072)] * 2)
    written(folder / "test_batch.bin", records)
    archives = directory / "archives"
    images, other = directory / "mnist" / "train-images-idx3-ubyte", directory / "mnist" / "train-labels-idx1-ubyte"
    for half in ("train", "t10k"):
        written(images.with_name(f"{half}-images-idx3-ubyte"), idx(rows[: 4 * 784], 4, 28, 28))
        written(other.with_name(f"{half}-labels-idx1-ubyte"), idx(labels, 4))

    yield Reader("pickle", lambda m: m.bytes(m.rng.choice([pickle, PYTHON_2])), lambda c: cifar10_files.pickles(c, "x"))
    yield Reader("program", lambda m: program(m.rng), lambda c: cifar10_files.pickles(c, "x"), 2)
    yield Reader("batch", lambda m: m.bytes(records), lambda c: _batch(folder / "data_batch_1.bin", c))
    yield Reader("packed batch", lambda m: m.packed(records), lambda c: _batch(folder / "data_batch_1.bin", c))
    yield Reader("archive", lambda m: m.bytes(BINARY_ARCHIVE),
                 lambda c: cifar10.read(written(archives / "cifar-10-binary.tar.gz", c).parent))  # fmt: skip
    plain = gzip.decompress(archive("x", {"data_batch_1.bin": records, "test_batch.bin": records}))
    yield Reader("packed archive", lambda m: m.packed(plain),
                 lambda c: cifar10.read(written(archives / "cifar-10-binary.tar.gz", c).parent))  # fmt: skip
    yield Reader("images", lambda m: m.bytes(idx(rows[: 4 * 784], 4, 28, 28)),
                 lambda c: mnist.load(written(images, c).parent))  # fmt: skip
    yield Reader("packed images", lambda m: m.packed(idx(rows[: 4 * 784], 4, 28, 28)),
                 lambda c: mnist.load(written(images, c).parent))  # fmt: skip
    yield Reader("labels", lambda m: m.bytes(idx(labels, 4)), lambda c: mnist.load(_labels(images, other, c)))


def _batch(path: Path, content: bytes) -> object:
    return cifar10.read(written(path, content).parent)


def _labels(images: Path, labels: Path, content: bytes) -> Path:
    shutil.copy(images.with_name("t10k-images-idx3-ubyte"), images)
    return written(labels, content).parent


def record_readers(directory: Path) -> Iterator[Reader]:
    path = directory / "records" / "x.tfrecord"
    examples = [encode({"x": bytes([n, 1, 2]), "label": n, "also": [0.5, n], "many": list(range(n))}) for n in range(9)]

    def framed(example: bytes) -> bytes:
        return crc.head(len(example)) + example + crc.tail(example)

    whole = b"".join(map(framed, examples))

    def all_of(content: bytes, *, skip: bool) -> object:
        index.path_of(path).unlink(missing_ok=True)
        features = {"x": ("uint8", [3]), "label": ("int64", [])}
        data = TFRecords(written(path, content), features=features, inputs="x", target="label", skip_bad_records=skip)
        return data.batch(torch.arange(len(data)))

    def kept(content: bytes) -> object:
        written(path, whole)
        written(index.path_of(path), content + crc.tail(content))
        return index.index(index.OnDisk(path))

    yield Reader("records", lambda m: m.bytes(whole), lambda c: all_of(c, skip=False))
    yield Reader("records, skipping", lambda m: m.bytes(whole * 5), lambda c: all_of(c, skip=True))
    yield Reader("packed records", lambda m: m.packed(whole), lambda c: all_of(c, skip=False))
    yield Reader("examples", lambda m: b"".join(framed(m.bytes(example)) for example in examples),
                 lambda c: all_of(c, skip=False), 2)  # fmt: skip
    stamp = index.OnDisk(written(path, whole))
    about = {"format": index.FORMAT, "stamp": (*stamp.stamp, stamp.time_ns), "checked": True, "skipped": 0}
    numbers = np.arange(18, dtype="<i8").tobytes()
    yield Reader("index", lambda m: m.json(about) + b"\n" + m.bytes(numbers), kept)


def checkpoint_readers(directory: Path) -> Iterator[Reader]:
    store, states = Store(directory / "run" / "checkpoints"), shards_of(RECIPE, 2)
    train(states, 4)
    path = Path(save(store, states, next_lease=7, unapplied=[4, 5], seqs={"0": (2, 9)}))
    store.close()
    good = {file.name: file.read_bytes() for file in path.iterdir()}
    body = json.loads(good[MANIFEST])["body"]
    body["options"] = {"a": {}, "b": []}

    def loaded(name: str, content: bytes, *, seal: bool = False) -> object:
        for file, kept in good.items():
            written(path / file, kept)
        written(path / name, content)
        if seal:  # the manifest says so too
            record = {"nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            files = {**body["files"], name: record}
            written(path / MANIFEST, sealed(json.dumps({**body, "files": files}).encode()))
        manifest, contents = load(path)
        if Random(content).random() < 0.2:
            restored(RECIPE, contents, 1)
        return manifest

    yield Reader("manifest", lambda m: m.bytes(good[MANIFEST]), lambda c: loaded(MANIFEST, c))
    yield Reader("sealed manifest", lambda m: sealed(m.json(body)), lambda c: loaded(MANIFEST, c), 3)
    for kind in ("parameters", "averages", "optimizer"):
        name = f"{kind}-0.safetensors"
        yield Reader(f"shard of {kind}", lambda m, n=name: m.bytes(good[n]), lambda c, n=name: loaded(n, c, seal=True))  # type: ignore[misc]


def small_readers(directory: Path) -> Iterator[Reader]:
    grants = directory / "grants.json"
    known = {"generation": 3, "epochs": {"0": 1, "7": 2}, "holders": {"0": "x"}, "more": []}
    yield Reader("grants", lambda m: m.rng.choice([m.json, lambda v: m.bytes(json.dumps(v).encode())])(known),
                 lambda c: read_grants(written(grants, c)))  # fmt: skip
    address = directory / "ps-0"
    yield Reader(
        "address", lambda m: m.bytes(b"tcp://127.0.0.1:5555\n"), lambda c: rendezvous._read(written(address, c)), 0.3
    )
    holder = directory / "keys"
    keys.new(holder, ["ps-0", "worker-0"])
    key = (holder / "worker-0.public").read_bytes()
    secret = (holder / "worker-0.secret").read_bytes()
    yield Reader("key", lambda m: m.bytes(key), lambda c: _loaded(holder, "public", c, key), 0.3)
    yield Reader("secret", lambda m: m.bytes(secret), lambda c: _loaded(holder, "secret", c, secret), 0.3)
    locked = directory / "locked"
    yield Reader(
        "lock", lambda m: m.bytes(b"pid 1234"), lambda c: Lock(written(locked / ".lock", c).parent, str).close(), 0.3
    )
    cluster = {
        "cluster": {"ps": ["a:1"], "worker": ["b:2", "c:3"], "chief": []},
        "task": {"type": "worker", "index": 0},
    }
    yield Reader("TF_CONFIG", lambda m: m.json(cluster), lambda c: tf_config.read(c.decode()), 0.5)


def _loaded(holder: Path, suffix: str, content: bytes, good: bytes) -> object:
    path = holder / f"worker-0.{suffix}"
    try:
        path.write_bytes(content)
        return keys.load(holder, "worker-0")
    finally:
        path.write_bytes(good)


def ledger_readers(directory: Path) -> Iterator[Reader]:
    path = path_of(directory)
    ledger = Ledger(path, Begin(generation=2, run="r", mode="async", batch_size=10, seed=7))
    ledger.begin(0, 35, LeaseState(0, ()))
    for step in range(1, 9):
        ledger.update(step, [(step - 1, step % 2, 1, step)])
        ledger.drop((step + 20, 3, 1, step), "late", back=True)
        ledger.returned(4, step, [step + 40])
        ledger.cut(step, LeaseState(step, ()))
        ledger.complete()
    ledger.end(8, "enough", LeaseState(8, ()))
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)

    def spoilt(mutator: FileMutator) -> bytes:
        changed = [*lines]
        at = mutator.rng.randrange(len(lines))
        changed[at] = mutator.json(json.loads(lines[at])) + b"\n"
        return b"".join(changed)

    def judged(content: bytes) -> object:
        written(path, content)
        lost(path, 3), granted(path)
        return str(audit(beginnings(path), read(path), []))

    yield Reader("ledger", lambda m: m.bytes(b"".join(lines)), judged)
    yield Reader("lines", spoilt, judged, 2)


def weight_readers(directory: Path) -> Iterator[Reader]:
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(3, dtype=torch.bfloat16)}
    path, old, safe = (directory / name for name in ("model.pt", "old.pt", "model.safetensors"))
    for target in (path, safe):
        write_weights(state, target)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    good, legacy, tensors = path.read_bytes(), old.read_bytes(), safe.read_bytes()
    yield Reader("weights", lambda m: m.bytes(good), lambda c: read_weights(written(path, c)))
    yield Reader("old weights", lambda m: m.rng.choice([m.bytes(legacy), b"\x80\x02K\x01." * 3 + program(m.rng)]),
                 lambda c: read_weights(written(path, c)))  # fmt: skip
    yield Reader("safetensors", lambda m: m.bytes(tensors), lambda c: read_weights(written(safe, c)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100_000, help="spoilt files, over all readers together")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"seed {options.seed}", flush=True)
    print(measured(fuzz_files, options.n, options.seed), flush=True)


if __name__ == "__main__":
    main()
