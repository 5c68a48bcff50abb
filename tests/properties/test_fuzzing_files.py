"""A short run of the fuzzing of files, always with the same ones; and that it sees what it is there to see."""

from __future__ import annotations

import json
import logging
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any

import fuzzing
import fuzzing_files
import msgspec
import pytest
from file_mutations import FileMutator, program, sealed
from fuzzing import measured
from fuzzing_files import Reader, fuzz_files
from hypothesis import given, settings, strategies as st

from evener import files
from evener.data import pickled
from evener.errors import CheckpointError, InputError, VersionError
from evener.state.checkpoint import MANIFEST, read_manifest
from evener.state.manifest import Manifest
from evener.task import rendezvous


@pytest.fixture(autouse=True)
def silent() -> object:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_the_same_seed_gives_the_same_files() -> None:
    made = [[FileMutator(Random(seed)).bytes(b"x" * 100) for _ in range(50)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_every_reader_gives_data_or_refuses_and_takes_no_memory_for_it() -> None:
    story = measured(fuzz_files, 2_000, 20261128)
    for name in ("program", "archive", "records, skipping", "examples", "sealed manifest", "lines", "weights", "key"):
        assert f"{name} refused" in story or f"{name} read" in story
    for name in ("archive read", "sealed manifest read", "index read", "weights read", "grants read", "batch read"):
        assert name in story


# --- grammars, by hypothesis


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_a_program_of_any_opcodes_is_data_or_refused(seed: int) -> None:
    with suppress(pickled.PickleRefused):
        pickled.read(program(Random(seed)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)
#: Not "options": that one is as deep as the test says.
FIELDS = st.sampled_from([field.name for field in msgspec.structs.fields(Manifest) if field.name != "options"])


@settings(max_examples=200)
@given(fields=st.dictionaries(FIELDS, JSON, max_size=4), depth=st.sampled_from([0, 0, 63, 64, 5000]))
def test_a_sealed_manifest_that_says_anything_is_read_or_refused(tmp_path_factory, fields: Any, depth: int) -> None:
    path = tmp_path_factory.mktemp("x")
    known = {"step": 1, "shards": 1, "recipe": "r", "files": {}, "shapes": {}, "values": {}, "next_lease": 0,
             "unapplied": [], "seqs": {}}  # fmt: skip
    options = '{"a": %s}' % ("[" * depth + "]" * depth)
    text = json.dumps({"options": {}, **known, **fields}).replace('"options": {}', f'"options": {options}')
    (path / MANIFEST).write_bytes(sealed(text.encode()))

    with suppress(CheckpointError, VersionError):
        read_manifest(path)
        assert depth <= 64


# --- it sees what it is there to see


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    every = fuzzing_files.all_readers
    chosen = lambda directory: [reader for reader in every(directory) if reader.name in names]  # noqa: E731
    monkeypatch.setattr(fuzzing_files, "all_readers", chosen)


def test_a_reader_that_lets_another_error_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "sealed manifest")
    monkeypatch.setattr(files, "NOT_JSON", (msgspec.MsgspecError, UnicodeDecodeError))
    with pytest.raises(AssertionError, match=r"sealed manifest, seed 1, file \d+, kept as .*RecursionError"):
        fuzz_files(2000, 1)


def test_a_reader_that_takes_much_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "packed batch")
    monkeypatch.setattr(fuzzing, "CAP", 4 << 20)
    with pytest.raises(AssertionError, match="peak memory grew"):
        measured(fuzz_files, 1000, 1)


def test_a_reader_that_does_not_end_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzzing_files, "all_readers", lambda _: [Reader("endless", lambda m: m.bytes(b"x"), endless)])
    monkeypatch.setattr(fuzzing_files, "PATIENCE", 0.1)
    with pytest.raises(AssertionError, match=r"endless, seed 1, file 0, kept as .*TimeoutError"):
        fuzz_files(1, 1)


def test_a_reader_that_refuses_at_any_length_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def lengthy(_: bytes) -> None:
        raise InputError("x" * 5000)

    monkeypatch.setattr(fuzzing_files, "all_readers", lambda _: [Reader("lengthy", lambda m: m.bytes(b"x"), lengthy)])
    with pytest.raises(AssertionError, match="lengthy, seed 1, file 0: refused at length"):
        fuzz_files(1, 1)


def test_both_ways_of_a_reader_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "address")
    monkeypatch.setattr(rendezvous, "LONGEST", 30)
    assert Counter({"address read", "address refused"}) == Counter(fuzz_files(200, 1).keys())
