"""Which lives were granted: read from a file that may be missing or damaged, and made again from what else is known."""

import os

import msgspec
import pytest

from evener.errors import CheckpointError
from evener.ledger import Begin, Ledger, path_of
from evener.policy.leases import LeaseState
from evener.state.manifest import Manifest
from evener.task.server import LARGEST, Grants, _grants

MANIFEST = Manifest(
    step=100, shards=1, recipe="mnist", options={}, files={}, shapes={}, values={}, next_lease=100, unapplied=[],
    seqs={"0": (3, 50), "12": (1, 9)},
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "grants.json"


@pytest.fixture
def ledger(tmp_path):
    return path_of(tmp_path)


def written(ledger):
    made = Ledger(ledger, Begin(generation=4))
    made.begin(0, 100, LeaseState(0, ()))
    made.update(1, [(0, 0, 5, 1), (1, 1, 2, 1)])
    made.close()


def test_beside_a_copied_checkpoint_the_lives_that_it_knows_were_granted(path, ledger):
    assert _grants(path, ledger, MANIFEST) == Grants(0, {0: 3, 12: 1})
    assert _grants(path, ledger, None) == Grants()


def test_a_file_that_was_removed_is_made_again_from_ledger_and_checkpoint(path, ledger):
    written(ledger)

    assert _grants(path, ledger, MANIFEST) == Grants(4, {0: 5, 1: 2, 12: 1})


def test_a_file_that_is_there_counts_and_knows_no_less_than_the_checkpoint(path, ledger):
    path.write_bytes(msgspec.json.encode(Grants(9, {0: 7, 12: 0}, {0: "one"})))

    assert _grants(path, ledger, MANIFEST) == Grants(9, {0: 7, 12: 1}, {0: "one"})


@pytest.mark.parametrize(
    "content",
    [b"{", b"[" * 100_000, b'{"generation":-1}', b'{"epochs":{"0":1%s}}' % (b"0" * 30), b'{"epochs":{"-1":1}}',
     b'{"epochs":{"x":1}}', b"\xff", b'{"holders":5}'],
)  # fmt: skip
def test_a_damaged_one_is_refused_with_a_fix_that_works(path, ledger, content):
    written(ledger)
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=rf"{path} is damaged: ") as refused:
        _grants(path, ledger, MANIFEST)
    assert refused.value.fix.startswith("remove it if no task is running")
    path.unlink()
    assert _grants(path, ledger, MANIFEST).generation == 4


def test_what_is_no_file_or_larger_than_any_is_refused_at_once(path, ledger):
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="it is a FIFO, not a regular file"):
        _grants(path, ledger, None)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=f"it has more than {LARGEST} bytes"):
        _grants(path, ledger, None)
