"""Where the parameters and buffers of a program lie that holds them itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evener.state.tensors import bind
from evener.wire.layout import Layout
from evener.worker.compute.towers import Buffer


class Homes:
    """The one memory that is saved, and that towers share out. The model lives in it from now on.

    Args:
        views: the tensors of the layout there, by name.
    """

    def __init__(self, model: nn.Module, layout: Layout, views: Mapping[str, Tensor]) -> None:
        bind(model, dict(views))
        self._parameters = [
            (parameter, views[name], views[name].data_ptr())
            for name, parameter in model.named_parameters() if name in views
        ]  # fmt: skip
        self._buffers = [Buffer.of(model, spec.name, views[spec.name]) for spec in layout.specs if not spec.trained]

    def come_home(self) -> None:
        """What program or model put in a tensor's place (`weight.data = renormed`, `self.centre = ...`) moves back."""
        for parameter, home, address in self._parameters:
            if parameter.data_ptr() != address:
                with torch.no_grad():
                    home.copy_(parameter)
                parameter.data = home
        for buffer in self._buffers:
            buffer.come_home()
