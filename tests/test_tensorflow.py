"""evener.tensorflow's optimizers give TensorFlow's numbers, also over shards and checkpoints.

The numbers are in data/tensorflow_values.json, made by TensorFlow with data/make_tensorflow_values.py.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from training import Net, assert_equal, recipe_of, restored, save, shards_of, train, whole_of

import evener.tensorflow
from evener.errors import CheckpointError, ConfigError
from evener.recipes.recipe import Recipe
from evener.state.checkpoint import Store
from evener.testing import (
    Cluster,
    Trainer,
    differences,
    finished,
    one_process,
    same_bits,
    train as train_together,
)

VALUES = json.loads((Path(__file__).parent / "data" / "tensorflow_values.json").read_text())
START = [1.0, -1.0, 0.5, 0.25, -0.5, 2.0]
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}

#: Every optimizer with options that it has for itself.
MADE = {
    "adam": lambda parameters: evener.tensorflow.Adam(parameters, 0.01),
    "rmsprop": lambda parameters: evener.tensorflow.RMSProp(parameters, 0.01, momentum=0.9),
    "centered": lambda parameters: evener.tensorflow.RMSProp(parameters, 0.01, centered=True),
    "adagrad": lambda parameters: evener.tensorflow.Adagrad(parameters, 0.1),
    "adadelta": lambda parameters: evener.tensorflow.Adadelta(parameters, 1.0),
    "ftrl": lambda parameters: evener.tensorflow.Ftrl(parameters, 0.1, l1_regularization_strength=0.01),
    "proximal_adagrad": lambda parameters: evener.tensorflow.ProximalAdagrad(
        parameters, 0.1, l1_regularization_strength=0.01
    ),
}

#: What docs/tensorflow.md says of PyTorch's own.
OF_PYTORCH = {
    "GradientDescent": lambda parameters, learning_rate: torch.optim.SGD(parameters, lr=learning_rate),
    "Momentum": lambda parameters, learning_rate, momentum, use_nesterov=False: torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, nesterov=use_nesterov
    ),
    "Adagrad": lambda parameters, learning_rate, initial_accumulator_value=0.1: torch.optim.Adagrad(
        parameters, lr=learning_rate, initial_accumulator_value=initial_accumulator_value, eps=0
    ),
    "Adadelta": lambda parameters, learning_rate=0.001, rho=0.95, epsilon=1e-8: torch.optim.Adadelta(
        parameters, lr=learning_rate, rho=rho, eps=epsilon
    ),
}


def gradient(step, dtype):
    """The twin of the one in data/make_tensorflow_values.py."""
    wave = ((step * 37) % 19 - 9) / 9
    values = [2.0 + wave, 0.05 * wave, 1e-7 * (1 + wave), 0.0, wave, 0.0 if step < 5 else 0.5 * wave - 0.2]
    return torch.tensor(values, dtype=dtype)


def trained(make, dtype, at):
    """The parameter after the steps of `at`, text -> tensor."""
    parameter = nn.Parameter(torch.tensor(START, dtype=dtype))
    optimizer, found = make([parameter]), {}
    for step in range(max(map(int, at))):
        parameter.grad = gradient(step, dtype)
        optimizer.step()
        found[str(step + 1)] = parameter.detach().clone()
    return {step: found[step] for step in at}


def worst(found, expected):
    """The largest difference of an element, relative, or to 0.001 where it is smaller."""
    return max(
        float(((found[step] - value).abs() / value.abs().clamp(min=1e-3)).max())
        for step, numbers in expected.items()
        for value in [torch.tensor(numbers, dtype=found[step].dtype)]
    )


def cases(*, of_pytorch=False):
    found = []
    for case in VALUES["optimizers"]:
        if (case["name"] in OF_PYTORCH) if of_pytorch else hasattr(evener.tensorflow, case["name"]):
            for dtype in TOLERANCE:
                if case[dtype] is not None:
                    options = ",".join(f"{name}={value}" for name, value in case["options"].items())
                    found.append(pytest.param(case, dtype, id=f"{case['name']}({options})-{dtype}"))
    return found


# --- TensorFlow's numbers


@pytest.mark.parametrize(("case", "dtype"), cases())
def test_the_numbers_are_tensorflows(case, dtype):
    options = {{"learning_rate": "lr"}.get(name, name): value for name, value in case["options"].items()}
    kind = getattr(evener.tensorflow, case["name"])
    found = trained(lambda parameters: kind(parameters, **options), getattr(torch, dtype), case[dtype])

    assert worst(found, case[dtype]) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("case", "dtype"), cases(of_pytorch=True))
def test_pytorch_has_the_same_numbers_where_the_guide_says_so(case, dtype):
    make = OF_PYTORCH[case["name"]]
    found = trained(lambda parameters: make(parameters, **case["options"]), getattr(torch, dtype), case[dtype])

    # TensorFlow rounds options to float32, PyTorch does not beside a parameter of float64.
    assert worst(found, case[dtype]) <= 1e-6


def test_each_optimizer_was_compared():
    kinds = {type(make([nn.Parameter(torch.ones(1))])).__name__ for make in MADE.values()}
    assert kinds == {"Adam", "RMSProp", "Adagrad", "Adadelta", "Ftrl", "ProximalAdagrad"}
    assert kinds <= {case["name"] for case in VALUES["optimizers"]}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("Adam", lambda parameters: torch.optim.Adam(parameters, lr=0.01)),
        ("RMSProp", lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, alpha=0.9, eps=1e-10)),
        ("Adagrad", lambda parameters: torch.optim.Adagrad(parameters, lr=0.1)),
        ("Adadelta", torch.optim.Adadelta),
    ],
)
def test_pytorchs_own_with_its_defaults_does_not_pass_for_tensorflows(name, make):
    case = next(case for case in VALUES["optimizers"] if case["name"] == name)
    assert worst(trained(make, torch.float32, case["float32"]), case["float32"]) > 0.01


# --- as optimizers of PyTorch


@pytest.mark.parametrize("name", MADE)
def test_a_parameter_without_a_gradient_stays_and_has_no_state(name):
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer = MADE[name](parameters)
    parameters[0].grad = torch.ones(3)
    optimizer.step()

    assert parameters[0].ne(1).all()
    assert torch.equal(parameters[1], torch.ones(2))
    assert list(optimizer.state) == [parameters[0]]


@pytest.mark.parametrize("name", MADE)
def test_a_state_dict_continues_bit_for_bit(name):
    whole, first = (nn.Parameter(torch.tensor(START)) for _ in range(2))
    uninterrupted, before = MADE[name]([whole]), MADE[name]([first])
    for step in range(4):
        whole.grad, first.grad = gradient(step, torch.float32), gradient(step, torch.float32)
        uninterrupted.step()
        before.step()
    again = nn.Parameter(first.detach().clone())
    after = MADE[name]([again])
    after.load_state_dict(before.state_dict())
    for step in range(4, 8):
        whole.grad, again.grad = gradient(step, torch.float32), gradient(step, torch.float32)
        uninterrupted.step()
        after.step()

    assert torch.equal(whole, again)
    assert not torch.equal(whole, first)


def test_groups_have_options_of_their_own_and_lr_may_change():
    fast, slow = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = evener.tensorflow.Adagrad([{"params": [fast]}, {"params": [slow], "lr": 0.1}], 1.0)
    fast.grad = slow.grad = torch.ones(1)
    optimizer.step()
    assert fast.item() == pytest.approx(10 * slow.item())
    optimizer.param_groups[0]["lr"] = 0.0
    before = fast.item()
    optimizer.step()
    assert fast.item() == before


def test_a_closure_is_evaluated_with_gradients():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = evener.tensorflow.Adam([parameter])

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert parameter.ne(1).all()


def test_a_sparse_gradient_is_refused():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="Adam was given a sparse gradient"):
        evener.tensorflow.Adam(table.parameters()).step()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Adam", {"lr": -1.0}),
        ("Adam", {"beta1": 1.0}),
        ("RMSProp", {"lr": 0.1, "momentum": -0.1}),
        ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.0}),
        ("Adadelta", {"rho": 1.1}),
        ("Ftrl", {"lr": 0.0}),
        ("Ftrl", {"lr": 0.1, "learning_rate_power": 0.5}),
        ("ProximalAdagrad", {"lr": 0.1, "l1_regularization_strength": -1.0}),
    ],
)
def test_options_that_cannot_work_are_refused(kind, options):
    with pytest.raises(ConfigError, match=f"{kind} cannot work with {list(options)[-1]}="):
        getattr(evener.tensorflow, kind)([nn.Parameter(torch.ones(1))], **options)


# --- under evener


@pytest.mark.parametrize("name", MADE)
def test_parameters_may_be_split_and_a_checkpoint_continues_on_another_number_of_shards(name, tmp_path):
    recipe = recipe_of(lambda model: MADE[name](model.parameters()))
    whole, split = shards_of(recipe), shards_of(recipe, 3)
    assert any(not piece.whole for state in split for piece in state.parameters.pieces)
    train(whole, 8)
    train(split, 4)
    store = Store(tmp_path)
    save(store, split)
    resumed = restored(recipe, store.newest()[1], 2)
    store.close()
    train(resumed, 4)

    assert_equal(whole_of(resumed), whole_of(whole), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("here", [torch.optim.Adam, evener.tensorflow.Adam])
def test_a_checkpoint_of_the_other_adam_is_refused(here):
    (there,) = {torch.optim.Adam, evener.tensorflow.Adam} - {here}
    (state,) = shards_of(recipe_of(lambda model: there(model.parameters())))
    train([state], 2)

    with pytest.raises(CheckpointError, match=r"trained with (evener\.tensorflow\.)?Adam, this run trains with"):
        restored(recipe_of(lambda model: here(model.parameters())), state.contents(), 1)


@pytest.mark.parametrize("name", MADE)
def test_two_workers_on_two_ps_tasks_are_one_process(name, tmp_path):
    inputs = torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    recipe = Recipe(
        model=lambda: nn.Sequential(nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 4)).double(),
        data=lambda: ((inputs, torch.arange(40) % 4), (inputs, torch.arange(40) % 4)),
        optimizer=lambda model: MADE[name](model.parameters()),
    )
    session, _, _ = one_process(recipe, tmp_path / "alone", train_steps=12, batch_size=10)
    session.run()
    alone = dict(session.towers.model.named_parameters())
    with Cluster(recipe, tmp_path / "two", mode="sync", ps=2, workers=2, train_steps=12, batch_size=5) as cluster:
        workers = [Trainer(cluster, index) for index in range(2)]
        train_together(workers)
        finished(workers)
        together = cluster.parameters()
        assert any(not piece.whole for piece in cluster.built.layout.pieces)

    assert max(differences(together, {name: value.detach() for name, value in alone.items()})) < 1e-12
    assert not same_bits(together, dict(recipe_start(recipe)))


def recipe_start(recipe):
    torch.manual_seed(0)
    return recipe.model().state_dict()


def test_a_model_with_a_scalar_and_buffers_trains():
    """`Net` has them; nothing that an optimizer keeps has another shape than its parameter."""
    (state,) = shards_of(recipe_of(lambda model: evener.tensorflow.Adam(model.parameters()), Net))
    train([state], 2)
    for parameter, kept in state.optimizer.state.items():
        assert {kept["m"].shape, kept["v"].shape} == {parameter.shape}
        assert isinstance(kept["beta1_power"], float)
