"""Where the tensors of a program lie that holds them all itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from evener.state.tensors import Slot
from evener.worker.compute.towers import dictionary_of


class Homes:
    """Lets a state save what the model has, wherever that is.

    Parameters begin in the state's one memory. They may leave it at any time (`weight.data = renormed`,
    `model.share_memory()`, two that change places), and buffers never lie there: all stay where program and model put
    them, as in plain PyTorch, and what is saved is read there.

    Args:
        slot: the state's parameters; its buffers' values, of a checkpoint perhaps, become the model's.
        tell: people are told of what cannot be saved.
    """

    def __init__(self, model: nn.Module, slot: Slot, tell: Callable[[str], None]) -> None:
        self._slot, self._tell = slot, tell
        self._told: set[str] = set()
        self._places = [dictionary_of(model, piece.spec.name) for piece in slot.pieces]
        with torch.no_grad():
            for (place, leaf), (piece, value) in zip(self._places, slot.named(), strict=True):
                if not piece.spec.trained and place[leaf].numel():
                    place[leaf].copy_(value)
        self.look()

    def look(self) -> None:
        """After an update, which has made what is there now: what a program does at its end is not saved."""
        for index, (place, leaf) in enumerate(self._places):
            now, known = place.get(leaf), self._slot.views[index]
            if now is None or now.data_ptr() != known.data_ptr() or _form(now) != _form(known):
                self._seen(index, now)

    def _seen(self, index: int, now: Tensor | None) -> None:
        spec, known = self._slot.pieces[index].spec, self._slot.views[index]
        if now is not None and (now.shape, now.dtype, now.device) == (known.shape, known.dtype, known.device):
            self._slot.views[index] = now.detach()
        elif spec.name not in self._told:
            self._told.add(spec.name)
            found = "is gone" if now is None else f"is {str(now.dtype).removeprefix('torch.')} {list(now.shape)} now"
            self._tell(
                f"warning: {spec.name} was {spec.dtype} {list(spec.shape)} at prepare and {found}: "
                "checkpoints keep the last that was like it"
            )


def _form(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...]]:
    return tensor.shape, tensor.stride()
