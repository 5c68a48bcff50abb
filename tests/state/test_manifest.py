"""A manifest is believed as far as it can be true: what cannot be is damage, and older checkpoints are tried."""

import hashlib
import json
import os

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save as save_safetensors
from training import recipe_of, restored, save, sgd, shards_of, train

from evener.errors import CheckpointError
from evener.policy.leases import LeaseState
from evener.policy.stretches import StretchState
from evener.state import checkpoint, manifest as manifests
from evener.state.checkpoint import MANIFEST, Store, load, read_manifest

RECIPE = recipe_of(lambda model: torch.optim.Adam(model.parameters(), lr=0.01))


@pytest.fixture
def store(tmp_path):
    """Two checkpoints; a test spoils the newer one, that of step 2."""
    made, states = Store(tmp_path / "checkpoints"), shards_of(RECIPE)
    for _ in range(2):
        train(states, 1)
        save(made, states, next_lease=7, unapplied=[4, 5], seqs={"0": (2, 9)})
    yield made
    made.close()


def sealed(body: bytes) -> bytes:
    return b'{"sha256":"%s","body":%s}' % (hashlib.sha256(body).hexdigest().encode(), body)


def spoilt(store, **changes):
    """Seal another manifest; `changes` name its fields."""
    path = store.path(2) / MANIFEST
    body = json.loads(path.read_bytes())["body"] | changes
    path.write_bytes(sealed(json.dumps(body).encode()))


def older(store, reason):
    """The older one is loaded, and the newer one's damage told."""
    told = []
    assert store.newest(told.append)[0].step == 1
    (line,) = told
    assert "the checkpoint of step 2 is skipped: " in line
    assert reason in line
    return line


RECORD = {"nbytes": 1, "sha256": "x"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 77}, "it is of step 77"),
        ({"next_lease": -5}, "next_lease is -5"),
        ({"next_lease": 2**62}, f"next_lease is {2**62}"),
        ({"next_lease": 10**400, "unapplied": []}, "next_lease is 1000"),
        ({"unapplied": [3, 3]}, "a lease is unapplied twice"),
        ({"unapplied": [7]}, "a lease is unapplied that is not of 0 to 6"),
        ({"unapplied": [-1]}, "a lease is unapplied that is not of 0 to 6"),
        ({"shards": 0}, "it has 0 shards"),
        ({"samples": -1}, "samples is -1"),
        ({"seqs": {"boo": [1, 1]}}, "worker 'boo' made push (1, 1)"),
        ({"seqs": {"\u00b2": [1, 1]}}, "made push (1, 1)"),
        ({"seqs": {"0": [-1, 1]}}, "worker '0' made push (-1, 1)"),
        ({"files": {"parameters-/../../../etc/passwd": RECORD}}, "it has a file 'parameters-/../../../etc/passwd'"),
        ({"files": {"later/../../kind": RECORD}}, "it has a file 'later/../../kind'"),
        ({"shapes": {"first.weight": [2**60]}}, "a tensor has a size that none can have"),
        ({"shapes": {"first.weight": [-1]}}, "a tensor has a size that none can have"),
        ({"parts": {"x": ["first.weight", -4, 4]}}, "a tensor has a size that none can have"),
        ({"values": {"0": {"groups": 5}}}, "the optimizer's groups are none"),
        ({"values": {"0": {"groups": [{"params": [1]}]}}}, "the optimizer's groups are none"),
        ({"values": {"0": {"numbers": []}}}, "numbers is no object"),
        ({"values": {"0": {"schedule": 1}}}, "schedule is no object"),
        ({"values": {"0": []}}, "is not a manifest of evener"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_damage(store, changes, reason):
    spoilt(store, **changes)

    older(store, reason)


def test_options_nested_deeper_than_any_are_damage(store):
    deep = 1
    for _ in range(100):
        deep = [{"a": deep}]
    spoilt(store, options={"a": deep})

    older(store, "more than 64 lists and objects in each other")


@pytest.mark.parametrize("where", ["body", "unknown field"])
def test_json_nested_too_deep_to_be_read_is_damage(store, where):
    body = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    if where == "unknown field":
        known = json.loads((store.path(2) / MANIFEST).read_bytes())["body"]
        body = json.dumps(known).encode()[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}"
    (store.path(2) / MANIFEST).write_bytes(sealed(body))

    older(store, "is not a manifest of evener")


def test_a_manifest_of_many_gigabytes_is_not_read(store):
    with (store.path(2) / MANIFEST).open("r+b") as file:
        file.truncate(1 << 40)

    older(store, f"it has more than {manifests.LARGEST} bytes")


def test_a_later_kind_of_file_is_passed_over(store):
    known = json.loads((store.path(2) / MANIFEST).read_bytes())["body"]["files"]
    spoilt(store, files={**known, "journal-0.bin": RECORD})

    assert load(store.path(2))[0].step == 2


@pytest.mark.parametrize("name", [MANIFEST, "parameters-0.safetensors"])
@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a directory"])
def test_what_is_no_file_is_damage_and_not_waited_for(store, name, kind):
    file = store.path(2) / name
    file.unlink()
    if kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()

    older(store, f"it is {kind}, not a regular file")


def test_tensors_for_which_there_is_no_memory_are_damage(store, monkeypatch):
    monkeypatch.setattr(checkpoint, "memory", lambda: 100)
    with pytest.raises(CheckpointError, match=r"has \d+ bytes, more than there is memory for"):
        load(store.path(2))


def rewritten(store, kind, data):
    """Other content of a file of tensors, as its manifest says."""
    name = f"{kind}-0.safetensors"
    (store.path(2) / name).write_bytes(data)
    files = json.loads((store.path(2) / MANIFEST).read_bytes())["body"]["files"]
    spoilt(store, files={**files, name: {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


@pytest.mark.parametrize(
    "header",
    [{"first.weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 16]}},
     {"first.weight": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}},
     {"first.weight": {"dtype": "BOO", "shape": [4], "data_offsets": [0, 16]}}],
    ids=["shape", "four bits", "unknown"],
)  # fmt: skip
def test_a_header_of_tensors_that_cannot_be_is_damage(store, header):
    text = json.dumps(header).encode()
    rewritten(store, "parameters", len(text).to_bytes(8, "little") + text + bytes(16))

    older(store, "parameters-0.safetensors is not a safetensors file")


def test_a_parameter_that_is_not_a_number_is_damage_for_none_was_written(store):
    tensors = load_file(store.path(2) / "parameters-0.safetensors")
    tensors["scale"].fill_(float("nan"))
    spoilt(store, buffers=["mask"])
    rewritten(store, "parameters", save_safetensors(tensors))

    older(store, "is damaged: 'scale' is NaN or infinite in it")


def test_parts_that_do_not_fit_together_are_damage(store):
    tensors = load_file(store.path(2) / "parameters-0.safetensors")
    tensors["here"] = tensors.pop("scale")
    rewritten(store, "parameters", save_safetensors(tensors))
    spoilt(store, parts={"here": ["scale", 0, tensors["here"].numel()]}, shapes={"scale": [12345]})

    older(store, "parts of a tensor do not fit together")


@pytest.mark.parametrize(
    "values",
    [
        {"groups": [{"lr": "boo", "params": []}]},
        {"numbers": {"first.weight/step": {"@": "tensor", "dtype": "load", "is": 1}}},
        {"numbers": {"first.weight/step": {"@": "dict", "is": [[[], 1]]}}},
        {"numbers": {"first.weight/step": {"@": "float", "is": "boo"}}},
    ],
    ids=["lr", "tensor", "dict", "float"],
)
def test_settings_of_an_optimizer_that_cannot_be_are_told_as_the_checkpoints(store, values):
    known = json.loads((store.path(2) / MANIFEST).read_bytes())["body"]["values"]["0"]
    if "groups" in values:
        values["groups"][0]["params"] = known["groups"][0]["params"]
    spoilt(store, values={"0": {**known, **values}})

    with pytest.raises(CheckpointError, match="what it keeps of optimizer or schedule does not fit") as refused:
        restored(RECIPE, load(store.path(2))[1], 1)
    assert "--hyperparameters recipe" in refused.value.fix


def test_a_schedule_that_cannot_be_is_told_as_the_checkpoints(tmp_path):
    recipe = recipe_of(sgd, lr_scheduler=lambda o, _: torch.optim.lr_scheduler.StepLR(o, 3))
    store, states = Store(tmp_path / "checkpoints"), shards_of(recipe)
    states[0].begin(10)
    train(states, 2)
    save(store, states)
    known = json.loads((store.path(2) / MANIFEST).read_bytes())["body"]["values"]["0"]
    spoilt(store, values={"0": {**known, "schedule": {"last_epoch": "x", "_step_count": None}}})

    with pytest.raises(CheckpointError, match="'last_epoch' is 'x' in it, 0 here"):
        restored(recipe, load(store.path(2))[1], 1)
    store.close()


def test_a_checkpoint_may_be_copied_under_another_name(store, tmp_path):
    store.path(2).rename(tmp_path / "the best one")

    assert read_manifest(tmp_path / "the best one").step == 2


# --- where batches are stretches of samples


def test_a_book_of_samples_is_read_as_it_was_written_and_no_older_evener_takes_it_for_one_of_batches(store):
    manifest = read_manifest(store.path(2))
    book = StretchState(70, ((40, 50), (55, 60)), ((3, 4),))
    manifests.write_manifest(store.path(2), manifest.with_book(book))

    found = read_manifest(store.path(2))
    assert (found.stretches, found.format, found.batch_size, found.unapplied) == (book, 2, 1, [])
    assert manifest.format == 1 and "by_samples" not in json.loads((store.path(1) / MANIFEST).read_bytes())["body"]


def test_batches_of_one_size_are_stretches_too(store):
    manifest = msgspec.structs.replace(read_manifest(store.path(2)), batch_size=10)
    assert manifest.stretches == StretchState(70, ((40, 60),))


def test_a_run_goes_on_in_its_own_unit_if_that_is_exact(store):
    manifest = read_manifest(store.path(2)).with_book(StretchState(70, ((40, 60),)))
    assert manifests.in_unit(manifest, 7, by_samples=True) is manifest

    batches = manifests.in_unit(manifest, 10, by_samples=False)
    assert (batches.book, batches.batch_size, batches.format) == (LeaseState(7, (4, 5)), 10, 1)
    with pytest.raises(CheckpointError, match="no whole batches of 20"):
        manifests.in_unit(manifest, 20, by_samples=False)


@pytest.mark.parametrize("stretches", [[[5, 5]], [[5, 4]], [[-1, 3]], [[0, 4], [3, 6]], [[0, 4], [4, 6]], [[0, 99]]])
def test_stretches_that_cannot_be_are_damage(store, stretches):
    spoilt(store, by_samples=True, unapplied=[], unapplied_samples=stretches)
    older(store, "unapplied_samples are no stretches of the samples 0 to 6, one after the other")
