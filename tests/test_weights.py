"""Files of weights: what is written is read by PyTorch and by safetensors; what would run code is refused."""

import os
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evener import weights
from evener.errors import ConfigError, InputError
from evener.weights import read, write


class Evil:
    """Its pickle runs a command when it is read."""

    def __init__(self, command: str = "") -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Extra(nn.Module):
    def __init__(self, extra=None) -> None:
        super().__init__()
        self.layer, self.extra = nn.Linear(2, 2), extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state) -> None:
        self.extra = state


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).bfloat16()
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_what_is_written_is_read_again_with_all_names_tied_ones_too(suffix, tmp_path):
    state, path = tied().state_dict(), tmp_path / f"model{suffix}"
    nbytes = write(state, path)

    assert path.stat().st_size == nbytes
    found = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    again = read(path)
    assert list(again.tensors) == list(found) if suffix != ".safetensors" else again.tensors.keys() == found.keys()
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == again.tensors[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor) and torch.equal(again.tensors[name], tensor)
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_that_is_inside_of_what_a_program_saved_is_found(tmp_path):
    state = tied().state_dict()
    for number, name in enumerate(weights.INSIDE):
        path = tmp_path / f"{number}.pt"
        torch.save({"epoch": torch.tensor(3), name: state, "optimizer": {"state": {}}}, path)
        assert read(path).tensors.keys() == state.keys()


def test_what_is_no_tensor_is_named_and_left_out(tmp_path):
    torch.save(Extra({"calls": 3}).state_dict(), tmp_path / "m.pt")
    found = read(tmp_path / "m.pt")

    assert found.tensors.keys() == {"layer.weight", "layer.bias"}
    assert found.others == ("_extra_state",)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"weight": Evil(f"touch {tmp_path}/ran")}, tmp_path / "evil.pt")

    with pytest.raises(ConfigError, match=r"evil\.pt is refused: .*but (posix|os|nt)\.system") as refused:
        read(tmp_path / "evil.pt")
    assert "run whatever code" in refused.value.why
    assert "torch.save(model.state_dict(), path)" in refused.value.fix
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("whole", [nn.Linear(2, 2), [1, 2]])
def test_what_is_no_state_dict_is_refused_with_the_way_to_make_one(whole, tmp_path):
    torch.save(whole, tmp_path / "m.pt")
    with pytest.raises(ConfigError) as refused:
        read(tmp_path / "m.pt")
    assert "torch.save(model.state_dict(), path)" in refused.value.fix


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no weights"])
def test_a_damaged_file_is_refused_by_its_name(suffix, damage, tmp_path):
    path = tmp_path / f"model{suffix}"
    write(tied().state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(InputError, match=r"model\.\w+ cannot be read"):
        read(path)


def test_files_that_are_not_there_or_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*m\.pt on this machine"):
        read(tmp_path / "m.pt")
    with pytest.raises(ConfigError, match="no file of weights") as refused:
        read(tmp_path / "m.h5")
    assert ".safetensors" in refused.value.why
    with pytest.raises(ConfigError, match="no suffix that says how to write it") as refused:
        write({}, tmp_path / "model")
    assert refused.value.fix == "name it model.pt or model.safetensors."


def test_extra_state_that_is_plain_is_written_and_else_refused(tmp_path):
    write(Extra({"calls": [3, "x"]}).state_dict(), tmp_path / "m.pt")
    again = Extra()
    again.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True), strict=True)
    assert again.extra == {"calls": [3, "x"]}

    with pytest.raises(ConfigError, match="'_extra_state' is dict, no tensor") as refused:
        write(Extra({"calls": 3}).state_dict(), tmp_path / "m.safetensors")
    assert refused.value.fix == "write m.pt."
    with pytest.raises(ConfigError, match="'_extra_state' is Evil, which a file of weights cannot hold"):
        write(Extra(Evil(f"touch {tmp_path}/ran")).state_dict(), tmp_path / "evil.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_directory_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere/m\.pt cannot be written"):
        write({}, tmp_path / "nowhere" / "m.pt")


# --- files that would cost more than their tensors


def archive(path, program, compression=zipfile.ZIP_STORED, **records):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {"data.pkl": program, "version": b"3\n", "byteorder": b"little", **records}.items():
            file.writestr(f"archive/{name}", content)
    return path


DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60  # a tuple of the one before, twice: 2^60 leaves


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"}" + DOUBLED + b"K\x01s", "leaves, the same ones again and again"),
        (b"]" * 1000 + b"a" * 999, "more than 100 containers in each other"),
        (b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R", "memory of torch.Tensor by its size alone"),
        (b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R", "memory of __builtin__.bytearray by its size alone"),
        (b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85\x81", "memory of torch.FloatTensor by its size alone"),
    ],
    ids=["key", "deep", "tensor", "bytearray", "new"],
)
def test_a_pickle_that_says_much_in_few_bytes_is_refused_before_pytorch_reads_it(
    tmp_path, program, reason, legacy, monkeypatch
):
    monkeypatch.setattr(torch, "load", None)
    path, program = tmp_path / "model.pt", b"\x80\x02" + program + b"."
    if legacy:
        path.write_bytes(b"\x80\x02K\x01." * 3 + program)
    else:
        archive(path, program)

    with pytest.raises(InputError, match=reason):
        read(path)


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    path = archive(tmp_path / "model.pt", b"\x80\x02}.", zipfile.ZIP_DEFLATED, **{"data/0": bytes(1 << 24)})
    assert path.stat().st_size < 1 << 17

    with pytest.raises(InputError, match="it holds compressed records"):
        read(path)


def test_records_that_lie_on_each_other_are_refused(tmp_path):
    """Many names for one record: the directory of the archive says it again and again."""
    made = archive(tmp_path / "one.pt", b"\x80\x02}.", **{"data/0": bytes(1 << 16)}).read_bytes()
    start = made.index(b"PK\x01\x02", made.rindex(b"data/0") - 60)
    entry = made[start : made.index(b"PK\x05\x06")]
    many = bytearray(made.replace(entry, entry * 100))
    end = many.index(b"PK\x05\x06")
    many[end + 8 : end + 12] = struct.pack("<HH", 103, 103)
    many[end + 12 : end + 16] = struct.pack("<I", end - many.index(b"PK\x01\x02"))
    (tmp_path / "many.pt").write_bytes(many)

    with pytest.raises(InputError, match="it holds records that lie on each other"):
        read(tmp_path / "many.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_file_is_refused_at_once(tmp_path, suffix):
    os.mkfifo(tmp_path / f"fifo{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")

    with pytest.raises(InputError, match="it is a FIFO, not a regular file"):
        read(tmp_path / f"fifo{suffix}")
    with pytest.raises(InputError, match="it is a device, not a regular file"):
        read(tmp_path / f"zero{suffix}")


def test_a_file_larger_than_memory_is_not_read(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 43)

    with pytest.raises(InputError, match=f"has {1 << 43} bytes, more than there is memory for"):
        read(tmp_path / "model.safetensors")


def test_a_checkpoint_of_a_training_program_costs_no_more_than_it_may(tmp_path):
    """With the state of an optimizer, sets, bytes and a bytearray beside it."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "also": [{1, 2}, b"x", bytearray(b"y")]}
    for zipped in (True, False):
        torch.save(saved, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
        assert set(read(tmp_path / "model.pt").tensors) == {"weight", "bias"}
