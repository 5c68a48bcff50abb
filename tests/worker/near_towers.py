"""The towers of one machine in one thread, over the memory and the doorbells of real ones.

While a tower waits for the others, those behind it take the same step: all have rung when it looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import towers_in_one_process as in_one_process
from meeting_threads import together
from torch import Tensor

from evener.recipes.recipe import Recipe
from evener.session.session import Session
from evener.worker.allreduce.process_group import ProcessGroup


class Near(ProcessGroup):
    """One tower's place, without `torch.distributed`, of which a process has one."""

    def __init__(self, rank: int, size: int, gather: Callable[[str], list[str]]) -> None:
        self.rank, self.size, self._clock, self._told = rank, size, time.monotonic, gather
        self._near, self._memory, self._bell, self._awaited = True, None, None, []
        self._lost, self._patience, self._report = str, 60.0, lambda report: None
        #: What the towers behind it do while this one waits for them.
        self.others: Callable[[], None] = lambda: None

    def _gather(self, text: str, what: str) -> list[str]:
        return self._told(text)

    def sum(self, flats: Sequence[Tensor], what: str, meanwhile: Callable[[], None]) -> None:
        def both() -> None:
            meanwhile()
            self.others()

        super().sum(flats, what, both)

    def close(self, *, failed: bool = False) -> None:
        self._leave()


class NearMember(Near):
    """The same for towers that have a thread each: a `Member` of `towers_in_one_process`."""

    def __init__(self, meeting: in_one_process.Meeting, rank: int) -> None:
        self.meeting, self._member = meeting, in_one_process.Member(meeting, rank)
        self.gather, self.share = self._member.gather, self._member.share
        super().__init__(rank, meeting.size, self.gather)
        self.others = meeting.wait

    def _come_near(self, flats: Sequence[Tensor], what: str) -> None:
        """They call at each other's doors, so none may keep the others from running."""
        self.meeting.baton.release()
        try:
            super()._come_near(flats, what)
        finally:
            self.meeting.baton.acquire()

    def _gather(self, text: str, what: str) -> list[str]:
        with self.meeting.baton:
            return self.gather(text)


def met(flats: Sequence[Sequence[Tensor]]) -> list[Near]:
    """Towers that have met, in threads, and have mapped each other's memory, for what each of them sums."""

    def tower(rank: int, gather: Any) -> Near:
        near = Near(rank, len(flats), gather)
        near.sum(flats[rank], "update 0", lambda: None)
        return near

    return together(len(flats), tower)


def towers(recipe: Recipe, directory: Path, count: int, **options: Any) -> list[Session]:
    """Sessions as those of `towers_in_one_process.towers`, which have met. Let them train by `step`."""
    sessions = in_one_process.towers(recipe, directory, count, **options)
    groups = met([session.exchange._travelling.flats for session in sessions])
    for session, group in zip(sessions, groups, strict=True):
        session.exchange._group = group
        session.__enter__()
    return sessions


def step(sessions: Sequence[Session], of: Callable[[int], Any]) -> None:
    """One step of all. `of`: what is entered for a tower's part of it, by its rank; within that of those before it."""

    def from_(rank: int) -> None:
        if rank < len(sessions):
            sessions[rank].exchange._group.others = lambda: from_(rank + 1)
            with of(rank):
                sessions[rank].step()

    from_(0)


def close(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.__exit__(None, None, None)
