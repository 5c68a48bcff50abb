"""A recipe's optimizer, looked at, and moved onto the pieces of the model that one shard holds."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evener.errors import CheckpointError, ConfigError
from evener.recipes.recipe import Recipe
from evener.recipes.references import kind_of, place_of
from evener.state.tensors import beside
from evener.wire.layout import Piece

#: Their update of an element depends on that element alone, so a tensor may be split over several shards.
#: A user's optimizer says so with a class attribute ``elementwise = True``.
ELEMENTWISE = frozenset({
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop,
    torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.ASGD, torch.optim.Rprop,
})  # fmt: skip


def optimizer_of(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The recipe's optimizer over a model.

    Raises:
        ConfigError: it is not an optimizer over parameters of this model that takes steps by itself, nor several.
    """
    made, said = recipe.optimizer(model), f"the recipe's optimizer{place_of(recipe.optimizer)} returned"
    if isinstance(made, Optimizer):
        return _checked(made, model, said)
    several: list[Any] = list(made.values() if isinstance(made, Mapping) else made) if _is_collection(made) else []
    if not several or not all(isinstance(one, Optimizer) for one in several):
        raise ConfigError(
            f"{said} {_described(made)}.",
            why="an update of all gradients is made by an optimizer, or by several that share out the parameters.",
            fix="return one torch.optim optimizer"
            + (", or several with parameters of their own in a dict or a list." if _is_collection(made) else "."),
        )
    for number, one in enumerate(several):
        _checked(one, model, f"{said} several optimizers, of which number {number + 1} is")
    _check_disjoint(several, model, said)
    return several[0] if len(several) == 1 else Several(several)


def _is_collection(made: object) -> bool:
    return isinstance(made, list | tuple | dict)


def _described(made: Any) -> str:
    return f"{len(made)} objects in a {type(made).__name__}" if _is_collection(made) else kind_of(made)


def _check_disjoint(several: Sequence[Optimizer], model: nn.Module, said: str) -> None:
    """Raises ConfigError for a parameter that two of them have."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen: set[Tensor] = set()
    for one in several:
        mine = {parameter for group in one.param_groups for parameter in group["params"]}
        if twice := sorted(names[parameter] for parameter in mine & seen):
            raise ConfigError(
                f"{said} several optimizers, of which two have {twice[0]!r}.",
                why="each takes a step with every update, so it would be changed twice.",
                fix="give each optimizer parameters of its own.",
            )
        seen |= mine


class Several(Optimizer):
    """Several optimizers as one: each group keeps the rule of its own. A step leaves alone who has no gradient."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self.optimizers = list(optimizers)
        self.param_groups = [group for one in optimizers for group in one.param_groups]
        for one in optimizers:  # one state, in which each finds its own parameters
            self.state.update(one.state)
            one.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for one in self.optimizers:
            if any(p.grad is not None for group in one.param_groups for p in group["params"]):
                type(one).step(one)


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that take the steps."""
    return optimizer.optimizers if isinstance(optimizer, Several) else [optimizer]


def _checked(made: Optimizer, model: nn.Module, said: str) -> Optimizer:
    """Raises ConfigError: see `optimizer_of`."""
    name = type(made).__name__
    if needs_closure(made):
        raise ConfigError(
            f"{said} {name}, whose step() needs a closure that computes the loss again.",
            why="an update is made of gradients that workers have computed, once for each batch.",
            fix="use an optimizer that takes gradients as they are: SGD, Adam, AdamW, ...",
        )
    if isinstance(made, torch.optim.SparseAdam):
        raise ConfigError(
            f"{said} SparseAdam.",
            why="gradients travel as flat memory, so that of an embedding with sparse=True arrives dense.",
            fix="use Adam, which takes them so.",
        )
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = [parameter for group in made.param_groups for parameter in group["params"]]
    if (stranger := next((parameter for parameter in held if parameter not in names), None)) is not None:
        raise ConfigError(
            f"{said} {name} over a parameter of shape {list(stranger.shape)} that is not in the model.",
            why="it is called with the model that model() returned, and updates that one's parameters.",
            fix="write optimizer=lambda model: ...(model.parameters(), ...); a loss with parameters of its own belongs "
            "into the model.",
        )
    if not any(parameter.requires_grad for parameter in held):
        raise ConfigError(
            f"{said} {name} over no parameter that is trained.",
            why="training changes parameters, those that the optimizer has.",
            fix="give it model.parameters().",
        )
    return made


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether its step() cannot do without a function that computes the loss again."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return True
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty and closure.kind is closure.POSITIONAL_OR_KEYWORD


def known_as(optimizer: Optimizer) -> str:
    """The name of its kind in checkpoints: evener.tensorflow.Adam is not Adam."""
    if isinstance(optimizer, Several):
        return " and ".join(map(known_as, optimizer.optimizers))
    kind = type(optimizer)
    return f"evener.tensorflow.{kind.__name__}" if kind.__module__.startswith("evener.") else kind.__name__


def names_of_groups(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    """The parameters of each group, by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def check_apart(recipe: Recipe, optimizer: Optimizer, model: nn.Module, pieces: Sequence[Piece]) -> None:
    """Refuse an optimizer that cannot work where each shard updates its own pieces.

    PyTorch's own are known. Of others it is tried out on a copy of the model whether the update of one parameter
    depends on the gradient of another, as when a hook of the optimizer clips by the norm of all.

    Raises:
        ConfigError: it looks at whole tensors, of which pieces are here; or at all of them at once.
    """
    for one in parts_of(optimizer):
        _check_apart(recipe, one, model, pieces)


def _check_apart(recipe: Recipe, optimizer: Optimizer, model: nn.Module, pieces: Sequence[Piece]) -> None:
    kind = type(optimizer)
    known = kind in ELEMENTWISE or bool(getattr(kind, "elementwise", False))
    names = frozenset().union(*names_of_groups(optimizer, model))
    split = next((piece for piece in pieces if piece.spec.name in names and not piece.whole), None)
    if split is not None and not known:
        raise ConfigError(
            f"{kind.__name__} cannot update {split.spec.name!r}, which is split over several ps tasks.",
            why="a part of a tensor can be updated only by an optimizer that works element by element.",
            fix="use --placement greedy, which keeps tensors whole; or, if it does work so, "
            "give its class the attribute elementwise = True.",
        )
    hooked = bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
    if (kind not in ELEMENTWISE or hooked) and _joins_parameters(recipe, model):
        raise ConfigError(
            f"{kind.__name__}{' with its hooks' if hooked else ''} cannot update a model that lies on several shards.",
            why="its update of one parameter depends on the gradients of others, which other tasks hold.",
            fix="use one ps task; to clip by the norm of all gradients, use --clip-norm or the recipe's clip_norm.",
        )


def _joins_parameters(recipe: Recipe, model: nn.Module) -> bool:
    """Whether an update of the first parameter, or of the last, changes with the gradients of the others."""
    count = sum(p.requires_grad for p in model.parameters())
    try:
        together = _stepped(recipe, model, range(count))
        return any(not torch.equal(_stepped(recipe, model, [i])[i], together[i]) for i in {0, count - 1})
    except Exception:  # it wants more than gradients: the first real update will tell
        return False


def _stepped(recipe: Recipe, model: nn.Module, given: Collection[int]) -> list[Tensor]:
    """The trained parameters of a copy of the model after a step, of which those numbered have a gradient."""
    copied = copy.deepcopy(model)
    optimizer = optimizer_of(recipe, copied)
    for group in optimizer.param_groups:
        group["lr"] = group.get("lr") or 0.1  # a warm-up may begin at nothing
    trained = [p for p in copied.parameters() if p.requires_grad]
    for index in given:
        trained[index].grad = torch.full_like(trained[index], 10.0)
    optimizer.step()
    return [p.detach() for p in trained]


def over_pieces(
    optimizer: Optimizer, names: Mapping[Tensor, str], mine: Mapping[str, Sequence[tuple[Piece, nn.Parameter]]]
) -> None:
    """Let an optimizer update these pieces instead of the model's whole parameters, in the same groups.

    Args:
        names: of the model's parameters.
        mine: name -> the pieces here and their memory.
    """
    created = dict(optimizer.state)  # some optimizers make their state at once (Adagrad)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for old in group["params"]:
            for piece, parameter in mine.get(names[old], []) if old in created else []:
                optimizer.state[parameter] = {
                    key: beside(parameter, key, cut_like(value, piece, old.numel()))
                    for key, value in created[old].items()
                }
        group["params"] = [parameter for old in group["params"] for _, parameter in mine.get(names[old], [])]


def cut_like(value: Any, piece: Piece, numel: int) -> Any:
    """A piece's part of optimizer state that is elementwise; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if piece.whole or numel == 1 or value.numel() == 1:
        return value.clone()
    if value.numel() != numel:
        raise CheckpointError(
            f"optimizer state of {piece.spec.name!r} has {value.numel()} elements, the tensor has {numel}.",
            why="a tensor that is split over several ps tasks needs an optimizer that works element by element.",
            fix="use --placement greedy, which keeps tensors whole.",
        )
    return value.reshape(-1)[piece.start : piece.stop].clone()


def l2_of(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """What this group adds of a parameter to its gradient; 0 where weights decay apart from it, or nobody knows."""
    owner = next((one for one in parts_of(optimizer) if any(group is mine for mine in one.param_groups)), optimizer)
    known = type(owner) in ELEMENTWISE and not isinstance(owner, torch.optim.AdamW)
    if not known or group.get("decoupled_weight_decay", False):
        return 0.0
    return float(group.get("weight_decay", 0.0))
