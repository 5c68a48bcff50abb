"""A small model, its recipe, and training on any number of shards in this process, for the tests of state and files."""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from evener.recipes.recipe import Recipe
from evener.state.checkpoint import Manifest, Store
from evener.state.contents import Contents
from evener.state.state import State
from evener.state.tensors import Slot, specs_of
from evener.wire.layout import Layout

Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Net(nn.Module):
    """Tensors that split badly: odd sizes, a scalar, BatchNorm's buffers, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 61)
        self.norm = nn.BatchNorm1d(61)
        self.second = nn.Linear(61, 5)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.fixed = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))) * self.scale


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def recipe_of(optimizer: Optimizer = sgd, model: Callable[[], nn.Module] = Net, **parts) -> Recipe:
    inputs, target = torch.randn(8, 7), torch.zeros(8, dtype=torch.int64)
    return Recipe(model=model, data=lambda: ((inputs, target), (inputs, target)), optimizer=optimizer, **parts)


def fresh(recipe: Recipe, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return recipe.model()


def shards_of(
    recipe: Recipe, shards: int = 1, *, placement: str = "even", seed: int = 0, contents: Contents | None = None,
    hyperparameters: str = "checkpoint",
) -> list[State]:  # fmt: skip
    """One state for each shard of the recipe's model, begun, or continued from a checkpoint."""
    layout = Layout(specs_of(fresh(recipe, seed)), shards=shards, placement=placement)
    states = [State(fresh(recipe, seed), recipe, layout, shard=shard) for shard in range(shards)]
    for state in states:
        state.begin(3, contents, hyperparameters=hyperparameters)
    return states


def gradient_at(step: int, model: nn.Module) -> dict[str, Tensor]:
    """The gradient of update `step`, and what BatchNorm's buffers became in it: the same numbers for any placement."""
    generator = torch.Generator().manual_seed(1000 + step)
    gradient = {}
    for spec in specs_of(model):
        value = torch.randn(spec.shape, generator=generator)
        value = value.abs() if spec.name.endswith("running_var") else value
        gradient[spec.name] = value if spec.dtype == "float32" else torch.full(spec.shape, step + 1)
    return gradient


def slot_of(state: State, whole: dict[str, Tensor]) -> Slot:
    """A shard's part of a whole gradient."""
    slot = Slot(state.parameters.layout, state.parameters.shard)
    for piece, view in slot.named():
        view.copy_(whole[piece.spec.name].reshape(-1)[piece.start : piece.stop].view(view.shape))
    return slot


def train(states: Sequence[State], steps: int) -> None:
    """So many updates, each with the gradient that belongs to its global step."""
    model = states[0].recipe.model()
    for _ in range(steps):
        whole = gradient_at(states[0].step, model)
        for state in states:
            state.apply(slot_of(state, whole))


def whole_of(states: Sequence[State], what: str = "parameters") -> dict[str, Tensor]:
    """Whole tensors by name, joined here and by hand."""
    flat: dict[str, Tensor] = {}
    for spec in states[0].parameters.layout.specs:
        flat[spec.name] = torch.zeros(spec.numel, dtype=getattr(torch, spec.dtype))
    for state in states:
        for piece, view in getattr(state, what).named():
            flat[piece.spec.name][piece.start : piece.stop] = view.reshape(-1)
    return {spec.name: flat[spec.name].view(spec.shape) for spec in states[0].parameters.layout.specs}


def save(store: Store, states: Sequence[State], **facts) -> str:
    """A committed checkpoint of all shards; returns its directory."""
    everything = [state.contents() for state in states]
    files = {}
    for shard, contents in enumerate(everything):
        files |= store.write_shard(contents, shard)
    return str(store.commit(manifest_for(states, everything, files=files, **facts)))


def manifest_for(states: Sequence[State], everything: Sequence[Contents], *, files, **facts) -> Manifest:
    return Manifest(
        step=everything[0].step,
        shards=len(states),
        files=files,
        shapes={spec.name: list(spec.shape) for spec in states[0].parameters.layout.specs},
        parts=states[0].parameters.layout.parts,
        values={str(shard): contents.values for shard, contents in enumerate(everything)},
        **({"recipe": "net", "options": {}, "next_lease": everything[0].step, "unapplied": [], "seqs": {}} | facts),
    )


def restored(recipe: Recipe, contents: Contents, shards: int, **how) -> list[State]:
    """States that continue from a checkpoint, on any number of shards."""
    return shards_of(recipe, shards, contents=contents, **how)


def assert_equal(these: dict[str, Tensor], those: dict[str, Tensor], *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert these.keys() == those.keys()
    for name, tensor in these.items():
        torch.testing.assert_close(tensor, those[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def large_ones(nbytes: int) -> int:
    """How many blocks of at least so many bytes all tensors of this process hold together."""
    gc.collect()
    tensors = (held for held in gc.get_objects() if type(held) in (Tensor, nn.Parameter))
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided)  # others have none
    return len({storage.data_ptr() for storage in storages if storage.nbytes() >= nbytes})


def largest_taken(work: Callable[[], object]) -> int:
    """Bytes of the largest tensor that PyTorch makes meanwhile, temporaries of its own included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    return max((event.self_cpu_memory_usage for event in profile.events() or ()), default=0)
