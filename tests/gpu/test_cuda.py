"""On a real GPU; skipped elsewhere. Run them with: pytest -q tests/gpu"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "system"))
from running import RECIPE, evener, script

import evener as package
from evener.devices import existing, place
from evener.recipes.recipe import Recipe
from evener.report import Evaluated, Finished
from evener.settings import Settings
from evener.state.checkpoint import load
from evener.state.tensors import CPU, spans, specs_of, whole_views
from evener.task.alone import run_alone
from evener.transport.channel import Memory
from evener.wire.layout import Layout
from evener.worker.compute.device_memory import DeviceMemory
from evener.worker.compute.towers import Towers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here (torch.cuda.is_available() is False)"),
]
GPU = torch.device("cuda:0")


class Net(nn.Module):
    """BatchNorm, dropout, a frozen parameter and a scalar; two modules to place."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(7, 61), nn.BatchNorm1d(61), nn.ReLU(), nn.Dropout(drop))
        self.classifier = nn.Linear(61, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.classifier(self.features(x)) * self.scale + self.fixed


def gradients(towers, batch, lease):
    loss = towers.begin(batch, lease)
    towers.collect()
    return loss


def samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, 7, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def recipe_of(drop=0.0, **parts):
    parts = {"ema_decay": 0.9, "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.01)} | parts
    return Recipe(
        model=lambda: Net(drop), data=lambda: (samples(), samples(1)),
        penalty=lambda model: 1e-3 * sum(weight.pow(2).sum() for weight in model.parameters()), **parts,
    )  # fmt: skip


def towers_on(wanted, *, drop=0.0, shards=1):
    """A worker's model on devices, in the shared memory that servers map too."""
    torch.manual_seed(0)
    model = Net(drop)
    layout = Layout(specs_of(model), shards=shards)
    parameters, gradients = Memory(layout.nbytes), Memory(layout.nbytes)
    place(model, wanted)
    homes = {name: tensor.device for name, tensor in model.state_dict(keep_vars=True).items()}
    memory = DeviceMemory(layout, homes, parameters=parameters.view, gradients=gradients.view)
    towers = Towers(
        model, recipe_of(drop), layout, parameters=parameters.view, gradients=gradients.view, seed=1, memory=memory
    )
    return towers, memory, whole_views(layout, parameters.view), whole_views(layout, gradients.view)


def trained(directory, recipe=None, **options):
    reports = []
    (Path(directory) / "logs").mkdir(parents=True, exist_ok=True)
    everything = {"train_steps": 30, "batch_size": 10, "seed": 5, "logdir": str(directory)} | options
    run_alone(Settings(**everything), recipe or recipe_of(), reports.append)
    (finished,) = (report for report in reports if isinstance(report, Finished))
    return finished, next(report.values for report in reports if isinstance(report, Evaluated))


# --- devices


def test_the_gpus_are_listed_with_their_memory():
    gpus = existing()[1:]

    assert len(gpus) == torch.cuda.device_count()
    assert gpus[0].name == "cuda:0"
    assert 0 < gpus[0].free <= gpus[0].total
    assert gpus[0].description == torch.cuda.get_device_name(0)


def test_activations_travel_between_cpu_and_gpu_and_gradients_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 2))
    place(model, {"0": "cuda:0", "3": "cuda:0"})
    output = model(torch.ones(5, 3))
    output.sum().backward()

    assert [parameter.device.type for parameter in model.parameters()] == ["cuda"] * 2 + ["cpu"] * 2 + ["cuda"] * 2
    assert output.device == GPU
    assert all(parameter.grad.device == parameter.device for parameter in model.parameters())


def test_a_model_too_large_for_the_gpu_goes_to_the_cpu():
    free = torch.cuda.mem_get_info(0)[0]
    with torch.device("meta"):
        huge = nn.Linear(2**16, free // 2**18 + 1, bias=False)
    from evener.devices.modules import parts_of
    from evener.devices.plan import plan

    assert "it needs" in plan(parts_of(huge), {"": "cuda:0"}, existing()).warning


# --- memory


@pytest.mark.parametrize("wanted", [{"": "cuda:0"}, {"features": "cuda:0"}, {"classifier": "cuda:0"}], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_gradients_of_the_gpu_land_in_shared_memory(wanted, shards):
    inputs, target = samples()
    expected, _, _, direct = towers_on({}, shards=shards)
    towers, memory, _, here = towers_on(wanted, shards=shards)

    assert memory._locked, "the memory was not page-locked"
    assert gradients(towers, (inputs, target), 0) == pytest.approx(gradients(expected, (inputs, target), 0), rel=1e-5)
    for name, gradient in direct.items():
        torch.testing.assert_close(here[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    memory.close()


def test_what_lands_in_shared_memory_is_on_the_gpu_bit_for_bit():
    towers, memory, here, _ = towers_on({"": "cuda:0"})
    for round_ in range(20):
        memory.settle()
        for view in here.values():
            view.copy_(torch.randn(view.shape) * 100 if view.is_floating_point() else torch.full(view.shape, round_))
        memory.fetch()
    for name, tensor in towers.model.state_dict().items():
        if name in here:
            assert tensor.device == GPU
            assert torch.equal(tensor.cpu(), here[name]), name
    memory.close()


def test_dropout_on_the_gpu_depends_on_seed_and_lease_alone():
    towers, memory, _, here = towers_on({"": "cuda:0"}, drop=0.5)
    first = gradients(towers, samples(), 7)
    kept = {name: view.clone() for name, view in here.items() if "weight" in name}
    torch.rand(11, device=GPU)
    other = gradients(towers, samples(), 8)

    assert gradients(towers, samples(), 7) == first != other
    assert all(torch.equal(here[name], value) for name, value in kept.items())
    memory.close()


def test_one_step_takes_one_copy_each_way_for_each_block():
    towers, memory, _, _ = towers_on({"": "cuda:0"})

    assert len(memory._runs) == 1
    assert memory._runs[0].stop == max(stop for _, stop in spans(Layout(specs_of(towers.model))).values())
    memory.close()


# --- runs


@pytest.mark.parametrize("place_", [{"": "cuda:0"}, {"features": "cuda:0"}], ids=["gpu", "both"])
def test_one_process_trains_to_the_same_place(tmp_path, place_):
    here, there = trained(tmp_path / "cpu"), trained(tmp_path / "gpu", place=place_)

    assert there[0].train_loss == pytest.approx(here[0].train_loss, rel=1e-3)
    assert there[1] == pytest.approx(here[1], rel=1e-3, abs=0.02)


@pytest.mark.parametrize("optimizer", ["Adam", "Adagrad", "SGD", "RMSprop"])
def test_a_run_on_a_gpu_resumes_there_and_on_the_cpu(tmp_path, optimizer):
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    recipe = recipe_of(optimizer=lambda model: getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **options))
    gpu = {"place": {"": "cuda:0"}}
    trained(tmp_path / "whole", recipe, **gpu)
    for name in ("parts", "mixed"):
        trained(tmp_path / name, recipe, train_steps=15, **gpu)
    trained(tmp_path / "parts", recipe, **gpu)
    trained(tmp_path / "mixed", recipe)
    whole, parts, mixed = (
        load(tmp_path / name / "checkpoints" / "step-00000030")[1] for name in ("whole", "parts", "mixed")
    )

    for name, value in whole.parameters.items():
        torch.testing.assert_close(parts.parameters[name], value, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(mixed.parameters[name], value, rtol=1e-2, atol=1e-3)
    assert parts.optimizer.keys() == whole.optimizer.keys()


def test_the_state_of_one_process_lives_on_the_gpu(tmp_path):
    class Looks(package.Hook):
        seen = ()

        def after_step(self, session, result):
            state = session.exchange._state
            kept = next(iter(state.optimizer.state.values()))
            Looks.seen = (state.parameters.device, state.averages.device, kept["exp_avg"].device, kept["step"].device)

    trained(tmp_path, recipe_of(hooks=lambda: [Looks()]), place={"": "cuda:0"}, train_steps=2)
    assert Looks.seen == (GPU, GPU, GPU, CPU)


def test_a_model_on_two_devices_whose_parameters_lie_on_two_ps_tasks_trains_as_on_the_cpu(tmp_path):
    plain = RECIPE.replace("nn.Dropout(0.1)", "nn.Identity()")  # a GPU draws other numbers
    text = plain.replace(
        "class Gate(",
        """class Looks(evener.Hook):
    def end(self, session):
        homes = [str(parameter.device) for parameter in session.towers.model.parameters()]
        Path("homes.txt").write_text(" ".join(homes))


class Gate(""",
    ).replace("hooks = [", "hooks = [Looks()] + [")
    found = []
    for name, words in (("cpu", []), ("both", ["--place", "0=cuda:0,3=cpu"])):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "own.py").write_text(text)
        done = evener(
            directory, "train", "own.py:recipe", "--ps", 2, "--workers", 1, "--train-steps", 30, "--logdir", "run",
            "--json", *words, seconds=180.0,
        )  # fmt: skip
        assert done.code == 0, done.text
        assert "warning" not in done.text
        found.append(done.json["validation_loss"])

    assert (tmp_path / "both" / "homes.txt").read_text() == "cuda:0 cuda:0 cpu cpu"
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("words", [["--mode", "sync"], [], ["--transport", "tcp"]], ids=str)
def test_workers_of_a_cluster_train_on_the_gpu_and_its_ps_tasks_see_none(tmp_path, words):
    text = RECIPE.replace(
        "class Gate(",
        """class Looks(evener.Hook):
    def end(self, session):
        homes = sorted({str(parameter.device) for parameter in session.towers.model.parameters()})
        Path(f"homes-{session.task}.txt").write_text(" ".join(homes))


class Gate(""",
    ).replace("hooks = [", "hooks = [Looks()] + [")
    (tmp_path / "own.py").write_text(text.replace(
        "    return nn.Sequential(",
        '    import sys\n    Path(f"visible-{sys.argv[-1]}").write_text(repr(os.environ.get("CUDA_VISIBLE_DEVICES")))\n'
        "    return nn.Sequential(",
    ))  # fmt: skip
    done = evener(
        tmp_path, "train", "own.py:recipe", "--ps", 2, "--workers", 2, "--num-gpus", 1, "--share-gpus",
        "--train-steps", 100, "--gpu-memory-fraction", 0.2, "--logdir", "run", "--json", *words, seconds=180.0,
    )  # fmt: skip

    assert done.code == 0, done.text
    assert "warning" not in done.text
    assert done.json["validation_loss"] < 0.65
    for index in range(2):
        assert (tmp_path / f"homes-worker:{index}.txt").read_text() == "cuda:0"
        assert (tmp_path / f"visible-ps:{index}").read_text() == "''"


def test_a_share_of_the_memory_is_a_limit_and_growth_is_in_place(tmp_path):
    done = script(
        tmp_path,
        """
import json
import sys

import torch
from torch import nn

import evener


class Looks(evener.Hook):
    def end(self, session):
        try:
            torch.empty(torch.cuda.get_device_properties(0).total_memory // 2, dtype=torch.uint8, device="cuda")
            said = "no limit"
        except torch.OutOfMemoryError:
            said = "out of memory"
        grows = any(segment.get("is_expandable") for segment in torch.cuda.memory_snapshot())
        print(json.dumps({"said": said, "grows": grows}))


x = torch.randn(64, 4), torch.zeros(64, dtype=torch.int64)
recipe = evener.Recipe(
    model=lambda: nn.Linear(4, 2), data=lambda: (x, x), hooks=lambda: [Looks()],
    optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
)
evener.run(recipe, train_steps=3, batch_size=8, num_gpus=1, gpu_memory_fraction=0.25, allow_growth=True, quiet=True)
""",
    )

    assert done.code == 0, done.text
    assert json.loads(done.out.splitlines()[-1]) == {"said": "out of memory", "grows": True}
