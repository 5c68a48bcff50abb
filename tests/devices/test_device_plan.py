"""Which module goes on which device: decided without PyTorch, for machines that nobody here has."""

from __future__ import annotations

import pytest

from evener.devices.plan import Device, ModulePart, canonical, merged, parse, plan, size
from evener.errors import ConfigError

GB = 10**9
MACHINE = [Device("cpu", cores=8), Device("cuda:0", "big", 80 * GB, 79 * GB), Device("cuda:1", "small", 8 * GB, 1 * GB)]


def part(name: str, nbytes: int = 400, tensor: str = "", kind: str = "Linear") -> ModulePart:
    return ModulePart(name, kind, ((tensor or f"{name}.weight", nbytes // 4, nbytes),) if nbytes else ())


MODEL = [
    part("", 0, kind="Net"), part("features", 0, kind="Sequential"), part("features.0"),
    part("features.1", 0, kind="ReLU"), part("features.2"), part("classifier"),
]  # fmt: skip


def given(decided) -> dict[str, str]:
    return {entry.name: entry.given for entry in decided.placed}


# --- names


@pytest.mark.parametrize(
    ("written", "name"),
    [("cpu", "cpu"), ("CPU:0", "cpu"), ("/cpu:0", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"),
     ("gpu:1", "cuda:1"),
     ("/gpu:0", "cuda:0"), ("/device:GPU:2", "cuda:2"), (" cuda:1 ", "cuda:1"), ("cpu:5", "cpu:5"),
     ("cuda:01", "cuda:1")],
)  # fmt: skip
def test_devices_have_the_names_of_pytorch_and_those_of_tensorflow_are_understood(written, name):
    assert canonical(written) == name


@pytest.mark.parametrize("written", ["", "cuda:", "cuda:x", "1", "cuda:-1", "features=cuda:0", "/job:ps/cpu:0"])
def test_what_is_no_device_is_refused(written):
    with pytest.raises(ConfigError, match="is no device") as refused:
        canonical(written)
    assert "evener devices" in refused.value.fix


def test_place_is_written_as_modules_and_devices_or_as_one_device():
    assert parse("features=cuda:0, classifier=gpu:1") == {"features": "cuda:0", "classifier": "cuda:1"}
    assert parse("cuda:1") == {"": "cuda:1"}
    assert parse("cuda:0,classifier=cpu") == {"": "cuda:0", "classifier": "cpu"}
    assert parse("") == {}
    for twice in ("a=cpu,a=cuda:0", "cpu,cuda:0"):
        with pytest.raises(ConfigError, match="twice"):
            parse(twice)


# --- who goes where


def test_a_module_takes_all_that_is_inside_it_and_the_rest_goes_to_the_default():
    decided = plan(MODEL, {"features": "cuda:0"}, MACHINE)

    assert given(decided) == {
        "features": "cuda:0", "features.0": "cuda:0", "features.2": "cuda:0", "classifier": "cpu"
    }  # fmt: skip
    assert decided.devices == ("cuda:0", "cpu")
    assert decided.warning == ""


def test_the_nearest_name_counts():
    decided = plan(MODEL, {"": "cuda:0", "features.2": "cuda:1", "classifier": "cpu"}, MACHINE)

    assert given(decided) == {"": "cuda:0", "features.0": "cuda:0", "features.2": "cuda:1", "classifier": "cpu"}


def test_whoever_asks_for_nothing_gets_the_default():
    assert given(plan(MODEL, {}, MACHINE)) == {"features.0": "cpu", "features.2": "cpu", "classifier": "cpu"}
    assert set(given(plan(MODEL, {}, MACHINE, default="gpu:1")).values()) == {"cuda:1"}


def test_a_named_module_without_tensors_is_placed_too_for_its_inputs_follow():
    assert given(plan(MODEL, {"features.1": "cuda:0"}, MACHINE))["features.1"] == "cuda:0"


def test_a_module_that_the_model_lacks_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no module 'feature' to place") as refused:
        plan(MODEL, {"feature": "cuda:0"}, MACHINE)
    assert refused.value.fix == "did you mean 'features'?"
    with pytest.raises(ConfigError) as refused:
        plan(MODEL, {"zzz": "cuda:0"}, MACHINE)
    assert refused.value.fix == "its modules are: features, classifier, and those inside them."


def test_what_a_run_names_counts_more_than_the_marks_inside_it():
    marks = {"features.0": "cuda:1", "classifier": "cuda:1"}

    assert merged({"features": "gpu:0"}, marks) == {"classifier": "cuda:1", "features": "cuda:0"}
    assert merged({"": "cpu"}, marks) == {"": "cpu"}
    assert merged({"features.0": "cpu"}, marks) == {"classifier": "cuda:1", "features.0": "cpu"}
    assert merged({}, marks) == marks


def test_modules_that_share_a_tensor_lie_on_one_device():
    tied = [part("", 0), part("encoder", tensor="encoder.weight"), part("decoder", tensor="encoder.weight")]

    assert plan(tied, {"encoder": "cuda:0", "decoder": "cuda:0"}, MACHINE).warning == ""
    with pytest.raises(
        ConfigError, match=r"'encoder' and 'decoder' share 'encoder\.weight', but are placed on cuda:0 and cpu"
    ):
        plan(tied, {"encoder": "cuda:0"}, MACHINE)


# --- soft placement


def test_what_a_missing_device_cannot_take_goes_to_the_cpu_with_one_warning():
    decided = plan(MODEL, {"features": "cuda:7", "classifier": "cpu:5"}, MACHINE)

    assert set(given(decided).values()) == {"cpu"}
    assert decided.warning == (
        "features wanted cuda:7, is on cpu: there is no cuda:7; classifier wanted cpu:5, is on cpu: there is no cpu:5"
    )


def test_modules_of_one_fate_share_one_sentence():
    decided = plan(MODEL, {"features.0": "cuda:7", "features.2": "cuda:7"}, MACHINE)

    assert decided.warning == "features.0, features.2 wanted cuda:7, is on cpu: there is no cuda:7"


def test_a_missing_default_is_told_as_the_whole_model():
    decided = plan(MODEL, {"classifier": "cuda:1"}, MACHINE, default="cuda:2")

    assert given(decided) == {"features.0": "cpu", "features.2": "cpu", "classifier": "cuda:1"}
    assert decided.warning == "the model wanted cuda:2, is on cpu: there is no cuda:2"


def test_a_default_that_nobody_needs_may_be_missing():
    assert plan(MODEL, {"features": "cpu", "classifier": "cuda:0"}, MACHINE, default="cuda:2").warning == ""


def test_what_does_not_fit_into_free_memory_goes_to_the_cpu_whole():
    model = [
        part("", 0),
        part("a", 600_000_000),
        part("b", 300_000_000),
        part("b.c", 500_000_000),
        part("d", 400_000_000),
    ]
    decided = plan(model, {"a": "cuda:1", "b": "cuda:1", "d": "cuda:1"}, MACHINE)

    assert given(decided) == {"a": "cuda:1", "b": "cpu", "b.c": "cpu", "d": "cuda:1"}
    assert decided.warning == "b wanted cuda:1, is on cpu: cuda:1 has 400.0 MB free, it needs 800.0 MB"


def test_a_shared_tensor_needs_its_memory_once_and_unknown_memory_is_enough():
    tied = [part("", 0), part("a", 700_000_000, "t"), part("b", 700_000_000, "t")]

    assert plan(tied, {"": "cuda:1"}, MACHINE).warning == ""
    assert plan(tied, {"": "cuda:1"}, [Device("cpu"), Device("cuda:1")]).warning == ""
    assert plan(tied, {"": "cpu"}, [Device("cpu", total=10, free=1)]).warning == ""


def test_without_soft_placement_it_is_an_error_with_the_devices_that_exist():
    with pytest.raises(ConfigError, match=r"^features wanted cuda:7: there is no cuda:7\.") as refused:
        plan(MODEL, {"features": "cuda:7"}, MACHINE, soft=False)
    assert "cpu, cuda:0, cuda:1" in refused.value.fix
    with pytest.raises(ConfigError, match=r"cuda:1 has 1\.0 GB free, it needs 2\.0 GB"):
        plan([part("", 2 * GB)], {"": "cuda:1"}, MACHINE, soft=False)
    assert plan(MODEL, {"features": "cuda:1"}, MACHINE, soft=False).warning == ""


# --- the log


def test_the_log_is_a_table_of_modules_with_the_sum_of_each_device():
    lines = plan(MODEL, {"features": "cuda:0", "classifier": "cuda:7"}, MACHINE).table().splitlines()

    assert [line.split() for line in lines] == [
        ["module", "parameters", "bytes", "device"],
        ["features", "(Sequential)", "0", "0", "B", "cuda:0"],
        ["features.0", "(Linear)", "100", "400", "B", "cuda:0"],
        ["features.2", "(Linear)", "100", "400", "B", "cuda:0"],
        ["classifier", "(Linear)", "100", "400", "B", "cpu", "(wanted", "cuda:7)"],
        ["all", "200", "800", "B", "cuda:0"],
        ["all", "100", "400", "B", "cpu"],
    ]


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 999, 1000, 39_760, 5 * 10**12)] == ["0 B", "999 B", "1.0 kB", "39.8 kB", "5.0 TB"]
