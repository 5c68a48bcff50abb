"""The trained model comes back: a plain module loads it strictly and gives what the training's own model gives."""

import json
import sys
from enum import Enum
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training import Net, recipe_of, save, shards_of, train, whole_of

import evener
from evener import api
from evener.errors import CheckpointError, ConfigError
from evener.recipes.recipe import Recipe
from evener.state.checkpoint import Store
from evener.state.tensors import named_tensors

sys.path.append(str(Path(__file__).parent / "zoo"))
from models import MODELS

pytestmark = pytest.mark.slow

OLD = Path(__file__).parent / "data" / "logdir_9e33542"
INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))


class Remembering:
    """A recipe's `model`, which keeps what it made: the first one is the model that the run trains."""

    def __init__(self, make) -> None:
        self.make, self.made = make, []

    def __call__(self) -> nn.Module:
        self.made.append(self.make())
        return self.made[-1]


def zoo_recipe(model, **parts) -> Recipe:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(50, 8, generator=generator), torch.randint(0, 3, (50,), generator=generator)
    return Recipe(
        model=model, data=lambda: (data, data), changing=["teacher"],
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05), **parts,
    )  # fmt: skip


def trained(recipe, logdir, **options) -> evener.Result:
    given = {"train_steps": 3, "batch_size": 6, "quiet": True, "logdir": logdir} | options
    return evener.run(recipe, **given)


def plain(model: nn.Module) -> nn.Module:
    """Without torch.compile."""
    return getattr(model, "_orig_mod", model)


def owns_its_memory(model: nn.Module) -> bool:
    """Memory of a run is no storage that PyTorch could make larger."""
    storages = [(t, t.untyped_storage()) for t in (*model.parameters(), *model.buffers())]
    return all(t.device.type == "cpu" and own.nbytes() == t.nbytes and own.resizable() for t, own in storages)


class ExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(8, 3), {"names": ["a", "b"]}

    def forward(self, x):
        return self.layer(x)

    def get_extra_state(self):
        return self.table

    def set_extra_state(self, state) -> None:
        self.table = state


class ExtraTensor(ExtraState):
    """Extra state may be a tensor, and is one of none of the model's parameters then."""

    def get_extra_state(self):
        return torch.tensor([1, 2])


KINDS = {**MODELS, "extra state": ExtraState, "extra state that is a tensor": ExtraTensor}
QUICK = ("batchnorm2d", "tied weights", "frozen layers", "bfloat16", "compiled", "extra state", "buffers", "teacher",
         "extra state that is a tensor")  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in KINDS]
)
def test_every_kind_of_model_comes_back_to_a_plain_one(kind, tmp_path):
    model = Remembering(KINDS[kind])
    result = trained(zoo_recipe(model), tmp_path / "run")
    right = plain(model.made[0]).eval()(INPUTS)

    back = result.model()
    assert not back.training
    assert owns_its_memory(back)
    # in training a convolution's weights lie in the memory that travels, not channels last, where it rounds otherwise
    close = {"rtol": 1e-4, "atol": 1e-4} if kind == "channels last" else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(back(INPUTS), right, **close)
    assert {name: p.requires_grad for name, p in back.named_parameters()} == {
        name: p.requires_grad for name, p in model.made[0].named_parameters()
    }

    files = ["m.pt"] if kind == "extra state" else ["m.pt", "m.safetensors"]
    for file in files:
        made = api.export(tmp_path / "run", tmp_path / file, zoo_recipe(model))
        fresh = plain(KINDS[kind]())
        found = load_file(tmp_path / file) if file.endswith("safetensors") else torch.load(tmp_path / file)
        assert found.keys() == fresh.state_dict().keys()
        fresh.load_state_dict(found, strict=True)
        torch.testing.assert_close(fresh.eval()(INPUTS), right, **close)
        assert (made.global_step, made.compiled) == (3, kind == "compiled")


def test_nobody_elses_model_changes_with_the_one_that_came_back(tmp_path):
    result = trained(zoo_recipe(MODELS["tied weights"]), tmp_path)
    one, other = result.model(), result.model()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()

    assert one.decode.weight is one.encode.weight
    assert all(bool(p.any()) for p in other.parameters() if p.dim() > 1)


def test_a_model_that_was_not_made_anew_leaves_the_memory_of_its_run(tmp_path):
    mine = nn.Linear(8, 3)
    back = trained(zoo_recipe(lambda: mine), tmp_path).model()

    assert back is mine
    assert owns_its_memory(mine)


def test_bringing_a_model_back_uses_up_no_random_numbers(tmp_path):
    result = trained(zoo_recipe(MODELS["dropout"]), tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    result.model()

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("ema", [False, True])
def test_split_tensors_come_back_whole_with_and_without_averages(shards, ema, tmp_path):
    recipe = recipe_of(ema_decay=0.9)
    store, states = Store(tmp_path / "checkpoints"), shards_of(recipe, shards)
    train(states, 3)
    save(store, states)
    store.close()
    fixed = states[0].frozen["fixed"]
    right = whole_of(states, "averages" if ema else "parameters") | {"fixed": fixed}

    back = evener.load(recipe, tmp_path, ema=ema)
    api.export(tmp_path, tmp_path / "m.pt", recipe, ema=ema)
    fresh = Net()
    fresh.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True), strict=True)
    for model in (back, fresh):
        for name, tensor in named_tensors(model).items():
            assert torch.equal(tensor, right[name]), name


def test_the_averages_of_a_run_are_those_that_it_validated(tmp_path):
    recipe = zoo_recipe(MODELS["batchnorm2d"], ema_decay=0.9)
    result = trained(recipe, tmp_path)
    inputs, target = recipe.data()[1]
    for model, what in ((result.model(), "validation_loss"), (result.model(ema=True), "validation_loss_ema")):
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(model(inputs), target))
        assert loss == pytest.approx(result.validation[what], rel=1e-5)


def test_averages_that_were_not_kept_are_an_error(tmp_path):
    result = trained(zoo_recipe(MODELS["layernorm"]), tmp_path)

    with pytest.raises(ConfigError, match="holds no moving averages") as refused:
        result.model(ema=True)
    assert "ema_decay" in refused.value.why and "ema_decay" in refused.value.fix


def test_one_checkpoint_may_be_named(tmp_path):
    recipe = zoo_recipe(MODELS["layernorm"])
    trained(recipe, tmp_path, save_checkpoint_steps=1)
    first, last = (evener.load(recipe, tmp_path / "checkpoints" / f"step-0000000{n}") for n in (1, 3))

    assert not torch.equal(first(INPUTS), last(INPUTS))
    assert torch.equal(evener.load(recipe, tmp_path)(INPUTS), last(INPUTS))


def test_the_best_model_is_a_checkpoint_like_any_other(tmp_path):
    recipe = zoo_recipe(MODELS["layernorm"], keep_best="validation_loss", ema_decay=0.5)
    trained(recipe, tmp_path, eval_every=1)
    inputs, target = recipe.data()[1]
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(evener.load(recipe, tmp_path / "best")(inputs), target))
    assert loss == pytest.approx(json.loads((tmp_path / "best" / "best.json").read_text())["value"], rel=1e-5)


def test_a_function_and_a_lambda_are_usable_in_the_process_that_ran_them(tmp_path):
    def wide(width: int = 8) -> Recipe:
        return zoo_recipe(lambda: nn.Sequential(nn.Linear(8, width), nn.Linear(width, 3)))

    result = trained(wide, tmp_path / "a", recipe_options={"width": 5})
    assert result.model()[0].weight.shape == (5, 8)
    assert evener.load(wide, tmp_path / "a", recipe_options={"width": 5})[0].weight.shape == (5, 8)
    with pytest.raises(CheckpointError, match=r"is \[5"):
        evener.load(wide, tmp_path / "a")


def test_the_figures_as_json_are_as_before(tmp_path):
    figures = trained(zoo_recipe(MODELS["layernorm"]), tmp_path).as_dict()

    assert not {"made", "leads", "model"} & figures.keys()


def test_a_result_whose_checkpoint_is_elsewhere_says_so(tmp_path):
    result = trained(zoo_recipe(MODELS["layernorm"]), tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")

    with pytest.raises(CheckpointError, match="is not here") as refused:
        result.model()
    assert "evener.load" in refused.value.fix


@pytest.mark.parametrize("name", ["alone", "cluster"])
@pytest.mark.parametrize("ema", [False, True])
def test_logdirs_of_9e33542_come_back(name, ema, tmp_path):
    reference = f"{OLD / 'recipe.py'}:recipe"
    back = evener.load(reference, OLD / name, ema=ema)
    made = api.export(OLD / name, tmp_path / "m.safetensors", reference, ema=ema)
    fresh = evener.recipes.recipe.resolve(reference).model()
    fresh.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)

    assert made.global_step == 6
    assert torch.equal(fresh.eval()(INPUTS), back(INPUTS))
    values = evener.evaluate(reference, OLD / name)
    inputs, target = evener.recipes.recipe.resolve(reference).data()[1]
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(back(inputs), target))
    assert loss == pytest.approx(values[f"validation_loss{'_ema' if ema else ''}"], rel=1e-5)


# --- the file


@pytest.fixture
def logdir(tmp_path):
    trained("mnist", tmp_path / "run", recipe_options={"hidden": 5}, train_steps=2)
    return tmp_path / "run"


def test_the_checkpoint_knows_its_recipe_and_options(logdir, tmp_path):
    made = api.export(logdir, tmp_path / "m.pt")

    assert (made.recipe, made.tensors, made.ema) == ("mnist", 4, False)
    assert made.nbytes == (tmp_path / "m.pt").stat().st_size
    assert torch.load(tmp_path / "m.pt")["hidden.weight"].shape == (5, 784)
    with pytest.raises(CheckpointError, match=r"is \[5.*\[6"):
        api.export(logdir, tmp_path / "n.pt", recipe_options={"hidden": 6})


def test_a_file_is_replaced_only_when_that_is_said(logdir, tmp_path):
    (tmp_path / "m.pt").write_text("mine")
    with pytest.raises(ConfigError, match=r"m\.pt exists") as refused:
        api.export(logdir, tmp_path / "m.pt")
    assert "--force" in refused.value.fix
    assert (tmp_path / "m.pt").read_text() == "mine"
    api.export(logdir, tmp_path / "m.pt", force=True)
    assert len(torch.load(tmp_path / "m.pt")) == 4


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    for file, what in (("nowhere/m.pt", "there is no directory"), ("m", "no suffix"), ("d.pt", "is a directory")):
        (tmp_path / "d.pt").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=what):
            api.export(tmp_path / "no logdir", tmp_path / file)


def test_a_recipe_that_is_not_found_here_is_asked_for(tmp_path):
    trained(zoo_recipe(MODELS["layernorm"], name="mine"), tmp_path / "run")

    with pytest.raises(ConfigError, match=r"the recipe of .* is not found here: there is no recipe 'mine'") as refused:
        api.export(tmp_path / "run", tmp_path / "m.pt")
    assert "--recipe" in refused.value.fix


def test_a_recipe_whose_file_has_moved_keeps_the_options_of_its_training(tmp_path):
    text = (
        "import evener, torch\n"
        "def recipe(width: int = 2):\n"
        "    data = (torch.zeros(20, 3), torch.zeros(20, dtype=torch.int64)),\n"
        "    return evener.Recipe(model=lambda: torch.nn.Linear(3, width), data=lambda: (data[0], data[0]),\n"
        "                         optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))\n"
    )
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(text)
    trained(f"{tmp_path}/here/mine.py:recipe", tmp_path / "run", recipe_options={"width": 4})

    assert evener.load(f"{tmp_path}/there/mine.py:recipe", tmp_path / "run").weight.shape == (4, 3)


@pytest.mark.parametrize("ps", [0, 1])
def test_options_that_are_no_numbers_are_those_of_the_training_too(ps, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import enum, evener, torch\n"
        "from pathlib import Path\n"
        "class Kind(enum.Enum):\n"
        "    NARROW, WIDE = 1, 2\n"
        "def recipe(widths: tuple[int, ...] = (2,), place: Path = Path('a'), kind: Kind = Kind.NARROW):\n"
        "    width = sum(widths) * kind.value * len(place.parts)\n"
        "    data = (torch.zeros(20, 3), torch.zeros(20, dtype=torch.int64)),\n"
        "    return evener.Recipe(model=lambda: torch.nn.Linear(3, width), data=lambda: (data[0], data[0]),\n"
        "                         optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))\n"
    )

    class Kind(Enum):  # as a program has it that imports the file by another name
        WIDE = 2

    options = {"widths": (1, 2), "place": Path("a/b/c"), "kind": Kind.WIDE}
    result = trained(f"{tmp_path}/mine.py:recipe", tmp_path / "run", recipe_options=options, ps=ps)

    assert result.model().weight.shape == (18, 3)
    assert evener.load(f"{tmp_path}/mine.py:recipe", tmp_path / "run").weight.shape == (18, 3)
