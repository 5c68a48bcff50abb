"""`--init-from`: a fresh run begins with weights from elsewhere, in every way of running, and says what fits."""

import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import evener
from evener import api
from evener.commands.preparation import settings_of
from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.errors import CheckpointError, ConfigError, ModelMismatch
from evener.recipes.recipe import Recipe
from evener.settings import Settings
from evener.state.tensors import named_tensors
from evener.task.build import build
from evener.task.warm_start import matched, unwrapped, warm_start

sys.path += [str(Path(__file__).parents[1] / name) for name in ("worker", "zoo")]
import towers_in_one_process as in_threads
from models import MODELS, Tied, seq

from evener.testing import Cluster, Trainer, finished, same_bits, train

pytestmark = pytest.mark.slow

GENERATOR = torch.Generator().manual_seed(1)
DATA = torch.randn(50, 8, generator=GENERATOR), torch.randint(0, 3, (50,), generator=GENERATOR)


def recipe_of(model, rate: float = 0.1, **parts) -> Recipe:
    return Recipe(
        model=model, data=lambda: (DATA, DATA), optimizer=lambda made: torch.optim.SGD(made.parameters(), lr=rate),
        **parts,
    )  # fmt: skip


def mlp(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def half_frozen() -> nn.Module:
    model = seq(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


KINDS = {**MODELS, "half frozen": half_frozen}


def run(recipe, logdir, capsys, **options):
    """A run alone; its figures and what it told."""
    capsys.readouterr()
    given = {"train_steps": 3, "batch_size": 10, "logdir": logdir} | options
    return evener.run(recipe, **given), capsys.readouterr().out


def saved(model: nn.Module, path: Path, prefix: str = "") -> Path:
    torch.save({prefix + name: tensor for name, tensor in model.state_dict().items()}, path)
    return path


def trained_elsewhere(make=mlp) -> nn.Module:
    """Values that no seed of a run gives."""
    model = make()
    with torch.no_grad():
        for number, tensor in enumerate(named_tensors(model).values()):
            tensor.copy_(torch.linspace(0.1 + number, 0.2 + number, tensor.numel()).view(tensor.shape))
    return model


def begun(model: nn.Module, path: Path) -> tuple[str, ...]:
    return warm_start(model, path)


# --- the same numbers


@pytest.mark.parametrize("file", ["m.pt", "m.safetensors", "run", "run/checkpoints/step-00000005"])
@pytest.mark.parametrize("kind", ["batchnorm1d", "tied weights", "half frozen", "bfloat16", "compiled"])
def test_a_run_begins_where_the_other_ended_to_the_same_loss(kind, file, tmp_path, capsys):
    first, _ = run(recipe_of(KINDS[kind]), tmp_path / "run", capsys, train_steps=5)
    if "." in file:
        api.export(tmp_path / "run", tmp_path / file, recipe_of(KINDS[kind]))
    model = first.model().train()
    inputs, target = Batches(as_data((DATA, DATA)).train, batch_size=10, seed=7).batch(0)
    expected = nn.functional.cross_entropy(model(inputs), target).item()

    again, told = run(recipe_of(KINDS[kind]), tmp_path / "new", capsys, train_steps=1, seed=7,
                      init_from=tmp_path / file)  # fmt: skip
    count = len(named_tensors(model))
    assert again.train_loss == expected
    assert again.global_step == 1
    assert f"{count} of the model's {count} tensors taken" in told
    assert "warning: --init-from" not in told


def test_averages_begin_at_the_loaded_values_and_the_optimizer_afresh(tmp_path):
    path = saved(trained_elsewhere(), tmp_path / "m.pt")
    with Cluster(recipe_of(mlp, ema_decay=0.9), tmp_path / "run", ps=3, init_from=str(path)) as cluster:
        expected = named_tensors(trained_elsewhere())
        for what in ("parameters", "averages"):
            assert same_bits(cluster.parameters(what), {n: t.detach() for n, t in expected.items()})
        assert all(not server.shard.state.optimizer.state for server in cluster.servers)
        assert cluster.step == 0


@pytest.mark.parametrize("ps", [1, 3])
def test_ps_tasks_begin_with_it_and_their_workers_fit(ps, tmp_path):
    """Frozen layers do not travel: each task has them from the file."""
    path = saved(trained_elsewhere(MODELS["frozen layers"]), tmp_path / "m.pt")
    recipe = recipe_of(MODELS["frozen layers"], rate=0.0)
    with Cluster(recipe, tmp_path / "run", ps=ps, workers=1, train_steps=2, batch_size=10, init_from=str(path)) as it:
        trainers = [Trainer(it, 0)]
        train(trainers)
        finished(trainers)
    expected = trained_elsewhere(MODELS["frozen layers"]).state_dict()
    for name, tensor in evener.load(recipe, tmp_path / "run").state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_towers_begin_with_it(tmp_path):
    path = saved(trained_elsewhere(), tmp_path / "m.pt")
    sessions = in_threads.towers(recipe_of(mlp, rate=0.0), tmp_path / "run", 2, train_steps=1, batch_size=10,
                                 init_from=str(path))  # fmt: skip
    assert in_threads.run(sessions) == ["reached step 1"] * 2
    expected = dict(trained_elsewhere().named_parameters())
    for session in sessions:
        found = in_threads.named(session)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_task_whose_file_is_another_one_is_refused(tmp_path):
    """Each ps task begins with its own file: the worker, which meets them all, tells them apart."""
    path = saved(trained_elsewhere(), tmp_path / "m.pt")
    with Cluster(recipe_of(mlp), tmp_path / "run", ps=1, init_from=str(path)) as cluster:
        saved(mlp(), path)
        other = build(cluster.settings, cluster.recipe)
        worker = cluster.worker(0)
        error = worker.refused(worker.hello(recipe=other.fingerprint))
    assert isinstance(error, ModelMismatch)
    assert "--init-from" in error.why


def test_without_it_the_fingerprint_is_that_of_before():
    settings = Settings(recipe="x", logdir="l")
    assert build(settings, recipe_of(mlp)).warm == ()
    assert build(settings, recipe_of(mlp)).fingerprint == build(settings, recipe_of(mlp)).fingerprint


# --- names


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_is_understood(prefix, tmp_path):
    path, model = saved(trained_elsewhere(), tmp_path / "m.pt", prefix), mlp()
    told = begun(model, path)

    assert len(told) == 1
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(),
                                                 trained_elsewhere().state_dict().values(), strict=True))  # fmt: skip


def test_a_compiled_model_takes_plain_weights(tmp_path):
    path, model = saved(trained_elsewhere(), tmp_path / "m.pt"), torch.compile(mlp(), backend="eager")

    assert len(begun(model, path)) == 1
    assert torch.equal(model._orig_mod[0].weight, trained_elsewhere()[0].weight)


def test_a_module_that_is_called_module_keeps_its_name(tmp_path):
    def make() -> nn.Module:
        return nn.Sequential(OrderedDict(module=nn.Linear(2, 2), weight=nn.Identity(), other=nn.Linear(2, 2)))

    path, model = saved(trained_elsewhere(make), tmp_path / "m.pt"), make()
    assert len(begun(model, path)) == 1
    assert torch.equal(model.module.weight, trained_elsewhere(make).module.weight)


def test_names_that_two_tensors_would_have_are_not_guessed():
    model = nn.Module()
    model.module, model.weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(2, 2))
    match = matched(model, {"weight": torch.ones(2, 2), "module.module.weight": torch.ones(2, 2)})

    assert match.taken == {"weight": "weight"}
    assert match.only_file == ["module.module.weight"]
    assert [unwrapped(name) for name in ("module", "module.a", "a.module.b")] == ["module", "a", "a.module.b"]


def test_a_tied_tensor_is_found_under_any_of_its_names_and_differences_are_told(tmp_path):
    def names(model):
        return {name: tensor for name, tensor in model.state_dict().items() if name != "encode.weight"}

    torch.save(names(trained_elsewhere(Tied)), tmp_path / "m.pt")
    model = Tied()
    assert len(begun(model, tmp_path / "m.pt")) == 1
    assert torch.equal(model.encode.weight, trained_elsewhere(Tied).decode.weight)

    torch.save({**trained_elsewhere(Tied).state_dict(), "decode.weight": torch.zeros(8, 8)}, tmp_path / "m.pt")
    (_, warning) = begun(model, tmp_path / "m.pt")
    assert "1 tied in the model but not in the file, of which the first counts: decode.weight" in warning
    assert torch.equal(model.encode.weight, trained_elsewhere(Tied).encode.weight)


# --- what is told


def test_what_fits_and_what_does_not_is_told(tmp_path, capsys):
    state = trained_elsewhere().state_dict()
    state = {name: tensor.double() if name == "0.weight" else tensor for name, tensor in state.items()}
    state["3.weight"], state["3.bias"] = torch.zeros(10, 8), torch.zeros(10)
    state |= {f"head.{n}": torch.zeros(1) for n in range(5)} | {"_extra_state": {"version": 2}}
    del state["1.bias"]
    torch.save(state, tmp_path / "m.pt")
    _, told = run(recipe_of(mlp), tmp_path / "run", capsys, init_from=tmp_path / "m.pt")

    for line in (
        f"worker:0  begins with {tmp_path}/m.pt: 6 of the model's 9 tensors taken (",
        "--init-from: 1 tensors were converted from float64 to float32",
        "warning: --init-from: 5 only in the file: head.0, head.1, head.2 and 2 more",
        "warning: --init-from: 1 only in the model, left as the recipe makes them: 1.bias",
        "warning: --init-from: 2 of another shape, left as the recipe makes them: "
        "3.weight is [10, 8] in it, [3, 8] in the model, 3.bias is [10] in it, [3] in the model",
        "warning: --init-from: 1 no plain tensors, left out: _extra_state",
    ):
        assert told.count(line) == 1, told
    assert line in (tmp_path / "run" / "logs" / "worker-0.log").read_text()


def test_when_nothing_fits_the_run_is_refused(tmp_path, capsys):
    save_file({"a.weight": torch.zeros(3), "3.bias": torch.zeros(10)}, tmp_path / "m.safetensors")

    with pytest.raises(ConfigError, match=r"--init-from: nothing in .*m\.safetensors fits the model") as refused:
        run(recipe_of(mlp), tmp_path / "run", capsys, init_from=tmp_path / "m.safetensors")
    assert "a.weight" in refused.value.why and "0.weight" in refused.value.why
    assert "3.bias is [10] in it, [3] in the model" in refused.value.why
    assert refused.value.fix


def test_what_is_not_there_or_no_weights_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    torch.save(mlp(), tmp_path / "whole.pt")
    for path, error, what in (
        ("nowhere.pt", ConfigError, r"--init-from: there is no .*nowhere\.pt on this machine"),
        ("empty", CheckpointError, "--init-from: there is no checkpoint in"),
        ("whole.pt", ConfigError, r"--init-from: .*whole\.pt is refused"),
    ):
        with pytest.raises(error, match=what):
            run(recipe_of(mlp), tmp_path / "run", capsys, init_from=tmp_path / path)


# --- a logdir that goes on


@pytest.mark.parametrize("kind", ["batchnorm1d", "frozen layers"])
def test_a_logdir_with_a_checkpoint_goes_on_from_that_and_says_so(kind, tmp_path, capsys):
    recipe, path = recipe_of(MODELS[kind]), saved(trained_elsewhere(MODELS[kind]), tmp_path / "m.pt")
    for logdir, ends in (("once", (4,)), ("twice", (2, 4))):
        for end in ends:
            result, told = run(recipe, tmp_path / logdir, capsys, train_steps=end, init_from=path)
    assert f"--init-from {path} is not used: the logdir has a checkpoint" in told
    assert "tensors taken" not in told
    assert result.global_step == 4
    once, twice = (evener.load(recipe, tmp_path / name).state_dict() for name in ("once", "twice"))
    assert all(torch.equal(once[name], tensor) for name, tensor in twice.items())


def test_frozen_layers_from_a_file_need_it_again(tmp_path, capsys):
    recipe = recipe_of(MODELS["frozen layers"])
    path = saved(trained_elsewhere(MODELS["frozen layers"]), tmp_path / "m.pt")
    run(recipe, tmp_path / "run", capsys, init_from=path)

    with pytest.raises(CheckpointError, match=r"frozen '0\.weight' has other values") as refused:
        run(recipe, tmp_path / "run", capsys, train_steps=5)
    assert "--init-from" in refused.value.fix


def test_the_path_is_absolute_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("m.pt", Path("m.pt")):
        settings, _ = settings_of("mnist", {"init_from": given, "logdir": "run"})
        assert settings.init_from == str(tmp_path / "m.pt")
    assert settings_of("mnist", {"logdir": "run"})[0].init_from == ""
