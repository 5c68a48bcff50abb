"""A worker's model goes where the run asks; nobody asks PyTorch about GPUs unless somebody wants one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evener
from evener.cluster.cluster import ClusterSpec
from evener.cluster.environment import device_variables, seeing_devices, task_environment
from evener.devices.plan import Device
from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.report import Line
from evener.settings import Settings, check_gpus, make
from evener.task import placing
from evener.task.build import build
from evener.task.member import local_rank
from evener.task.placing import place_model

MACHINE = [Device("cpu"), Device("meta", total=1000, free=1000)]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def marked_model() -> nn.Module:
    with evener.device("meta"):
        last = nn.Linear(4, 2)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), last)


def placed(made=model, *, devices=MACHINE, rank=0, **options):
    """Where the tensors are, and the lines that people see."""
    recipe = Recipe(model=made, data=lambda: (None, None), optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1))
    settings = Settings(**options)
    said = []
    homes = place_model(
        build(settings, recipe), settings, rank=rank, report=said.append, task="worker:0", devices=devices
    )
    assert all(isinstance(line, Line) and line.task == "worker:0" for line in said)
    return homes and {name: str(home) for name, home in homes.items()}, [line.text for line in said]


@pytest.fixture
def no_gpu_is_looked_for(monkeypatch):
    def refuse(*_):
        raise AssertionError("somebody asked for GPUs")

    monkeypatch.setattr(placing, "existing", refuse)


@pytest.mark.usefixtures("no_gpu_is_looked_for")
def test_a_run_that_asks_for_nothing_stays_in_the_memory_that_travels():
    assert placed(devices=None) == (None, [])
    assert placed(devices=None, place={"0": "cpu"}, num_gpus=0) == (None, [])


def test_whoever_wants_a_device_says_which_are_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(placing, "existing", lambda measured: asked.append(measured) or MACHINE)
    placed(devices=None, num_gpus=2, share_gpus=True, rank=3, place={"0": "gpu:5"})
    placed(marked_model, devices=None)

    assert asked == [{"cuda:1", "cuda:5"}, {"cpu", "meta"}]


def test_modules_go_to_their_devices():
    homes, said = placed(place={"2": "meta"})

    assert homes == {"0.weight": "cpu", "0.bias": "cpu", "2.weight": "meta", "2.bias": "meta"}
    assert said == []
    assert placed(marked_model)[0] == homes
    assert placed(marked_model, place={"": "cpu"})[0] is None


def test_worker_i_takes_gpu_i_mod_n():
    _, said = placed(num_gpus=2, rank=3)

    assert said == ["warning: the model wanted cuda:1, is on cpu: there is no cuda:1"]


def test_soft_placement_can_be_turned_off():
    with pytest.raises(ConfigError, match="the model wanted cuda:0: there is no cuda:0") as refused:
        placed(num_gpus=1, soft_placement=False)
    assert "cpu, meta" in refused.value.fix


def test_a_share_of_the_memory_is_all_that_there_is():
    assert placed(place={"2": "meta"}, gpu_memory_fraction=0.5)[1] == []
    assert placed(place={"2": "meta"}, gpu_memory_fraction=0.03)[1] == [
        "warning: 2 wanted meta, is on cpu: meta has 30 B free, it needs 40 B"
    ]


def test_a_share_of_the_memory_is_all_that_pytorch_may_take(monkeypatch):
    limits = []
    monkeypatch.setattr(placing, "limit_memory", lambda fraction, device: limits.append((fraction, str(device))))
    placed(place={"2": "meta"}, gpu_memory_fraction=0.5)

    assert limits == [(0.5, "cpu"), (0.5, "meta")]


def test_the_placement_is_logged_when_it_is_asked_for():
    _, said = placed(place={"2": "meta"}, log_device_placement=True)

    assert [line.split() for line in said] == [
        ["module", "parameters", "bytes", "device"],
        ["0", "(Linear)", "16", "64", "B", "cpu"],
        ["2", "(Linear)", "10", "40", "B", "meta"],
        ["all", "16", "64", "B", "cpu"],
        ["all", "10", "40", "B", "meta"],
    ]


# --- GPUs and workers


@pytest.mark.parametrize(("gpus", "workers"), [(0, 4), (1, 1), (2, 2), (4, 2)])
def test_enough_gpus_are_enough(gpus, workers):
    check_gpus(Settings(num_gpus=gpus), workers)


def test_fewer_gpus_than_workers_is_an_error_unless_they_may_share():
    with pytest.raises(ConfigError, match="3 workers of this machine have 2 GPUs") as refused:
        check_gpus(Settings(num_gpus=2), 3)
    assert "--num-gpus 3" in refused.value.fix
    assert "--share-gpus" in refused.value.fix
    check_gpus(Settings(num_gpus=2, share_gpus=True), 3)


def test_workers_are_counted_on_their_machine():
    cluster = ClusterSpec.of({"ps": ["a:1"], "worker": ["a:2", "b:2", "a:3", "b:3", "b:4"]})

    assert [local_rank(cluster, index) for index in range(5)] == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    "options",
    [{"place": "features"}, {"place": {"a": "no device"}}, {"place": {1: "cpu"}}, {"place": 3}, {"num_gpus": -1},
     {"num_gpus": True}, {"gpu_memory_fraction": 0}, {"gpu_memory_fraction": 1.5}, {"gpu_memory_fraction": "0.5"},
     {"visible_devices": 0}],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError) as refused:
        make(options)
    assert refused.value.fix


def test_place_may_be_a_text():
    assert make({"place": "features=gpu:0,classifier=cpu"}).place == {"features": "cuda:0", "classifier": "cpu"}


# --- what PyTorch reads before it first looks at the GPUs


def test_a_ps_task_sees_no_gpu_whatever_the_run_asks():
    settings = Settings(num_gpus=1, visible_devices="0,2", allow_growth=True)

    assert device_variables(settings, "ps", {}) == {"CUDA_VISIBLE_DEVICES": ""}


def test_workers_see_what_they_are_given():
    assert device_variables(Settings(), "worker", {}) == {}
    assert device_variables(Settings(visible_devices="0,2"), "worker", {}) == {"CUDA_VISIBLE_DEVICES": "0,2"}
    assert device_variables(Settings(visible_devices=""), "worker", {}) == {"CUDA_VISIBLE_DEVICES": ""}


def test_growing_in_place_is_added_to_what_the_user_set():
    settings = Settings(allow_growth=True)
    both = "max_split_size_mb:64,expandable_segments:True"

    assert device_variables(settings, "worker", {}) == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        given = {name: "max_split_size_mb:64,expandable_segments:False"}
        assert device_variables(settings, "worker", given) == {name: both}


def test_a_started_task_gets_the_rest_of_the_environment_too(monkeypatch):
    monkeypatch.setenv("SOMETHING", "else")

    assert task_environment(Settings(), "ps")["SOMETHING"] == "else"


@pytest.mark.parametrize(
    ("options", "environment", "seen"),
    [
        ({"num_gpus": 2}, {}, ["0", "1", "0"]),
        ({"num_gpus": 2, "visible_devices": "4,5,6"}, {}, ["4", "5", "4"]),
        ({"num_gpus": 2}, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, ["GPU-a", "GPU-b", "GPU-a"]),
        ({"num_gpus": 2, "visible_devices": "7"}, {}, ["7", "7", "7"]),
    ],
)
def test_a_worker_that_runs_a_program_sees_its_own_gpu_alone(options, environment, seen):
    settings = Settings(script="train.py", ps=1, workers=3, share_gpus=True, **options)
    each = [device_variables(settings, "worker", environment, rank)["CUDA_VISIBLE_DEVICES"] for rank in range(3)]
    assert each == seen
    assert task_environment(Settings(), "ps")["CUDA_VISIBLE_DEVICES"] == ""


def test_tasks_copy_large_blocks_past_the_caches_unless_the_user_has_said_otherwise(monkeypatch):
    name, mine = "GLIBC_TUNABLES", "glibc.cpu.x86_non_temporal_threshold=0x40000"
    for said, found in [
        (None, mine),
        ("", mine),
        ("glibc.malloc.check=1", f"glibc.malloc.check=1:{mine}"),
        ("glibc.cpu.x86_non_temporal_threshold=0x100000", "glibc.cpu.x86_non_temporal_threshold=0x100000"),
    ]:
        monkeypatch.delenv(name, raising=False) if said is None else monkeypatch.setenv(name, said)
        assert task_environment(Settings(), "worker")[name] == found


def test_this_process_sees_them_until_the_run_ends(monkeypatch):
    import os

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    with seeing_devices(Settings(visible_devices="1", allow_growth=True), "worker"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_what_pytorch_has_read_already_cannot_change(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES cannot change now"):
        seeing_devices(Settings(visible_devices="0"), "worker").__enter__()
    with seeing_devices(Settings(visible_devices="1"), "worker"), seeing_devices(Settings(), "worker"):
        pass
