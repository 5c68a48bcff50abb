"""One batch over this process's devices -> averaged gradients in one flat buffer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evener.data.dataset import Batch
from evener.devices.modules import joined, moved_to, to_match
from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.recipes.references import place_of
from evener.state.in_place import LARGE, InPlace
from evener.state.tensors import Bytes, bind, overwrite, whole_views
from evener.wire.layout import Layout
from evener.worker.compute.constants import Constants
from evener.worker.compute.device_memory import DeviceMemory, generators_of
from evener.worker.compute.losses import check_scalar, loss_in
from evener.worker.exchange.exchange import ONLY, OneOf

_ONE_DEVICE = nullcontext()
#: Bytes of a gradient that is copied by itself, past the caches (`copying_variables`).
ALONE = 1 << 18


class Towers:
    """The model and its gradients, both views of memory that travels.

    Args:
        model: its parameters and buffers move into `parameters`, values included.
        parameters: memory block of the layout that the model lives in; an answer that lands there is the new model.
        gradients: memory block of the layout that `collect` fills; if it is no tensor, another task may read it there.
        memory: the same on other devices, when the model lives there; None: the model lives in `parameters` itself,
            which may be memory of a device too.
        seed: of the run; with the lease it seeds what is random in the model, so that dropout too depends on the batch
            alone and not on the worker that computes it.
        apart: gradients are autograd's own tensors until `collect`, for whoever changes the flat buffer and asks for
            them afterwards, or while others read there what was collected last. Otherwise those of large layers move
            there as soon as each is made, so that there is never more than one layer of them beside it.
        in_place: over `gradients`; it gets those of large layers as they are, and no memory is written with them.
    """

    def __init__(  # noqa: PLR0913 - a model and its memory
        self,
        model: nn.Module,
        recipe: Recipe,
        layout: Layout,
        *,
        parameters: Bytes,
        gradients: Bytes,
        seed: int,
        memory: DeviceMemory | None = None,
        apart: bool = False,
        in_place: InPlace | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self._written = place_of(recipe.loss if recipe.step is None else recipe.step)
        self._seed = seed
        self._memory = memory
        if memory is None:
            views, homes = whole_views(layout, gradients), whole_views(layout, parameters)
            self._views_again = partial(whole_views, layout, parameters)
        else:
            views, homes = memory.gradients, memory.parameters
            self._views_again = partial(dict, homes)
        bind(model, homes)
        devices = {tensor.device for tensor in model.parameters()}
        self._spread = len(devices) > 1
        self._random = generators_of(devices)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and name in views]
        self._parameters = [p for _, p in trained]
        self._gradients = [views[name] for name, _ in trained]
        self._addresses = [homes[name].data_ptr() for name, _ in trained]
        self._homes = homes
        self._in_place = in_place
        self._copied = overwrite if memory is None and not isinstance(gradients, Tensor) else _copy
        move = not apart and in_place is None
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True) if move else ():
            if gradient.nbytes >= LARGE:
                parameter.register_post_accumulate_grad_hook(_into(gradient, self._copied))  # type: ignore[no-untyped-call]
        self._buffers = [Buffer.of(model, spec.name, views[spec.name]) for spec in layout.specs if not spec.trained]
        self.names = [name for name, _ in trained]
        self.constants = Constants(model, layout)
        self.notes = self.constants.notes

    def begin(self, batch: Batch, lease: int, which: OneOf = ONLY) -> float:
        """Forward and backward of one batch; returns its loss. Each parameter's `grad` is its gradient, in which those
        of several batches add up to their mean."""
        for generator in self._random:
            generator.manual_seed((self._seed * 1_000_003 + lease) % 2**63)
        if which.number == 0:
            for parameter in self._parameters:
                parameter.grad = None
            if self._in_place is not None:
                self._in_place.let_go()
        loss = self._loss(batch)
        (loss if which.of == 1 else loss / which.of).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _loss(self, batch: Batch) -> Tensor:
        if self.recipe.step is not None:
            return self._stepped(self.recipe.step, batch)
        inputs, target = batch
        with joined(self.model) if self._spread else _ONE_DEVICE:
            output = self.model(inputs)
            loss = self.recipe.loss(output, to_match(target, output))
            check_scalar(loss, self._written)  # before the penalty, which would lend it a gradient
            return self._with_penalty(loss)

    def _with_penalty(self, loss: Tensor) -> Tensor:
        if self.recipe.penalty is not None:
            loss = loss + self.recipe.penalty(self.model)
            check_scalar(loss)
        return loss

    def _stepped(self, step: Callable[[nn.Module, Any], Any], batch: Batch) -> Tensor:
        with joined(self.model) if self._spread else _ONE_DEVICE:
            loss = self._with_penalty(loss_in(step(self.model, moved_to(self.model, batch)), self._written))
        return loss

    def collect(self, arrival: int = 0, only: Collection[str] | None = None) -> Collection[str]:
        """Copy the gradients, as hooks have left them, and the buffers into the flat buffer, unless they are there.

        Letting autograd accumulate there would cost a memset and one more read of everything (1.56 against 1.50 ms a
        step of the MNIST network).

        Args:
            arrival: see `Constants.look`.
            only: the parameters whose gradients are meant, all if None.

        Returns:
            The trained parameters that have no gradient: this batch did not use them, or a hook took it away.
        """
        self._come_home()
        self.constants.look(arrival)
        made, unused = list[tuple[Tensor, Tensor]](), []
        stay: dict[str, Tensor] = {}
        for name, gradient, parameter in zip(self.names, self._gradients, self._parameters, strict=True):
            large = self._in_place is not None and name in self._in_place.large
            if parameter.grad is None or (only is not None and name not in only):
                if not large:
                    gradient.zero_()
                unused.append(name)
            elif large:
                stay[name] = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            elif parameter.grad.is_sparse:
                gradient.copy_(parameter.grad.to_dense())
            elif parameter.grad is not gradient:
                made.append((gradient, parameter.grad))
        self._bring(made)
        if self._in_place is not None:
            self._in_place.lay(stay)
        for buffer in self._buffers:
            buffer.collect()
        if self._memory is not None:
            self._memory.deliver()
        return unused

    def _bring(self, made: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Gradients to where they travel: (there, made)."""
        most = ALONE if self._copied is overwrite else math.inf
        for there, large in [pair for pair in made if pair[0].nbytes >= most]:
            self._copied(there, large)
        if small := [pair for pair in made if pair[0].nbytes < most]:
            torch._foreach_copy_([there for there, _ in small], [one for _, one in small])

    def arrived(self, arrival: int) -> None:
        """Other processes have just filled the parameters, for the so-and-so-manieth time; 0: they are our own."""
        if arrival:
            self._reclaim()
            self.constants.arrived(arrival)

    def _reclaim(self) -> None:
        """A program that sends its model to another process (`share_memory`) moves it out of the memory that others
        fill: the parameters live there again, as they have come."""
        if all(self._homes[name].data_ptr() == at for name, at in zip(self.names, self._addresses, strict=True)):
            return
        self._homes = self._views_again()
        for name, parameter in zip(self.names, self._parameters, strict=True):
            parameter.data = self._homes[name]

    def _come_home(self) -> None:
        """A parameter whose data the model replaced (`weight.data = renormed`) moves into the memory that travels."""
        self._reclaim()
        for name, parameter, address in zip(self.names, self._parameters, self._addresses, strict=True):
            if parameter.data_ptr() != address:
                with torch.no_grad():
                    self._homes[name].copy_(parameter)
                parameter.data = self._homes[name]

    def first_non_finite(self) -> str:
        """The name of a parameter whose own gradient, of the last batch, holds NaN or infinity; empty if none does."""
        for name, parameter in zip(self.names, self._parameters, strict=True):
            gradient = parameter.grad
            if gradient is None or (not gradient.is_sparse and bool(torch.isfinite(gradient.sum()))):
                continue  # a sum takes no memory, and is finite only if all is
            if not bool(torch.isfinite(gradient).all()):
                return name
        return ""

    def copy_of_gradients(self) -> dict[str, Tensor]:
        """Of the last batch, as hooks have left them so far; zeros where there is none."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
            for name, p in zip(self.names, self._parameters, strict=True)
        }


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _into(gradient: Tensor, copied: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor], None]:
    """What moves a parameter's gradient there once autograd has made it: a copy, and autograd's own is let go."""

    def move(parameter: Tensor) -> None:
        made = parameter.grad
        if made is None or made is gradient or made.is_sparse:
            return
        with torch.no_grad():
            copied(gradient, made)
        parameter.grad = gradient

    return move


def dictionary_of(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary of a module in which a tensor is, where another one may take its place later; its name there."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    return (module._buffers if leaf in module._buffers else module._parameters), leaf


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor that the model changes by itself: BatchNorm's statistics, a counter, a teacher's weights."""

    name: str
    travelling: Tensor  # its place beside the gradients
    home: Tensor  # the tensor that model() put there
    shape: torch.Size
    place: dict[str, Any]  # the module's own dictionary of such tensors, in which it may be replaced
    leaf: str

    @classmethod
    def of(cls, model: nn.Module, name: str, travelling: Tensor) -> Buffer:
        place, leaf = dictionary_of(model, name)
        return cls(name, travelling, place[leaf], place[leaf].shape, place, leaf)

    def collect(self) -> None:
        """Copy it to where it travels."""
        self._come_home()
        self.travelling.copy_(self.home)

    def _come_home(self) -> None:
        """One that the model replaced is put back: answers would miss the new one."""
        now = self.place[self.leaf]
        if now is None or now.shape != self.shape:
            raise ConfigError(
                f"the buffer {self.name!r} has shape {list(self.shape)} in the model that model() returned, and "
                f"{list(now.shape) if now is not None else 'is None'} after a batch.",
                why="it travels with every gradient, so its size is known before the first batch.",
                fix="run one batch through the model before model() returns it, or register it with its final shape; "
                "or with persistent=False, if it need not be kept.",
            )
        if now is not self.home:
            with torch.no_grad():
                self.home.copy_(now)
            self.place[self.leaf] = self.home
