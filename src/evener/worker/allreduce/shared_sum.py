"""Sums over the towers of one machine, in memory that all of them map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from evener.state.tensors import as_tensor
from evener.transport.channel import Memory
from evener.worker.allreduce.doorbell import Doorbell, Gather

#: Every tower reads what all have given, so this serves few towers; a ring moves less among many.
MOST = 8
#: Tensors begin at multiples of this many bytes.
_ALIGNMENT = 64


class SharedSum:
    """What one tower gives, and what it reads of the others.

    `give`, meet the others, `take`. The sum is taken in the order of ranks, so every tower has the same bits, and three
    towers those of three workers of a parameter server. Each tower has two blocks, used in turn: whoever has met the
    others for update k + 1 has read what they gave at update k, so its memory may be written again at k + 2, and nobody
    has to wait a second time.

    Args:
        flats: like those that are summed, on the CPU.
        gather: what every tower says, in the order of ranks.
        bell: the links over which memory is given to the others.
        free: bytes of memory that this machine has left, if that is known.

    Raises:
        OSError: this tower, or another one, cannot map the memory of all. It is the same on every tower.
    """

    def __init__(
        self, flats: Sequence[Tensor], rank: int, gather: Gather, bell: Doorbell, *, free: int | None = None
    ) -> None:
        starts, end = [], 0
        for flat in flats:
            starts.append(end)
            end += -(-flat.nbytes // _ALIGNMENT) * _ALIGNMENT
        mine, failure = _made(2 * end, bell.size, free)
        try:
            # All are here: nobody waits for a ring any more, so descriptors may travel.
            _check(gather(failure and f"worker:{rank}: {failure}"))
            assert mine is not None
            blocks, failure = _mapped(bell, mine, 2 * end, rank)
            _check(gather(failure))
        finally:
            if mine is not None:
                mine.close()  # all that wanted to have mapped it
        self._rank, self._kinds = rank, _kinds(flats)
        self._turns = [
            [
                [as_tensor(block[turn * end + start :][: flat.nbytes], _name(flat.dtype)) for block in blocks]
                for flat, start in zip(flats, starts, strict=True)
            ]
            for turn in range(2)
        ]  # [turn][flat][rank]

    def fits(self, flats: Sequence[Tensor]) -> bool:
        """Whether it was made for tensors like these."""
        return self._kinds == _kinds(flats)

    def give(self, flats: Sequence[Tensor]) -> None:
        """Let the others see these, once they have been met."""
        self._turns.reverse()
        for flat, given in zip(flats, self._turns[0], strict=True):
            given[self._rank].copy_(flat)

    def take(self, flats: Sequence[Tensor]) -> None:
        """Replace them by the sums of what all have given, who have been met since."""
        for flat, given in zip(flats, self._turns[0], strict=True):
            torch.add(given[0], given[1], out=flat)
            for other in given[2:]:
                flat.add_(other)


def _kinds(flats: Sequence[Tensor]) -> list[tuple[int, torch.dtype]]:
    return [(flat.numel(), flat.dtype) for flat in flats]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _made(nbytes: int, towers: int, free: int | None) -> tuple[Memory | None, str]:
    """Memory to share, or why not. It is asked for before it is taken: where memory is limited, taking it kills."""
    if free is not None and nbytes * towers > free:
        return None, f"{towers} towers would share {nbytes} bytes each, and {free} are free"
    try:
        memory = Memory(nbytes)
    except (OSError, AttributeError) as error:  # some builds of Python have no memfd_create
        return None, f"no memory to share: {error}"
    return (memory, "") if memory.fd >= 0 else (None, "no memory to share on this system")


def _check(said: list[str]) -> None:
    if failures := "; ".join(filter(None, said)):
        raise OSError(failures)


def _mapped(bell: Doorbell, mine: Memory, nbytes: int, rank: int) -> tuple[list[memoryview], str]:
    """The blocks of all ranks, or why not."""
    blocks = {rank: mine.view}
    try:
        taken = bell.swap(mine.fd)
        try:
            for other, fd in taken.items():
                blocks[other] = memoryview(mmap.mmap(fd, nbytes))
        finally:
            for fd in taken.values():
                os.close(fd)
    except (OSError, ValueError) as error:
        return [], f"worker:{rank} cannot map the memory of all others: {error}"
    return [blocks[other] for other in range(bell.size)], ""
