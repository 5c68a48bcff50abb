"""Modules on devices, and what is given to them. `meta` stands for another device: PyTorch treats it as one."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import evener
from evener.devices import Device, joined, place
from evener.devices.modules import moved, parts_of, to_match
from evener.errors import ConfigError

META = torch.device("meta")
MACHINE = [Device("cpu"), Device("meta", total=10**9, free=10**9)]
Pair = namedtuple("Pair", "left right")


def chain() -> nn.Sequential:
    return nn.Sequential(OrderedDict(
        features=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), act=nn.ReLU(), classifier=nn.Linear(4, 2)
    ))  # fmt: skip


def homes(model: nn.Module) -> dict[str, str]:
    return {name: str(tensor.device) for name, tensor in model.state_dict(keep_vars=True).items()}


def test_named_modules_move_with_their_buffers_and_the_rest_stays():
    model = chain()
    decided = place(model, {"classifier": "meta"}, existing=MACHINE)

    assert {name for name, home in homes(model).items() if home == "meta"} == {"classifier.weight", "classifier.bias"}
    assert decided.devices == ("cpu", "meta")
    model = chain()
    place(model, {"features": "meta"}, existing=MACHINE)
    assert homes(model)["features.1.running_mean"] == "meta"


def test_activations_follow_from_module_to_module():
    model = chain()
    place(model, {"classifier": "meta"}, existing=MACHINE)

    assert model(torch.ones(5, 3)).device == META


def test_a_whole_model_takes_its_inputs_along():
    model = chain()
    assert place(model, "meta", existing=MACHINE).devices == ("meta",)
    assert model(torch.ones(5, 3)).device == META


def test_a_module_on_the_cpu_fetches_its_input_too(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    place(model, {"0": "meta", "1": "cpu"}, existing=MACHINE)

    # meta holds nothing that could come back, and says so: the copy was tried
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model(torch.ones(2, 3))


def test_a_model_on_the_cpu_is_left_alone():
    model = chain()
    inputs, before = torch.ones(5, 3), [parameter.data_ptr() for parameter in model.parameters()]
    place(model, {"features": "cuda:3"}, existing=[Device("cpu")])

    assert [parameter.data_ptr() for parameter in model.parameters()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model(inputs).device.type == "cpu"


def test_marks_are_obeyed_and_a_run_may_say_otherwise():
    def marks():
        with evener.device("meta"):
            last = nn.Linear(4, 2)
        return nn.Sequential(nn.Linear(3, 4), last)

    model = marks()
    place(model, existing=MACHINE)
    assert homes(model)["1.weight"] == "meta"
    model = marks()
    place(model, {"1": "cpu"}, existing=MACHINE)
    assert homes(model)["1.weight"] == "cpu"


def test_placing_again_replaces_the_hooks():
    model = chain()
    place(model, {"classifier": "meta"}, existing=MACHINE)
    place(model, "meta", existing=MACHINE)

    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 1
    assert len(model._forward_pre_hooks) == 1


def test_a_copy_of_a_placed_model_works_by_itself():
    model = copy.deepcopy(chain())
    place(model, {"classifier": "meta"}, existing=MACHINE)

    assert copy.deepcopy(model)(torch.ones(5, 3)).device == META


def test_shared_parameters_stay_shared_and_are_counted_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight

    assert [part.tensors for part in parts_of(model)] == [(), (("0.weight", 9, 36),), (("0.weight", 9, 36),)]
    with pytest.raises(ConfigError, match=r"share '0\.weight'"):
        place(model, {"1": "meta"}, existing=MACHINE)


def test_nothing_moves_when_the_plan_is_refused():
    model = chain()
    with pytest.raises(ConfigError):
        place(model, {"features": "meta", "classifier": "cuda:9"}, existing=MACHINE, soft=False)
    assert set(homes(model).values()) == {"cpu"}


# --- nested values


def test_tensors_move_wherever_they_are_nested():
    one = torch.ones(2)
    value = {"a": [one, (one, 3)], "b": Pair(one, "text"), "c": OrderedDict(d=one)}
    there = moved(value, META)

    assert there["a"][0].device == there["a"][1][0].device == there["b"].left.device == there["c"]["d"].device == META
    assert there["a"][1][1] == 3
    assert isinstance(there["b"], Pair)
    assert there["b"].right == "text"
    assert isinstance(there["c"], OrderedDict)
    assert value["a"][0] is one  # the caller's own containers are not changed


def test_only_a_copy_towards_a_gpu_is_not_waited_for(monkeypatch):
    """Towards the processor it could be read before it is there."""
    asked, cpu = [], torch.device("cpu")
    here, there = torch.ones(2), torch.ones(2, device=META)
    monkeypatch.setattr(torch.Tensor, "to", lambda _, device, *, non_blocking: asked.append((device, non_blocking)))
    moved([here, there], META)
    moved([here, there], cpu)

    assert asked == [(META, True), (cpu, False)]


def test_what_need_not_move_is_given_back_as_it_is():
    value = {"a": [torch.ones(2)], "b": Pair(1, None), "c": "text"}

    assert moved(value, torch.device("cpu")) is value


def test_packed_sequences_move():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])

    assert moved(packed, META).data.device == META
    assert moved(packed, torch.device("cpu")) is packed


def test_keyword_arguments_move():
    class Scaled(nn.Linear):
        def forward(self, x, *, by):
            return super().forward(x) * by

    model = Scaled(3, 2)
    place(model, "meta", existing=MACHINE)

    assert model(torch.ones(4, 3), by=torch.ones(2)).device == META


def test_a_target_goes_beside_its_output():
    target = torch.ones(2)

    assert to_match(target, {"logits": [torch.ones(1, device="meta")]}).device == META
    assert to_match(target, torch.ones(2)) is target
    assert to_match(target, "no tensor") is target


# --- between modules


def test_functions_of_tensors_on_several_devices_work_in_a_joined_block():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    place(model, {"1": "meta"}, existing=MACHINE)
    here, there = torch.ones(3), torch.ones(3, device="meta")

    with pytest.raises(RuntimeError):
        torch.stack([there, here])
    with joined(model):
        assert torch.stack([there, here]).device == META
        assert torch.nn.functional.linear(there, here.expand(3, 3), bias=here).device == META
        assert torch.stack([here, here]).device.type == "cpu"


def test_an_error_that_has_nothing_to_do_with_devices_passes_through():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    place(model, {"1": "meta"}, existing=MACHINE)

    with joined(model), pytest.raises(RuntimeError, match="mat1 and mat2"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_model_on_one_device_pays_nothing():
    with joined(nn.Linear(2, 2)), pytest.raises(RuntimeError):
        torch.stack([torch.ones(1, device="meta"), torch.ones(1)])
