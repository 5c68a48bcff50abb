"""PyTorch's optimizers do without its compiler until something is compiled. Processes of their own: ours has it."""

import json
import subprocess
import sys

import pytest

#: Says of each optimizer whether five steps, and what it saves, are those of PyTorch as it is.
PROGRAM = """
import inspect, json, sys, torch
from evener.devices.compiler import put_off_compiler
from evener.devices.process import prepare_process

def kinds():
    found = [k for k in vars(torch.optim).values() if inspect.isclass(k) and issubclass(k, torch.optim.Optimizer)]
    return [k for k in found if k.__name__ not in ("Optimizer", "SparseAdam", "LBFGS")]

def trained(kind, compiled):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4, bias=False)
    optimizer = kind(model.parameters(), lr=0.01)
    step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        step()
        assert torch.is_grad_enabled()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[model.weight] or kind is torch.optim.SGD
    return model.weight.tolist()

if sys.argv[1] == "put off":
    prepare_process(1)
    put_off_compiler()
told = {"eager": {kind.__name__: trained(kind, False) for kind in kinds()}}
told["imported"] = "torch._dynamo" in sys.modules
told["compiled"] = {kind.__name__: trained(kind, True) for kind in (torch.optim.Adam,)}
told["after"] = {kind.__name__: trained(kind, False) for kind in kinds()}
from torch._dynamo.utils import counters
told["breaks"] = sum(counters["graph_break"].values())
print(json.dumps(told))
"""


def said(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told():
    found = {}
    for how in ("put off", "as it is"):
        found[how] = json.loads(said(PROGRAM, how).splitlines()[-1])
    return found


def test_no_optimizer_of_pytorch_imports_it(told):
    assert told["as it is"]["imported"]  # else there is nothing to put off any more
    assert not told["put off"]["imported"]


@pytest.mark.parametrize("when", ["eager", "compiled", "after"])
def test_they_compute_the_same_bits_before_it_is_imported_where_they_are_compiled_and_after(told, when):
    assert told["put off"][when] == told["as it is"][when]


def test_what_is_compiled_ends_its_graphs_where_it_did(told):
    assert told["put off"]["breaks"] == told["as it is"]["breaks"] > 0


DIFFERENTIABLE = """
import torch
from evener.devices.compiler import put_off_compiler

put_off_compiler()
weight, rate = torch.ones(2, requires_grad=True), torch.tensor(0.5, requires_grad=True)
moved = weight.clone()
optimizer = torch.optim.SGD([moved], lr=rate, differentiable=True)
moved.grad = torch.ones(2)
optimizer.step()
moved.sum().backward()
print(rate.grad.item())
"""


def test_an_optimizer_that_is_itself_differentiated_still_is():
    assert said(DIFFERENTIABLE).strip() == "-2.0"
