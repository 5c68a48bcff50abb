"""The rules of the house (ARCHITECTURE.md): a rule that is only written down decays, so each is a test here.

All of it reads the syntax trees of src/evener. Each check is a function from a tree to a list of complaints, and is
first shown to complain about a small sample.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "evener"
MODULES = {".".join(file.relative_to(SRC).with_suffix("").parts): file for file in sorted(SRC.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}

#: From the top floor to the bottom. A module sees the floors below its own; neighbours do not see each other.
#: "recipes" is what a recipe is and how it is found, "recipes.*" are the ones that ship.
FLOORS = [
    {"testing"},
    {"__init__", "__main__"},
    {"cli"},
    {"api"},
    {"loop"},
    {"commands"},
    {"launch"},
    {"task"},
    {"session", "view"},
    {"worker", "server", "result", "audit"},
    {"ledger", "trained", "weights"},
    {"state"},
    {"models", "recipes.*"},
    {"recipes", "cluster"},
    {"settings"},
    {"batch_sizes"},
    {"simulate"},
    {"choices", "modes"},
    {"control", "data", "devices", "policy", "wire", "transport"},
    {"tensorflow", "bounds", "chaos", "clipping", "figures", "rules", "slow"},
    {"pickle_cost"},
    {"files", "allowance", "waiting"},
    {"errors", "leaving", "report", "tally"},
]  # fmt: skip

#: What one place alone may import: prefix of the imported name -> modules, or packages, that may.
ALONE = {
    "cryptography": ("transport.keys", "transport.tcp_seal"),
    "ssl": ("transport.keys", "transport.tcp_handshake"),
    "ray": ("launch.starters.ray",),
    "google_crc32c": ("data.tfrecord.crc",),
    "tensorflow": (),  # evener.tensorflow is written out in PyTorch
    "tensorboard": ("session.summary", "loop.sinks"),
    "torch.utils.tensorboard": ("session.summary", "loop.sinks"),
    "pytest": ("testing.contracts",),  # no dependency of who trains
    "hypothesis": ("testing.contracts",),
    "runpy": ("task.script",),  # the program that a person has named, as `python` would run it
}

#: Nothing that a policy or a message decides may depend on these.
IMPURE = ("torch", "numpy", "ssl", "time", "datetime", "random", "secrets", "os", "pathlib", "io", "logging",
          "threading", "asyncio", "socket", "select", "subprocess", "signal", "sys")  # fmt: skip
PURE = ("policy", "wire", "cluster.cluster", "launch.fate", "errors")

#: They make objects of bytes by running what the bytes say.
UNSAFE_MODULES = ("pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing",
                  "jsonpickle", "copyreg", "xmlrpc", "code", "torch.multiprocessing",
                  "torch.distributed.rpc")  # fmt: skip
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {
    "recv_pyobj",
    "send_pyobj",
    "torch.load",
    "builtins.eval",
    "builtins.exec",
    "torch.distributed.rpc",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package",
    # they pickle, whatever their names say
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
}
UNSAFE_ARGUMENTS = {"allow_pickle": True, "weights_only": False}

#: Files of weights come from other programs and go to them, as pickles too. One module alone writes them, which runs
#: nothing, and reads them where PyTorch runs nothing either.
WEIGHTS = "weights"

#: Files that may have more than 300 lines.
LONG: frozenset[str] = frozenset()


# --- reading


def imports(tree: ast.AST, *, also_for_types: bool = True) -> list[str]:
    """Full names of all that is imported anywhere in a module: ``evener.wire.layout.Spec``, ``ssl``."""
    skipped = set()
    if not also_for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                skipped |= {id(inner) for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


#: The recipes that ship: a floor above the words they are written in.
SHIPPED = ("mnist", "cifar10", "cifar10_networks")


def unit(module: str) -> str:
    """The part of the house that a module, or a name in one, belongs to."""
    first, _, rest = module.partition(".")
    return "recipes.*" if first == "recipes" and rest.partition(".")[0] in SHIPPED else first


def homes(name: str) -> str:
    """The module that a full name in evener is of: ``wire.layout.Spec`` is of ``wire.layout``."""
    while name and name not in MODULES and f"{name}.__init__" not in MODULES:
        name = name.rpartition(".")[0]
    return name if name in MODULES else f"{name}.__init__"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others, also within functions: the shortest way of each."""
    found: list[list[str]] = []
    for start in sorted(arrows):
        ways, seen = [[start]], {start}
        while ways:
            way = ways.pop(0)
            if start in arrows[way[-1]]:
                found.append(way)
                break
            ways += [[*way, other] for other in sorted(arrows[way[-1]] - seen)]
            seen |= arrows[way[-1]]
    return found


def floor(module: str) -> int:
    floors = [number for number, units in enumerate(FLOORS) if unit(module) in units]
    assert floors, f"{module} has no floor: give it one in FLOORS"
    return floors[0]


# --- complaints


def upward(module: str, tree: ast.AST) -> list[str]:
    """Imports that do not point down. Types of the floors above may be named, at no cost when it runs."""
    names = [name.removeprefix("evener.") for name in imports(tree, also_for_types=False) if within(name, "evener")]
    return [f"{module} imports {name}" for name in names if unit(module) != unit(name) and floor(name) <= floor(module)]


def misplaced(module: str, tree: ast.AST) -> list[str]:
    return [
        f"{module} imports {name}, which {' and '.join(homes)} alone may"
        for name in imports(tree)
        for library, homes in ALONE.items()
        if within(name, library) and not module.startswith(homes)
    ]


def impure(module: str, tree: ast.AST) -> list[str]:
    if not any(within(module, pure) for pure in PURE):
        return []
    return [f"{module} imports {name}" for name in imports(tree) if any(within(name, banned) for banned in IMPURE)]


def unsafe(module: str, tree: ast.AST) -> list[str]:
    found = [name for name in imports(tree) if any(within(name, banned) for banned in UNSAFE_MODULES)]
    found += [name for name in imports(tree) if name in UNSAFE_ATTRIBUTES]
    safe = {id(node.func) for node in ast.walk(tree) if module == WEIGHTS and is_of_weights(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in safe:
            text = ast.unparse(node)
            found += [text] if text in UNSAFE_ATTRIBUTES or node.attr in UNSAFE_ATTRIBUTES else []
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                found.append(node.func.id)
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            found += [value for value in values if value in UNSAFE_MODULES]  # import_module("pickle")
            for keyword in node.keywords:
                if keyword.arg in UNSAFE_ARGUMENTS and ast.unparse(keyword.value) == str(UNSAFE_ARGUMENTS[keyword.arg]):
                    found.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
    return [f"{module} uses {name}" for name in found]


def is_of_weights(node: ast.AST) -> bool:
    """A call that writes tensors, or one that reads them and says that nothing else may come."""
    if not isinstance(node, ast.Call):
        return False
    only = [keyword.arg for keyword in node.keywords if ast.unparse(keyword.value) == "True"]
    called = ast.unparse(node.func)
    return called == "torch.save" or (called == "torch.load" and "weights_only" in only)


def environment(module: str, tree: ast.AST) -> list[str]:
    if module == "cluster.environment":
        return []
    read = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
    found = [name for name in imports(tree) if name in read]
    found += [
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) in read
    ]
    return [f"{module} reads {name}" for name in found]


def unannotated(module: str, tree: ast.Module) -> list[str]:
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    if not body or (ast.unparse(body[0]) == "from __future__ import annotations"):
        return []
    return [f"{module} does not begin with `from __future__ import annotations`"]


CHECKS = [upward, misplaced, impure, unsafe, environment, unannotated]


# --- the house as it stands


def test_there_is_a_house_to_look_at():
    assert len(MODULES) > 40
    assert {"cli.main", "policy.synchronous", "wire.codec", "__init__"} < MODULES.keys()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_no_module_breaks_a_rule(check):
    assert [complaint for name, tree in TREES.items() for complaint in check(name, tree)] == []


def test_no_file_has_more_than_300_lines():
    long = {name for name, file in MODULES.items() if len(file.read_text().splitlines()) > 300}

    assert long == LONG


def test_no_two_classes_have_the_same_name():
    """One word for one thing: whoever searches for a name finds what it means."""
    where: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(module)

    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


def test_a_command_that_trains_nothing_does_not_wait_for_pytorch():
    names = ["evener", "evener.cli.main", "evener.api", "evener.launch.run", "evener.task.main"]
    code = f"import sys, {', '.join(names)}; print([name for name in sys.modules if name.partition('.')[0] == 'torch'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert run.stdout == "[]\n"


# --- each check can fail


def label(value: object) -> str:
    return getattr(value, "__name__", str(value))


SAMPLES = [
    (upward, "worker.compute.towers", "from evener.server.shard import Shard"),
    (upward, "server.lead", "import evener.worker.exchange.servers"),
    (upward, "wire.codec", "from evener import state"),
    (upward, "wire.codec", "from evener.policy.events import Apply"),
    (upward, "models", "from evener.state.saver import Saver"),
    (upward, "session.session", "def late():\n    from evener.launch.local import LocalRun"),
    (upward, "recipes.recipe", "from evener.recipes.mnist import mnist"),
    (misplaced, "transport.tcp", "import ssl"),
    (misplaced, "task.main", "from cryptography import x509"),
    (misplaced, "launch.run", "import ray"),
    (misplaced, "worker.exchange.local", "def late():\n    from torch.utils.tensorboard import SummaryWriter"),
    (misplaced, "session.hooks", "from torch.utils import tensorboard"),
    (misplaced, "tensorflow.optimizers", "import tensorflow as tf"),
    (misplaced, "testing.clock", "import pytest"),
    (misplaced, "worker.exchange.local", "def late():\n    from hypothesis import given"),
    (upward, "transport.memory", "from evener.testing.clock import Clock"),
    (upward, "api", "from evener.testing import Cluster"),
    *((impure, "policy.bounded", f"import {name}") for name in IMPURE),
    (impure, "wire.codec", "from os.path import join"),
    (impure, "policy.leases", "def late():\n    from random import random"),
    *((unsafe, "worker.exchange.local", f"import {name}") for name in UNSAFE_MODULES),
    (unsafe, "data.mnist", "from pickle import loads"),
    (unsafe, "data.mnist", "from torch.distributed import rpc"),
    (unsafe, "data.mnist", "import torch.distributed as d\ntorch.distributed.rpc.rpc_sync"),
    *((unsafe, "cli.main", f"{name}('1')") for name in sorted(UNSAFE_CALLS)),
    (unsafe, "cli.main", "import builtins\nbuiltins.eval('1')"),
    (unsafe, "state.checkpoint", "torch.load('model.pt')"),
    (unsafe, "state.checkpoint", "torch.load('model.pt', weights_only=True)"),
    (unsafe, WEIGHTS, "torch.load('model.pt')"),
    (unsafe, WEIGHTS, "torch.load('model.pt', weights_only=False)"),
    (unsafe, WEIGHTS, "torch.load('model.pt', weights_only=chosen)"),
    (unsafe, WEIGHTS, "read = torch.load\nread('model.pt', weights_only=True)"),
    (unsafe, WEIGHTS, "from torch import load"),
    (unsafe, WEIGHTS, "import pickle"),
    (unsafe, "state.checkpoint", "from torch import load"),
    (unsafe, "state.checkpoint", "safe(path, weights_only=False)"),
    (unsafe, "transport.tcp", "socket.recv_pyobj()"),
    (unsafe, "transport.tcp", "socket.send_pyobj(1)"),
    (unsafe, "data.idx", "np.load(path, allow_pickle=True)"),
    *(
        (unsafe, "worker.allreduce.allreduce", f"dist.{name}(x)")
        for name in sorted(UNSAFE_ATTRIBUTES)
        if "_object" in name
    ),
    (unsafe, "state.checkpoint", "torch.save(state, path)"),
    (unsafe, "state.checkpoint", "from torch.hub import load"),
    (unsafe, "recipes.references", "importlib.import_module('pickle')"),
    (environment, "cli.main", "os.environ['HOME']"),
    (environment, "cli.main", "os.getenv('HOME')"),
    (environment, "data.mnist", "from os import environ"),
    (unannotated, "cli.main", '"""Title."""\nimport os\nfrom __future__ import annotations'),
    (unannotated, "cli.main", '"""Title."""\nimport os'),
]


@pytest.mark.parametrize(("check", "module", "source"), SAMPLES, ids=label)
def test_each_forbidden_thing_is_seen(check, module, source):
    assert check(module, ast.parse(source))


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        (
            upward,
            "worker.compute.towers",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from evener.api import run",
        ),
        (upward, "worker.exchange.servers", "from evener.worker.compute.towers import T\nfrom evener import errors"),
        (upward, "recipes.mnist", "from evener.recipes.recipe import Recipe"),
        (misplaced, "transport.tcp_handshake", "import ssl"),
        (misplaced, "session.summary", "from torch.utils.tensorboard import SummaryWriter"),
        (impure, "server.serve", "import time"),
        (unsafe, "session.evaluate", "model.eval()\nre.compile('x')"),
        (unsafe, WEIGHTS, "torch.save(state, file)\ntorch.load('model.pt', map_location='cpu', weights_only=True)"),
        (environment, "cluster.environment", "os.environ['TF_CONFIG']"),
        (unannotated, "data.__init__", ""),
    ],
    ids=label,
)
def test_what_is_allowed_is_not(check, module, source):
    assert check(module, ast.parse(source)) == []


def test_a_new_module_must_be_given_a_floor():
    with pytest.raises(AssertionError, match=r"attic\.box has no floor"):
        upward("attic.box", ast.parse("from evener.errors import EvenerError"))


def test_modules_that_import_each_other_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
    ]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_modules_import_each_other():
    """Inside a room too arrows point one way: what two modules share is a third one."""
    arrows = {
        module: {
            homes(name.removeprefix("evener."))
            for name in imports(tree, also_for_types=False)
            if within(name, "evener") and name != "evener"
        }
        - {module}
        for module, tree in TREES.items()
    }
    assert circles(arrows) == []


def test_the_rules_name_only_what_exists():
    """A rule about a module that is gone rules nothing."""
    units = {unit(module) for module in MODULES}
    assert {name for names in FLOORS for name in names} == units
    for names in ALONE.values():
        for name in names:
            assert any(within(module, name) for module in MODULES), f"{name} is no module"
    assert all(any(within(module, name) for module in MODULES) for name in PURE)
