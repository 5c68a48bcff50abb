"""What may not change in a worker's model, because no update, checkpoint or other task would know of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evener.errors import ConfigError
from evener.state.tensors import PIECE, frozen, persistent_buffers
from evener.wire.layout import Layout

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Of each trained parameter, so many numbers, or a few more, are looked at every time.
FEW = 64


@dataclass(frozen=True, slots=True)
class _Arrived:
    """What other processes have filled the parameters with."""

    arrival: int  # the so-and-so-manieth filling
    writes: int  # version counters
    sample: list[Tensor]
    values: int | None  # checksum of all, where one was made


class Values:
    """Whether parameters are what they were.

    Args:
        named: they themselves, since `.data` may give one of them other memory.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._named = named
        self._writes = self._counted()
        self._sums = {name: checksum([tensor]) for name, tensor in named.items()}

    def _counted(self) -> int:
        return sum(tensor._version for tensor in self._named.values())

    def changed(self, *, sure: bool) -> str:
        """The name of one that was changed, or nothing.

        Args:
            sure: by values; else where PyTorch has counted a write, which it does not for `.data`.
        """
        if not sure and self._counted() == self._writes:
            return ""
        self._writes = self._counted()
        return next((name for name, tensor in self._named.items() if checksum([tensor]) != self._sums[name]), "")


class Constants:
    """The parts of a model that are outside what travels: as they were when training began.

    What costs nothing is looked at in every step: whether a frozen parameter is to be trained now, and PyTorch's own
    version counters. Values are compared after steps 1, 2, 4, 8, ...: a teacher that follows its student by `.data` is
    seen in the first step.

    Of parameters that other processes have filled a sample is compared each time. A program may write them and put back
    what was there, to look at its averages say: where its counters have moved and the sample is as it was, all are
    compared from then on, until it is known once that this program puts back every bit.

    Args:
        model: bound to the memory that travels.
        elsewhere: tensors of other stages of a pipeline, whose memory comes and goes here.
    """

    def __init__(self, model: nn.Module, layout: Layout, elsewhere: Collection[str] = ()) -> None:
        self._model = model
        self._known = {name: p for name, p in model.named_parameters()}
        self._buffers = {name for name, _ in persistent_buffers(model)}
        self._frozen = {name: self._known[name] for name in frozen(model, layout) if name not in elsewhere}
        self._trained = [self._known[name] for name in layout.trained]
        self._untrained = {name: p for name, p in self._known.items() if not p.requires_grad}
        self._values = Values(self._frozen)
        self._extra = extra_states(model)
        self._looks = 0
        self._attributes: dict[str, str] | None = None  # what modules hold besides tensors of theirs, after a batch
        #: What is not refused, since a run may do without it, but should be known; whoever tells it empties the list.
        self.notes: list[str] = []
        self._arrived: _Arrived | None = None
        self._doubted, self._proved = False, False  # the program has written parameters; and put all of them back
        self._addresses: list[int] = []
        self._few: list[list[Tensor]] = []  # views of the sample there

    def arrived(self, arrival: int) -> None:
        """Other processes have just filled the parameters; until the next gradient they stay so."""
        deep = self._doubted or power_of_two(self._looks + 1)
        self._arrived = _Arrived(arrival, self._writes(), self._sample(), checksum(self._trained) if deep else None)

    def _writes(self) -> int:
        return sum(p._version for p in self._trained)

    def _sample(self) -> list[Tensor]:
        addresses = [p.data_ptr() for p in self._trained]
        if addresses != self._addresses:
            self._addresses, self._few = addresses, _sampled(self._trained)
        return [torch.cat(views) for views in self._few]

    def look(self, arrival: int) -> None:
        """After a batch was computed and hooks had their say.

        Args:
            arrival: which filling of the parameters by other processes the model holds; 0: they are this process's own,
                so what the model and hooks make of them is what is trained.

        Raises:
            ConfigError: naming what was changed, and what to do instead.
        """
        self._looks += 1
        deep = power_of_two(self._looks)
        for name, parameter in self._untrained.items():
            if parameter.requires_grad:
                raise _unfrozen(name)
        self._compare_frozen(sure=deep)
        if arrival:
            self.compare_arrived(arrival)
        if deep:
            self._compare_parts()
            self._compare_attributes()

    def _compare_frozen(self, *, sure: bool) -> None:
        if name := self._values.changed(sure=sure):
            raise ConfigError(
                f"the model or a hook has changed {name!r}, a parameter that is not trained.",
                why="such parameters neither travel nor are saved with each step: every task would have its own.",
                fix=f"in a recipe name it, or the module that holds it: changing=[{name.rpartition('.')[0]!r}]; it "
                "then travels, is saved and averaged as buffers are. In a loop of your own leave its model out of "
                "prepare, so that each worker has its own, or make buffers of it.",
            )

    def altered(self, arrival: int, *, deep: bool = True) -> bool:
        """Whether trained parameters are seen not to be what other processes have filled them with.

        Args:
            deep: compare all, where that is possible, also if no version counter has moved.
        """
        came = self._arrived
        if came is None or came.arrival != arrival:
            return False
        written = self._writes() != came.writes
        same = all(map(torch.equal, self._sample(), came.sample))
        if same and came.values is not None and (written or deep):
            same = checksum(self._trained) == came.values
            self._proved = self._proved or (same and written)
            self._doubted = self._doubted and not self._proved
        elif same and written:
            self._doubted = not self._proved
        return not same

    def compare_arrived(self, arrival: int, *, deep: bool = True) -> None:
        """Raises ConfigError where they are `altered`."""
        if not self.altered(arrival, deep=deep):
            return
        raise ConfigError(
            "the model or a hook has changed trained parameters by itself.",
            why="they belong to the ps tasks, whose next answer would undo the change.",
            fix="constrain them where they are updated: by a hook of the optimizer, which finds them in its "
            "param_groups (optimizer.register_step_post_hook, before prepare), in the step() of an optimizer of your "
            "own with the class attribute elementwise = True, or by torch.nn.utils.parametrize; in a loop of your own "
            "give every optimizer to prepare, and look at other values in a copy of the model, or put back every bit "
            "before the next step and the end of the pass; or train without ps tasks.",
        )

    def _compare_parts(self) -> None:
        now = dict(self._model.named_parameters())
        if other := next((name for name in now if now[name] is not self._known.get(name)), ""):
            raise ConfigError(
                f"the model or a hook has put a new parameter in the place of {other!r}.",
                why="the optimizer and the memory that travels know those that there were when training began.",
                fix="make all parameters in model(), or before prepare, and change their values in place.",
            )
        if more := {name for name, _ in persistent_buffers(self._model)} - self._buffers:
            raise ConfigError(
                f"the buffer {min(more)!r} is new: the model had none of this name when training began.",
                why="what travels and is saved is known before the first batch.",
                fix="register it with a tensor in model(), or before prepare; or persistent=False, if it need not be "
                "kept.",
            )
        for name, state in extra_states(self._model).items():
            if state != self._extra.get(name):
                raise ConfigError(
                    f"the extra state of module {name!r} (get_extra_state) has changed.",
                    why="it is no tensor that could travel: it would neither be saved nor be the same on two tasks.",
                    fix="keep it in a buffer: self.register_buffer(name, tensor).",
                )

    def _compare_attributes(self) -> None:
        """A table that the first batch made stays as it is; what goes on changing is state that nobody keeps."""
        now = attributes_of(self._model)
        before, self._attributes = self._attributes, now
        changed = [name for name in now if before is not None and before.get(name, now[name]) != now[name]]
        for name in changed:
            self.notes.append(
                f"warning: {name} changes while the model trains and is no parameter or buffer: each task has its "
                "own, no checkpoint keeps it, and a validation elsewhere does not see it. Keep a tensor with "
                "register_buffer; a module as an attribute of its own, with changing=[...] in the recipe"
            )
        if changed:
            self._attributes = None  # told once; what it becomes is no news


def _unfrozen(name: str) -> ConfigError:
    return ConfigError(
        f"{name!r} was frozen when training began and is to be trained now.",
        why="what is trained is known before the first batch: it has its place in memory and in the optimizer.",
        fix="let model() return it with requires_grad=True and freeze it in a hook's after_create, in a loop of your "
        "own after prepare: a parameter without gradient is left alone, and may be unfrozen later.",
    )


def checksum(tensors: Iterable[Tensor]) -> int:
    """A sum of all bits, as integers of the tensors' own size: one pass, on whatever device they are.

    PyTorch makes wide integers of all that it is to sum at once, twice the memory of float32: so it gets pieces.
    """
    total = 0
    with torch.no_grad():
        for tensor in tensors:
            flat = tensor.detach().reshape(-1)
            for piece in torch.split(flat.view(_INTEGERS[flat.element_size()]), PIECE) if flat.numel() else ():
                total += int(piece.sum(dtype=torch.int64))
    return total


def _sampled(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Views of a few numbers of each, spread over it, as integers; those of one kind and device together."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        integers = _INTEGERS[flat.element_size()]
        if flat.numel():  # by an odd stride, or it might be one column of a matrix
            kinds.setdefault((integers, flat.device), []).append(flat.view(integers)[:: (flat.numel() // FEW) | 1])
    return list(kinds.values())


def extra_states(model: nn.Module) -> dict[str, str]:
    """What modules keep beside tensors (`get_extra_state`), by module, in a form that can be compared."""
    found = {}
    for name, module in model.named_modules():
        if getattr(type(module), "get_extra_state", None) is not nn.Module.get_extra_state:
            found[name] = _described(module.get_extra_state())
    return found


#: Of what every module has itself.
_OWN = frozenset(vars(nn.Module())) | {"training"}


def attributes_of(model: nn.Module) -> dict[str, str]:
    """Numbers, tensors and modules that modules hold as plain attributes, or in lists and dictionaries, by name."""
    known = {id(held) for held in (*model.modules(), *model.parameters(), *model.buffers())}
    found = {}
    for path, module in model.named_modules():
        # What is computed from parameters at each forward: nn.utils.weight_norm, spectral_norm and prune keep it so.
        made = {name.removesuffix(end) for name in module._parameters for end in ("_orig", "_g", "_v")}
        for name, value in vars(module).items():
            if name not in _OWN and name not in made and _is_state(value, known):
                found[f"{path}.{name}".removeprefix(".")] = _described(value)
    return found


def _is_state(value: Any, known: set[int]) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(_is_state(entry, known) for entry in (value.values() if isinstance(value, dict) else value))
    if isinstance(value, Tensor) and value.grad_fn is not None:
        return False  # a result of the last forward
    plain = isinstance(value, Tensor | nn.Module | int | float) and not isinstance(value, bool)
    return plain and id(value) not in known


def _described(state: Any) -> str:
    """A text that is another one for another state."""
    if isinstance(state, nn.Module):
        return str(checksum([*state.parameters(), *state.buffers()]))
    if isinstance(state, Tensor):
        return f"{state.dtype}{list(state.shape)}{checksum([state])}"
    if isinstance(state, dict):
        return str({repr(key): _described(value) for key, value in state.items()})
    return str([_described(entry) for entry in state]) if isinstance(state, list | tuple) else repr(state)


def power_of_two(number: int) -> bool:
    """When a look that costs a pass over memory is worth it."""
    return number & (number - 1) == 0
