"""The gradient of a process that gives it to nobody: autograd's own tensors, where they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from torch import Tensor

from evener.state.tensors import Bytes, Slot
from evener.wire.layout import Layout

#: Bytes of a gradient that is worth a call of its own (3 microseconds); copying so much takes a hundred.
LARGE = 1 << 20


class InPlace(Slot):
    """A gradient of which only the small tensors, and buffers, lie in the one memory.

    The large ones are not copied, and their memory is there once: a process alone takes as much less at its peak as its
    largest layer has, and one pass over the gradients less in each step. Not for who needs a sum over all of them in
    the order of that memory, as clipping does.
    """

    def __init__(self, layout: Layout, parts: Sequence[Bytes] | None = None) -> None:
        super().__init__(layout, 0, parts)
        large = [index for index, piece in enumerate(self.pieces) if piece.spec.trained]
        self._none = {index: self.views[index] for index in large if self.views[index].nbytes >= LARGE}  # zeros
        #: Those that are not copied, by name.
        self.large = {self.pieces[index].spec.name: index for index in self._none}
        self._small = self._runs()
        self.let_go()

    def _runs(self) -> list[Tensor]:
        """Neighbours of the trained ones that are copied, contiguous [n]."""
        runs = []
        for dtype, flat in zip((segment.dtype for segment in self.layout.segments), self.flats, strict=True):
            mine = [(index, piece) for index, piece in enumerate(self.pieces) if piece.spec.dtype == dtype]
            for small, group in groupby(mine, lambda item: item[1].spec.trained and item[0] not in self._none):
                held = [piece for _, piece in group]
                if small:
                    runs.append(flat[held[0].offset : held[-1].offset + held[-1].stop])
        return runs

    def let_go(self) -> None:
        """Forget the large ones, so that their memory is free when the next are made."""
        self.lay({})

    def lay(self, gradients: dict[str, Tensor]) -> None:
        """These are the large ones now, by name; others of them are zero."""
        made = {self.large[name]: gradient.detach().contiguous() for name, gradient in gradients.items()}
        self.views = [made.get(index, self._none.get(index, view)) for index, view in enumerate(self.views)]
        self.trained = [*self._small, *(view.view(-1) for view in made.values())]
