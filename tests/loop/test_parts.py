"""What `prepare` is given, sorted out: models and optimizers of any number as one of each."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau, SequentialLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from evener.errors import ConfigError
from evener.loop.parts import Several, build, sorted_out, unknown_scheduler
from evener.loop.remote import check_for_servers
from evener.modes import Async
from evener.settings import Settings
from evener.state.state import State
from evener.state.tensors import Slot


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def loader():
    return DataLoader(TensorDataset(torch.zeros(4, 3)), 2)


def settings(**options):
    return Settings(**{"recipe": "train.py", "script": "train.py", **options})


def fingerprint(parts, **options):
    return build(parts, settings(**options)).fingerprint


# --- by kind


def test_each_thing_goes_to_its_kind_in_any_order():
    model, one, two = linear(), loader(), loader()
    optimizer = SGD(model.parameters(), lr=0.1)
    step, plateau = StepLR(optimizer, 1), ReduceLROnPlateau(optimizer)
    parts = sorted_out([plateau, one, optimizer, step, model, two])
    assert (parts.models, parts.optimizers) == ((model,), (optimizer,))
    assert (parts.loaders, parts.schedulers) == ((one, two), (plateau, step))
    assert (parts.model, parts.optimizer) == (model, optimizer)
    assert parts.names == (frozenset({"weight", "bias"}),)


@pytest.mark.parametrize("what", [[linear()], None, 3, "text", linear().parameters(), TensorDataset(torch.zeros(1))])
def test_other_things_are_refused_by_name(what):
    model = linear()
    with pytest.raises(ConfigError, match="prepare was given"):
        sorted_out([model, SGD(model.parameters(), lr=0.1), what])


def test_a_run_needs_a_model_and_an_optimizer():
    model = linear()
    for given, said in (
        ([], "0 models and 0 optimizers"),
        ([model], "1 models and 0 optimizers"),
        ([SGD(model.parameters(), lr=0.1)], "0 models and 1 optimizers"),
    ):
        with pytest.raises(ConfigError, match=said):
            sorted_out(given)


def test_ddp_is_refused():
    model = linear()
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    with pytest.raises(ConfigError, match="DistributedDataParallel"):
        sorted_out([wrapped, SGD(model.parameters(), lr=0.1)])


def test_a_compiled_model_is_the_one_that_it_computes():
    model = linear()
    parts = sorted_out([torch.compile(model, backend="eager"), SGD(model.parameters(), lr=0.1)])
    assert parts.model is model
    assert parts.names == (frozenset({"weight", "bias"}),)


# --- several


def test_several_models_under_one_optimizer():
    a, b = linear(0), linear(1)
    parts = sorted_out([a, b, SGD([*a.parameters(), *b.parameters()], lr=0.1)])
    assert set(dict(parts.model.named_parameters())) == {"model0.weight", "model0.bias", "model1.weight", "model1.bias"}
    assert parts.names[0] == set(dict(parts.model.named_parameters()))


def test_parameters_in_no_model_are_trained_too():
    model, temperature = linear(), nn.Parameter(torch.ones(1))
    parts = sorted_out([model, Adam([{"params": model.parameters()}, {"params": [temperature]}])])
    assert parts.names == (frozenset({"model.weight", "model.bias", "loose0"}),)
    assert dict(parts.model.named_parameters())["loose0"] is temperature
    with pytest.raises(ConfigError, match=r"shape \[1\] that is no nn.Parameter"):
        sorted_out([model, SGD([*model.parameters(), torch.ones(1, requires_grad=True)], lr=0.1)])


def test_tied_parameters_are_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    parts = sorted_out([model, SGD(model.parameters(), lr=0.1)])
    assert parts.names == (frozenset({"0.weight", "0.bias", "1.bias"}),)
    across = [linear(), linear()]
    across[1].weight = across[0].weight
    parts = sorted_out([*across, SGD({p: 0 for one in across for p in one.parameters()}, lr=0.1)])
    assert parts.names == (frozenset({"model0.weight", "model0.bias", "model1.bias"}),)


def test_a_parameter_in_two_optimizers_is_refused():
    model = linear()
    with pytest.raises(ConfigError, match="'bias' is in two optimizers"):
        sorted_out([model, SGD([model.weight, model.bias], lr=0.1), Adam([model.bias])])
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="in two optimizers"):
        sorted_out([model, optimizer, optimizer])


# --- several optimizers as one


def pair():
    a, b = linear(0), linear(1)
    optimizers = SGD(a.parameters(), lr=0.1, momentum=0.9), Adam(b.parameters(), lr=0.01)
    return a, b, optimizers


def steps(a, b, step_a, step_b):
    """Four steps of one, two of the other."""
    for number in range(4):
        for model, step in ((a, step_a), (b, step_b if number % 2 else None)):
            if step is None:
                continue
            (model(torch.ones(3)) ** 2).sum().backward()
            step()
            model.zero_grad(set_to_none=True)
    return [p.detach().clone() for p in [*a.parameters(), *b.parameters()]]


def test_several_optimizers_are_each_as_alone():
    a, b, (one, two) = pair()
    expected = steps(a, b, one.step, two.step)
    a, b, optimizers = pair()
    several = Several(optimizers)
    found = steps(a, b, several.step, several.step)
    assert all(map(torch.equal, found, expected))
    assert len(several.param_groups) == 2
    assert several.param_groups[0] is optimizers[0].param_groups[0], "a scheduler of one changes this one"


def test_a_step_leaves_alone_who_has_no_gradient():
    """Weight decay would move it too."""
    a, b = linear(0), linear(1)
    several = Several([SGD(a.parameters(), lr=0.1), SGD(b.parameters(), lr=0.1, weight_decay=1.0)])
    before = copy.deepcopy(b.state_dict())
    a(torch.ones(3)).sum().backward()
    several.step()
    assert all(torch.equal(value, before[name]) for name, value in b.state_dict().items())


def test_several_keep_one_state_by_which_a_checkpoint_finds_all():
    a, b, optimizers = pair()
    several = Several(optimizers)
    steps(a, b, several.step, several.step)
    assert set(several.state) == {*a.parameters(), *b.parameters()}
    assert set(several.state_dict()["state"]) == {0, 1, 2, 3}


# --- afresh


@pytest.mark.parametrize("begun", [False, True], ids=["new", "with a state of its own"])
def test_each_life_of_a_ps_task_begins_as_the_program_made_it(begun):
    """Without a copy of the model: a ps task's state reads it, and changes memory of its own."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = Adam(model.parameters(), lr=0.1)
    if begun:
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    built = build(sorted_out([model, optimizer]), Settings(recipe="train.py", script="train.py"))

    def life():
        state = State(built.recipe.model(), built.recipe, built.layout)
        state.begin(10)
        assert state.optimizer is optimizer
        assert optimizer.param_groups[0]["lr"] == 0.1
        for number in range(3):
            gradient = Slot(built.layout, 0)
            for view in gradient.views:
                view.fill_(number + 1)
            state.apply(gradient)
            optimizer.param_groups[0]["lr"] *= 0.5
        return [view.clone() for view in state.parameters.views]

    before = [value.clone() for value in model.state_dict().values()]
    first = life()
    assert all(map(torch.equal, life(), first))
    assert all(map(torch.equal, model.state_dict().values(), before))


# --- what tasks must agree upon


def test_programs_that_differ_have_other_fingerprints():
    def parts(model, *optimizers):
        return sorted_out([model, *(optimizers or [SGD(model.parameters(), lr=0.1)])])

    model = linear()
    base = fingerprint(parts(model))
    assert fingerprint(parts(linear(5))) == base, "trained values come from the servers"
    half = parts(model, SGD([model.weight], lr=0.1), SGD([model.bias], lr=0.1))
    frozen = linear()
    frozen.bias.requires_grad_(False)
    other = linear(5)
    other.bias.requires_grad_(False)
    prints = [
        base, fingerprint(half), fingerprint(parts(frozen)), fingerprint(parts(other)),
        fingerprint(parts(model), seed=1), fingerprint(parts(model), script_args=("--lr", "1")),
        fingerprint(parts(model), clip_norm=1.0), fingerprint(parts(model), recipe="other.py", script="other.py"),
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)


def test_what_no_optimizer_has_does_not_travel():
    model = linear()
    model.bias.requires_grad_(False)
    model.register_buffer("count", torch.zeros(1))
    extra = linear()
    built = build(sorted_out([model, extra, SGD([*model.parameters()], lr=0.1)]), settings(ps=2))
    assert {spec.name for spec in built.layout.specs} == {"model0.weight", "model0.count"}
    assert list(built.layout.trained) == ["model0.weight"]


def test_a_run_in_which_all_is_frozen_is_refused():
    model = linear()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that an optimizer has is trained"):
        build(sorted_out([model, SGD(model.parameters(), lr=0.1)]), settings())


def test_two_gradients_in_flight_are_of_one_optimizer():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (one, other)]
    given = settings(ps=1, workers=2, mode=Async(in_flight=2))
    with pytest.raises(ConfigError, match="in-flight 2 does not go with 2 optimizers"):
        check_for_servers(optimizers, given)
    check_for_servers(optimizers[:1], given)
    check_for_servers(optimizers, replace(given, mode=Async()))


def test_an_optimizer_of_sparse_gradients_alone_is_refused_where_they_travel():
    model = nn.Embedding(3, 2, sparse=True)
    sparse = torch.optim.SparseAdam(model.parameters())
    with pytest.raises(ConfigError, match="SparseAdam does not go with several processes"):
        check_for_servers([sparse], settings(ps=1))


def test_a_scheduler_that_prepare_was_not_given_is_known_by_what_it_leaves_in_the_optimizer():
    model = linear()
    optimizer = SGD(model.parameters(), lr=0.1)
    assert not unknown_scheduler(sorted_out([model, optimizer]))
    scheduler = SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 2)], milestones=[3])
    assert "SGD has a scheduler that prepare was not given" in unknown_scheduler(sorted_out([model, optimizer]))
    assert not unknown_scheduler(sorted_out([model, optimizer, scheduler]))


class Shell(torch.optim.Optimizer):
    """As Accelerate's: it has the parts of the optimizer inside, and none of its own."""

    def __init__(self, inner):
        self.optimizer, self.param_groups = inner, inner.param_groups


class Clock:
    """As Accelerate's, around a scheduler."""

    def __init__(self, inner):
        self.scheduler = inner


def test_of_what_accelerate_has_wrapped_what_is_inside_takes_the_steps(monkeypatch):
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1)
    with pytest.raises(ConfigError, match=r"Shell was made without Optimizer\.__init__"):
        sorted_out([model, Shell(optimizer)])
    with pytest.raises(ConfigError, match="prepare was given an object of type Clock"):
        sorted_out([model, optimizer, Clock(scheduler)])
    for kind in (Shell, Clock):
        monkeypatch.setattr(kind, "__module__", "accelerate.any")
    parts = sorted_out([model, Shell(optimizer), Clock(scheduler)])
    assert (parts.optimizers, parts.schedulers) == ((optimizer,), (scheduler,))
