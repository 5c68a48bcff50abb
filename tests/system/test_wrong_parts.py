"""Parts of a recipe that are not what they must be: told before anything is trained, or at the first batch, with the
user's own line, and never as the fault of a hook that nobody wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import evener, here

import evener as package
from evener.errors import ConfigError, EvenerError, InputError

pytestmark = pytest.mark.slow

HEAD = """
import evener, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

X, Y = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
OTHER = nn.Linear(8, 3)


def samples(get):
    class Mine(Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, index):
            return get(index)

    return Mine()


def with_buffer(tensor):
    model = nn.Linear(8, 3)
    model.register_buffer("table", tensor)
    return model


def with_parameter(tensor):
    model = nn.Linear(8, 3)
    model.extra = nn.Parameter(tensor)
    return model


class Two(nn.Linear):
    def forward(self, first, second):
        return super().forward(first + second)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigma = nn.Parameter(torch.zeros(()))


class Closure(torch.optim.SGD):
    def step(self, closure):
        closure()


def recipe():
    parts = dict(model=lambda: nn.Linear(8, 3), data=lambda: ((X, Y), (X, Y)),
                 optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    parts |= dict(
        PART
    )
    return evener.Recipe(**parts)
"""
#: The line of HEAD where the part stands that is wrong.
LINE = HEAD.splitlines().index("        PART") + 1


@dataclass(frozen=True)
class Case:
    part: str
    says: str
    fix: str
    kind: type[EvenerError] = ConfigError
    line: bool = True  # whether the user's own line is told


def data(part: str, says: str, fix: str, **more: bool) -> Case:
    return Case(f"data=lambda: {part}", says, fix, InputError, **more)


def model(part: str, says: str, fix: str) -> Case:
    return Case(f"model=lambda: {part}", says, fix)


def optimizer(part: str, says: str, fix: str) -> Case:
    return Case(f"optimizer=lambda model: {part}", says, fix)


CASES = {
    # models
    "none": model("None", "returned None", "return the module"),
    "complex parameter": model("with_parameter(torch.zeros(2, dtype=torch.cfloat))", "'extra' holds complex64 numbers",
                               "view_as_complex"),
    "complex buffer": model("with_buffer(torch.zeros(2, dtype=torch.cfloat))", "'table' has dtype complex64",
                            "persistent=False"),
    "float8 buffer": model("with_buffer(torch.zeros(2).to(torch.float8_e4m3fn))", "'table' has dtype float8_e4m3fn",
                           "persistent=False"),
    "uint16 buffer": model("with_buffer(torch.zeros(2, dtype=torch.uint16))", "'table' has dtype uint16",
                           "persistent=False"),
    "jit": model("torch.jit.script(nn.Linear(8, 3))", "the model is TorchScript", "return the module itself"),
    "jit inside": model("nn.Sequential(torch.jit.script(nn.Linear(8, 3)))", "0 is TorchScript", "evener.load"),
    "lazy linear": model("nn.LazyLinear(3)", "parameter 'weight' has no shape yet", "run one batch through the model"),
    "lazy norm": model("nn.Sequential(nn.Linear(8, 3), nn.LazyBatchNorm1d(affine=False))",
                       "buffer '1.running_mean' has no shape yet", "run one batch through the model"),
    "meta": model("nn.Linear(8, 3, device='meta')", "parameter 'weight' is on the device meta", "to_empty"),
    "two inputs": model("Two(8, 3)", "takes 2 inputs: forward(first, second)", "((first, second), target)"),
    # data
    "rows are dictionaries": data("samples(lambda i: {'x': X[i], 'y': Y[i]})", "is an object of type dict, not a pair",
                                  "(input, target)"),
    "three": data("samples(lambda i: (X[i], X[i], Y[i]))", "is a tuple of 3 (Tensor, Tensor, Tensor)",
                  "a tuple or a dictionary"),
    "boxes": data("samples(lambda i: (X[i], torch.zeros(i % 3, 4)))", "cannot be put together to a batch",
                  "batch(indices)"),
    "stream": data("Stream()", "of type Stream is not a data set", "a map-style torch data set"),
    "loader": Case("data=lambda: DataLoader(TensorDataset(X, Y), batch_size=4)",
                   "--batch-size 10 beside a DataLoader with batch_size=4", "an option of the recipe"),
    "loaders": Case("data=lambda: (DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [2]]), None)",
                    "whose sampler decides", "leave --batch-size out"),
    "generator": data("zip(X, Y)", "of type zip is not a data set", "a map-style torch data set"),
    "lists": data("([x for x in X], [int(y) for y in Y])", "is a tensor of shape [8], not a pair", "torch.stack(X)"),
    "three sets": data("((X, Y), (X, Y), (X, Y))", "a tuple of 3 (tuple, tuple, tuple) is not a data set",
                       "a pair (inputs, target)"),
    "names of classes": data("samples(lambda i: (X[i], 'cat'))", "without a tensor", "classes as 0, 1, 2"),
    "empty": data("(X[:0], Y[:0])", "the train set is empty", "check the path or the filter"),
    # optimizers and schedules
    "two optimizers": optimizer("(torch.optim.SGD(model.parameters()), torch.optim.SGD(model.parameters()))",
                                "of which two have 'bias'", "parameters of its own"),
    "of another model": optimizer("torch.optim.SGD(OTHER.parameters())", "of shape [3, 8] that is not in the model",
                                  "lambda model:"),
    "of a copy": optimizer("torch.optim.SGD([p.detach().clone().requires_grad_() for p in model.parameters()])",
                           "that is not in the model", "lambda model:"),
    "of nothing": optimizer("torch.optim.SGD([{'params': []}])", "over no parameter that is trained",
                            "model.parameters()"),
    "no optimizer": optimizer("None", "returned None", "return one torch.optim optimizer"),
    "LBFGS": optimizer("torch.optim.LBFGS(model.parameters())", "LBFGS, whose step() needs a closure", "AdamW"),
    "closure": optimizer("Closure(model.parameters())", "Closure, whose step() needs a closure", "AdamW"),
    "SparseAdam": optimizer("torch.optim.SparseAdam(model.parameters())", "returned SparseAdam", "use Adam"),
    "list of schedulers": Case(
        "lr_scheduler=lambda optimizer, _: [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]",
        "returned an object of type list", "SequentialLR",
    ),
    "no scheduler": Case("lr_scheduler=lambda optimizer, _: None", "returned None", "return a scheduler"),
    # losses, at the first batch
    "loss in a dictionary": Case("loss=lambda output, target: {'loss': output.mean()}", "returned dict, not a tensor",
                                 "are metrics of the recipe"),
    "losses": Case("loss=lambda output, target: (output.mean(), output.sum())", "returned tuple, not a tensor",
                   "are metrics of the recipe"),
    "loss as a number": Case("loss=lambda output, target: output.mean().item()", "returned float, not a tensor",
                             "as a tensor"),
    "loss for each": Case("loss=lambda output, target: output.mean(1)", "has shape [10], not a scalar", "reduction"),
    "loss without gradient": Case("loss=lambda output, target: output.mean().detach()", "does not depend on the model",
                                  "without detach()"),
    "loss with parameters": Case("loss=Learned()", "loss is an object of type Learned with parameters to train",
                                 "put it into the model", line=False),
    # hooks
    "hook that is a function": Case("hooks=lambda: sum", "is no hook", "evener.Hook"),
    "hook that is a class": Case("hooks=lambda: [evener.Hook]", "gave the class Hook, which is no hook", "evener.Hook"),
    "hook of another kind": Case("hooks=lambda: [object()]", "an object of type object, which is no hook",
                                 "evener.Hook"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_what_is_wrong_why_how_to_mend_it_and_the_users_own_line(name, tmp_path):
    case = CASES[name]
    (tmp_path / "mine.py").write_text(HEAD.replace("PART", case.part))
    with pytest.raises(EvenerError) as refused:
        package.run(
            f"{tmp_path}/mine.py:recipe", quiet=True, train_steps=3, batch_size=10, logdir=str(tmp_path / "run")
        )

    error = refused.value
    assert type(error) is case.kind
    assert case.says in error.what
    assert case.fix in error.fix
    assert error.why
    assert "hook" not in str(error) or "hook" in name
    if case.line:
        assert f"(mine.py, line {LINE})" in error.what
    assert not list((tmp_path / "run").glob("checkpoints/step-*")), "nothing was trained"


#: What people have that looks like a mistake and is none.
RIGHT = {
    "named parameters": "optimizer=lambda model: torch.optim.SGD(model.named_parameters(), lr=0.1)",
    "part of the model": "optimizer=lambda model: torch.optim.SGD([model.weight], lr=0.1)",
    "a loss that is a module": "loss=nn.CrossEntropyLoss()",
    "an attribute batch": "data=lambda: setattr(m := samples(lambda i: (X[i], Y[i])), 'batch', 32) or m",
    "train and validation by name": "data=lambda: {'train': (X, Y), 'validation': (X, Y)}",
    "targets in a dictionary": "data=lambda: samples(lambda i: (X[i], {'a': Y[i]})), metrics={}, "
    "loss=lambda output, target: nn.functional.cross_entropy(output, target['a'])",
    "a complex table made anew": "model=lambda: setattr(m := nn.Linear(8, 3), 'table', torch.zeros(2, "
    "dtype=torch.cfloat)) or m",
    "one hook that is no list": "hooks=lambda: evener.Hook()",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_only_looks_wrong_trains(name, tmp_path):
    (tmp_path / "mine.py").write_text(HEAD.replace("PART", RIGHT[name]))
    result = package.run(f"{tmp_path}/mine.py:recipe", quiet=True, train_steps=3, batch_size=10, logdir=str(tmp_path))
    assert result.global_step == 3


MISTAKE = "def f1(output, target):\n    raise ZeroDivisionError('no positive sample')\n"
PARTS = {
    "metric": "metrics={'f1': f1}",
    "evaluate": "evaluate=lambda model, batches: f1(model, batches)",
    "data set": "data=lambda: ((X, Y), samples(lambda i: f1(i, i) if i > 1 else (X[i], Y[i])))",
}


@pytest.mark.parametrize("part", PARTS)
def test_what_fails_in_a_validation_is_the_users_own_error_and_no_hooks(part, tmp_path, capfd):
    (tmp_path / "mine.py").write_text(MISTAKE + HEAD.replace("PART", PARTS[part]))
    done = here(capfd, "train", f"{tmp_path}/mine.py:recipe", "--train-steps", 3, "--batch-size", 10,
                "--logdir", tmp_path / "run")  # fmt: skip
    assert done.code == 1
    assert "ZeroDivisionError: no positive sample" in done.err
    assert 'mine.py", line 2, in f1' in done.err
    assert not re.search(r"hook \w+ failed", done.err)


IMPORTS = {
    "argparse": ("import argparse\nargparse.ArgumentParser().parse_args(['--mine'])\n",
                 "mine.py, line 2, reads the command line (argparse)"),
    "sys.exit": ("import sys\n\nsys.exit(0)\n", "mine.py, line 3, ends the program (sys.exit(0))"),
    "relative import": ("from .net import model\n", "mine.py imports its neighbours relatively"),
}  # fmt: skip


def check_import(done, says: str) -> None:
    assert done.code == 2, done.text
    assert says in done.err
    assert "why: " in done.err
    assert "fix: " in done.err


@pytest.mark.parametrize("name", IMPORTS)
def test_a_file_that_cannot_be_imported_is_told_as_that(name, tmp_path, capfd):
    text, says = IMPORTS[name]
    (tmp_path / "mine.py").write_text(text + HEAD.replace("PART", ""))
    check_import(here(capfd, "train", f"{tmp_path}/mine.py:recipe", "--logdir", tmp_path / "run"), says)


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--ps", 1, "--workers", 2], ["--towers", 2]], ids=["ps", "towers"])
@pytest.mark.parametrize("name", ["sys.exit", "three", "two inputs", "LBFGS", "losses"])
def test_a_task_says_the_same_once(name, way, tmp_path: Path):
    prefix, part, says = (*IMPORTS[name][:1], "", IMPORTS[name][1]) if name in IMPORTS else ("", CASES[name].part, "")
    (tmp_path / "mine.py").write_text(prefix + HEAD.replace("PART", part))
    done = evener(tmp_path, "train", "mine.py:recipe", *way, "--train-steps", 3, "--batch-size", 10, "--logdir", "run")

    assert done.code in (1, 2)
    assert (says or CASES[name].says) in done.err
    assert "why: " in done.err
    assert "fix: " in done.err
    assert len(re.findall(r"failed with \w+:", done.text)) == 1
