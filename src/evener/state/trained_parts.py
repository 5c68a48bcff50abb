"""The trained parameters of one shard, as its optimizer updates them: large ones in parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, optimizer as hooks

from evener.state.optimizers import ELEMENTWISE, cut_like, parts_of
from evener.state.tensors import PIECE, Slot, beside, copied
from evener.wire.layout import Piece

#: Numbers of a part.
PART = PIECE // 4


class TrainedParts:
    """Which parameters an optimizer over a slot has, and what it keeps of each.

    PyTorch's optimizers make up to three temporaries as large as the parameter that they update. Where each element is
    updated for itself, one of more than `PIECE` numbers is given to them in parts, with the same bits: an update by
    Adam of two layers of 100 MB takes 1.5 times their memory less, and half the time, since a part stays in the cache.

    Args:
        slot: the parameters.
        own: those that a program's optimizer has, by name, which are updated as they are; None: views of the slot.
        divided: see `divides`.
    """

    def __init__(self, slot: Slot, own: Mapping[str, nn.Parameter] | None, *, divided: bool) -> None:
        self._slot = slot
        self._of: dict[int, list[tuple[Piece, nn.Parameter]]] = {}
        for index, (piece, view) in enumerate(slot.named()):
            if not piece.spec.trained:
                continue
            if own is not None:
                self._of[index] = [(piece, own[piece.spec.name])]
            elif not divided or view.numel() <= PIECE:
                self._of[index] = [(piece, nn.Parameter(view))]
            else:
                parts = zip(_divided(piece), torch.split(view.view(-1), PART), strict=True)
                self._of[index] = [(part, nn.Parameter(flat)) for part, flat in parts]

    @property
    def indices(self) -> Collection[int]:
        """Which of the slot's pieces are trained."""
        return self._of.keys()

    @property
    def first(self) -> dict[int, nn.Parameter]:
        """Of each, what stands for it in the optimizer's groups."""
        return {index: parts[0][1] for index, parts in self._of.items()}

    @property
    def named(self) -> dict[str, list[tuple[Piece, nn.Parameter]]]:
        """Those of each tensor, by its name."""
        found: dict[str, list[tuple[Piece, nn.Parameter]]] = {}
        for parts in self._of.values():
            found.setdefault(parts[0][0].spec.name, []).extend(parts)
        return found

    def give(self, gradient: Slot, unused: Collection[str]) -> None:
        """Let the parameters have this gradient; `unused` ones have none."""
        for index, parts in self._of.items():
            view = gradient.views[index]
            if unused and parts[0][0].spec.name in unused:
                for _, parameter in parts:
                    parameter.grad = None
            elif len(parts) == 1:
                parts[0][1].grad = view
            else:
                for (_, parameter), flat in zip(parts, torch.split(view.view(-1), PART), strict=True):
                    parameter.grad = flat

    def let_go(self) -> None:
        """They have no gradient any more: its memory may be free."""
        for parts in self._of.values():
            for _, parameter in parts:
                parameter.grad = None

    def kept(self, index: int, optimizer: Optimizer) -> dict[str, Any]:
        """A copy of what the optimizer keeps of a piece."""
        parts = self._of[index]
        states = [optimizer.state.get(parameter, {}) for _, parameter in parts]
        whole = dict(states[0])
        for key, value in states[0].items():
            if isinstance(value, Tensor):
                divided = len(parts) > 1 and value.numel() == parts[0][1].numel()
                flats = [state[key].detach() for state in states] if divided else []
                whole[key] = torch.cat(flats).view(self._slot.views[index].shape) if divided else copied(value)
        return whole

    def keep(self, index: int, state: Mapping[str, Any], optimizer: Optimizer) -> None:
        """Let the optimizer go on with what was kept of the whole tensor that a piece is of."""
        for part, parameter in self._of[index] if state else ():
            optimizer.state[parameter] = {
                key: beside(parameter, key, cut_like(value, part, part.spec.numel)) for key, value in state.items()
            }


def divides(optimizer: Optimizer, slot: Slot) -> bool:
    """Whether an optimizer updates parts of a parameter as it would update the whole, and gains by it.

    On GPUs, and where the user has asked for `foreach` or `fused`, PyTorch takes all parameters at once. Hooks of an
    optimizer may look at whole parameters, and so may a `step` that the user has put in its place.
    """
    everywhere = hooks._global_optimizer_pre_hooks or hooks._global_optimizer_post_hooks
    return (
        slot.device.type == "cpu"
        and not everywhere
        and not any(
            (type(one) not in ELEMENTWISE and not type(one).__module__.startswith("evener."))
            or one._optimizer_step_pre_hooks
            or one._optimizer_step_post_hooks
            or "step" in vars(one)
            or any(group.get("foreach") or group.get("fused") for group in one.param_groups)
            for one in parts_of(optimizer)
        )
    )


def _divided(piece: Piece) -> Sequence[Piece]:
    """Parts of so many numbers, and the rest."""
    starts = range(piece.start, piece.stop, PART)
    return [
        replace(piece, start=start, stop=min(start + PART, piece.stop), offset=piece.offset + start - piece.start)
        for start in starts
    ]
