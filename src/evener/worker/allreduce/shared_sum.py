"""Sums over the towers of one machine, in memory that all of them map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evener.state.tensors import as_tensor, overwrite
from evener.transport.channel import Memory
from evener.worker.allreduce.doorbell import Doorbell, Gather

#: Every tower reads what all have given, so this serves few towers; a ring moves less among many.
MOST = 8
#: Bytes that a tower gives at once.
WINDOW = 16 << 20
#: Tensors begin at multiples of this many bytes.
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of one flat that is summed in one round."""

    flat: int
    start: int  # elements
    stop: int
    at: int  # byte in the block


class SharedSum:
    """What one tower gives, and what it reads of the others, `WINDOW` bytes at a time.

    In each of the `rounds`: `give`, meet the others, `take`. The sum is taken in the order of ranks, so every tower has
    the same bits, and three towers those of three workers of a parameter server. Each tower has two blocks, used in
    turn: whoever has met the others in round k + 1 has read what they gave in round k, so its memory may be written
    again in k + 2, and nobody has to wait a second time. With one round for everything, these blocks would be two more
    copies of a large model, which every tower maps; a meeting costs 30 microseconds.

    Args:
        flats: like those that are summed, on the CPU.
        gather: what every tower says, in the order of ranks.
        bell: the links over which memory is given to the others.
        free: bytes of memory that this machine has left, if that is known.
        window: bytes of one round.

    Raises:
        OSError: this tower, or another one, cannot map the memory of all. It is the same on every tower.
    """

    def __init__(  # noqa: PLR0913 - what is summed, and with whom
        self,
        flats: Sequence[Tensor],
        rank: int,
        gather: Gather,
        bell: Doorbell,
        *,
        free: int | None = None,
        window: int = WINDOW,
    ) -> None:
        cuts, end = _cuts(flats, window)
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
        self.rounds = len(cuts)
        self._turns = [
            [[(cut, [_seen(block[turn * end :], cut, flats) for block in blocks]) for cut in part] for part in cuts]
            for turn in range(2)
        ]  # [turn][round] -> stretches, each with what every rank gives of it

    def fits(self, flats: Sequence[Tensor]) -> bool:
        """Whether it was made for tensors like these."""
        return self._kinds == _kinds(flats)

    def give(self, flats: Sequence[Tensor], number: int = 0) -> None:
        """Let the others see what belongs to this round, once they have been met."""
        self._turns.reverse()
        for cut, given in self._turns[0][number]:
            overwrite(given[self._rank], flats[cut.flat][cut.start : cut.stop])

    def take(self, flats: Sequence[Tensor], number: int = 0) -> None:
        """Replace it by the sums of what all have given, who have been met since."""
        for cut, given in self._turns[0][number]:
            flat = flats[cut.flat][cut.start : cut.stop]
            torch.add(given[0], given[1], out=flat)
            for other in given[2:]:
                flat.add_(other)


def _cuts(flats: Sequence[Tensor], window: int) -> tuple[list[list[_Stretch]], int]:
    """What is summed in each round, and the bytes that the largest of them takes."""
    rounds: list[list[_Stretch]] = [[]]
    at, end = 0, 0
    for number, flat in enumerate(flats):
        start = 0
        while start < flat.numel():
            if at >= window:
                rounds.append([])
                at = 0
            room = max(1, (window - at) // flat.element_size())
            stop = min(flat.numel(), start + room)
            rounds[-1].append(_Stretch(number, start, stop, at))
            at += -(-(stop - start) * flat.element_size() // _ALIGNMENT) * _ALIGNMENT
            start, end = stop, max(end, at)
    return rounds, end


def _seen(block: memoryview, cut: _Stretch, flats: Sequence[Tensor]) -> Tensor:
    flat = flats[cut.flat]
    return as_tensor(block[cut.at :][: (cut.stop - cut.start) * flat.element_size()], _name(flat.dtype))


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
