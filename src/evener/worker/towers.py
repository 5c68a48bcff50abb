"""One batch over this process's devices -> averaged gradients in one flat buffer."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from evener.data.dataset import Batch
from evener.devices.modules import joined, to_match
from evener.errors import ConfigError
from evener.recipe import Recipe
from evener.tensors import Bytes, bind, whole_views
from evener.wire.layout import Layout
from evener.worker.device_memory import DeviceMemory, generators_of

_ONE_DEVICE = nullcontext()


class Towers:
    """The model and its gradients, both views of memory that travels.

    Args:
        model: its parameters and buffers move into `parameters`, values included.
        parameters: memory block of the layout that the model lives in; an answer that lands there is the new model.
        gradients: memory block of the layout that `gradients()` fills.
        memory: the same on other devices, when the model lives there; None: the model lives in `parameters` itself,
            which may be memory of a device too.
        seed: of the run; with the lease it seeds what is random in the model, so that dropout too depends on the batch
            alone and not on the worker that computes it.
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
    ) -> None:
        self.model = model
        self.recipe = recipe
        self._seed = seed
        self._memory = memory
        if memory is None:
            views, homes = whole_views(layout, gradients), whole_views(layout, parameters)
        else:
            views, homes = memory.gradients, memory.parameters
        bind(model, homes)
        devices = {tensor.device for tensor in model.parameters()}
        self._spread = len(devices) > 1
        self._random = generators_of(devices)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in trained]
        self._gradients = [views[name] for name, _ in trained]
        names = [(spec.name, *spec.name.rpartition(".")[::2]) for spec in layout.specs if not spec.trained]
        self._buffers = [
            (views[name], homes[name], model.get_submodule(owner)._buffers, leaf) for name, owner, leaf in names
        ]
        self.names = [name for name, _ in trained]

    def gradients(self, batch: Batch, lease: int) -> float:
        """Forward and backward of one batch; returns its loss. The gradients then lie in the flat buffer.

        Autograd makes its own tensors, which are copied: letting it accumulate into the flat buffer costs a memset and
        one more read of everything (1.56 against 1.50 ms a step of the MNIST network).
        """
        for generator in self._random:
            generator.manual_seed((self._seed * 1_000_003 + lease) % 2**63)
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._collect()
        if self._memory is not None:
            self._memory.deliver()
        return float(loss.detach())

    def _loss(self, batch: Batch) -> Tensor:
        inputs, target = batch
        with joined(self.model) if self._spread else _ONE_DEVICE:
            output = self.model(inputs)
            loss = self.recipe.loss(output, to_match(target, output))
            check_scalar(loss)  # before the penalty, which would lend it a gradient
            if self.recipe.penalty is not None:
                loss = loss + self.recipe.penalty(self.model)
                check_scalar(loss)
        return loss

    def _collect(self) -> None:
        into, made = [], []
        for gradient, parameter in zip(self._gradients, self._parameters, strict=True):
            if parameter.grad is None:
                gradient.zero_()  # the batch did not use it
            elif parameter.grad.is_sparse:
                gradient.copy_(parameter.grad.to_dense())
            else:
                into.append(gradient)
                made.append(parameter.grad)
        if into:
            torch._foreach_copy_(into, made)
        for travelling, home, buffers, leaf in self._buffers:
            now = buffers[leaf]
            if now is not None and now is not home:  # the model put a new tensor there, which answers would miss
                home.copy_(now)
                buffers[leaf] = home
            travelling.copy_(home)

    def first_non_finite(self) -> str:
        """The name of a parameter whose own gradient, of the last batch, holds NaN or infinity; empty if none does."""
        for name, parameter in zip(self.names, self._parameters, strict=True):
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return name
        return ""

    def copy_of_gradients(self) -> dict[str, Tensor]:
        return {name: gradient.clone() for name, gradient in zip(self.names, self._gradients, strict=True)}


def check_scalar(loss: object) -> None:
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"the recipe's loss returned {type(loss).__name__}, not a tensor.",
            why="training needs a scalar tensor to differentiate.",
            fix="return the mean loss of the batch as a tensor.",
        )
    if loss.numel() != 1:
        raise ConfigError(
            f"the recipe's loss has shape {list(loss.shape)}, not a scalar.",
            why="training needs one number to differentiate.",
            fix='return the mean over the batch, e.g. reduction="mean".',
        )
    if not loss.requires_grad:
        raise ConfigError(
            "the recipe's loss does not depend on the model's parameters.",
            why="it carries no gradient.",
            fix="compute it from the model's output without detach() or no_grad().",
        )
