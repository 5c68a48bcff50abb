"""A model cut into stages at the modules that its recipe names. Every process cuts it alike, without talking."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.distributed.pipelining import Pipe, SplitPoint, pipeline
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map_only

from evener.errors import ConfigError
from evener.recipes.recipe import Recipe

#: Modules named in an error message.
SHOWN = 12


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A model in stages."""

    pipe: Pipe
    homes: Mapping[str, int]  # parameter or buffer -> its stage


def points_of(recipe: Recipe, model: nn.Module, stages: int) -> list[str]:
    """The modules at which stages 1, 2, ... begin: some of the recipe's split points, evenly spread over them.

    Raises:
        ConfigError: the recipe names too few, or one that the model lacks.
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in recipe.split_points:
        if name not in known:
            raise ConfigError(
                f"the split point {name!r} is no module of the model.",
                why="a stage begins at a module.",
                fix=f"name some of: {_some(known)}.",
            )
    given = list(recipe.split_points)
    if len(given) < stages - 1:
        raise ConfigError(
            f"{stages} pipeline stages need {stages - 1} split points; the recipe {recipe.name} names "
            f"{', '.join(map(repr, given)) or 'none'}.",
            why="each stage but the first begins at a module that the recipe names.",
            fix=f"write split_points=[...] in the recipe, of {_some(known)}; "
            f"or use --pipeline-stages {len(given) + 1}{'' if given else ', one process'}.",
        )
    return [given[stage * (len(given) + 1) // stages - 1] for stage in range(1, stages)]


def cut(model: nn.Module, points: Sequence[str], inputs: Tensor) -> StagedModel:
    """Cut a model, by tracing it with one microbatch of inputs. The stages hold the model's own parameters.

    Raises:
        ConfigError: it cannot be traced, or a parameter is used by two stages.
    """
    split = dict.fromkeys(points, SplitPoint.BEGINNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about its own
            pipe = pipeline(model, (inputs,), split_spec=split)
    except Exception as error:  # whatever the tracer, or the user's model under it, raises
        raise ConfigError(
            f"the model cannot be cut into stages: {type(error).__name__}: {str(error).splitlines()[0]}",
            why="a pipeline traces the model (torch.export), which may not branch on values of tensors.",
            fix="train it in one process, or put what cannot be traced into one module.",
        ) from error
    if pipe.num_stages != len(points) + 1:
        raise ConfigError(
            f"the split points {', '.join(map(repr, points))} give {pipe.num_stages} stages, not {len(points) + 1}.",
            why="a stage begins where its module is first called, and something must come before it.",
            fix="name modules that are called one after the other, the first of them not at the very beginning.",
        )
    for stage in range(pipe.num_stages):
        _densify(pipe.get_stage_module(stage))
    return StagedModel(pipe, _homes(model, pipe))


def _densify(part: nn.Module) -> None:
    """What travels between stages lies in memory in the order of its dimensions: Gloo takes no channels last."""
    assert isinstance(part, GraphModule)
    for node in part.graph.find_nodes(op="placeholder"):
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = node.meta["val"].contiguous()
    end = part.graph.output_node()
    with part.graph.inserting_before(end):
        end.args = tree_map_only(Node, partial(_dense, part.graph), end.args)
    part.recompile()


def _dense(graph: Graph, node: Node) -> Node:
    made = graph.call_method("contiguous", (node,))
    made.meta = {**node.meta, "val": node.meta["val"].contiguous()}
    return made


def _homes(model: nn.Module, pipe: Pipe) -> dict[str, int]:
    names = {id(tensor): name for name, tensor in _tensors(model, all_names=False).items()}
    homes: dict[str, int] = {}
    for stage in range(pipe.num_stages):
        for tensor in _own(model, pipe.get_stage_module(stage)):
            name = names[id(tensor)]
            if homes.setdefault(name, stage) != stage:
                raise ConfigError(
                    f"{name!r} is used by stage {homes[name]} and by stage {stage}.",
                    why="each stage owns its parameters; weights tied across stages would be two.",
                    fix="choose split points that leave both uses in one stage.",
                )
    return {name: homes.get(name, 0) for name in names.values()}  # what no stage uses gets no gradient anywhere


def _own(model: nn.Module, part: nn.Module) -> list[Tensor]:
    """Give a stage the model's own tensors: the tracer makes copies of tied ones. Returns them."""
    known = _tensors(model, all_names=True)
    mine = [name for name in _tensors(part, all_names=True) if name in known]  # others are constants of the trace
    for name in mine:
        owner, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(owner), leaf, known[name])
    return [known[name] for name in mine]


def _tensors(model: nn.Module, *, all_names: bool) -> dict[str, Tensor]:
    """Parameters and buffers; tied ones under one name, or under all."""
    return dict([
        *model.named_parameters(remove_duplicate=not all_names), *model.named_buffers(remove_duplicate=not all_names)
    ])  # fmt: skip


class Foreign:
    """The tensors of other stages in this process's model: they are nothing, unless somebody wants to see them.

    Args:
        model: the whole model, as the recipe made it.
        names: tensors of other stages.
        travelling: those that `fill` is given. The others, such as frozen parameters, are the same everywhere and stay.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], travelling: Collection[str]) -> None:
        everything = _tensors(model, all_names=False)
        self._tensors = {name: everything[name] for name in names}
        self._stay = {name: tensor.data for name, tensor in self._tensors.items() if name not in travelling}
        self._shown = True

    def hide(self) -> None:
        """Give their memory back: a penalty over the model then counts this stage's own parameters only."""
        if self._shown:
            self._shown = False
            for tensor in self._tensors.values():
                tensor.data = tensor.data.new_empty((0,) * max(1, tensor.dim()))
                tensor.grad = None

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Show these values in the model, until they are hidden again."""
        self._shown = True
        for name, tensor in self._tensors.items():
            if name in values or name in self._stay:
                tensor.data = values[name] if name in values else self._stay[name]

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide them for a moment, and show what they were."""
        before = {name: tensor.data for name, tensor in self._tensors.items()}
        self.hide()
        try:
            yield
        finally:
            self.fill(before)


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
