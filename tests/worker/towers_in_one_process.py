"""Several towers in one process: a thread each, of which one runs at a time, so that nothing depends on timing.

A tower runs until it meets the others in a collective; there the next one runs. The sum is taken in the order of ranks,
which is the order of leases.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import torch

from evener.errors import PeerGone
from evener.ledger import Ledger
from evener.recipes.recipe import Recipe
from evener.session.hooks import Hook
from evener.session.session import Session
from evener.settings import make
from evener.state.checkpoint import Store
from evener.state.saver import NoSaver, Saver, SaveSchedule
from evener.state.state import State
from evener.state.tensors import Slot
from evener.task.build import build
from evener.testing import EVENER, Clock, Disk, data_of, ledger_of
from evener.worker.allreduce.allreduce import AllReduce, Travelling
from evener.worker.allreduce.restored import share_restored
from evener.worker.compute.towers import Towers
from evener.worker.exchange.local import Local


class Meeting:
    """Where the towers of one test meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.baton = threading.Lock()
        self.news = threading.Condition()
        self.here = self.met = 0
        self.gone = False
        self.given: list[object] = [None] * size
        self.collectives = 0

    def exchange(self, rank: int, mine: object) -> list[object]:
        """What everybody gives, in the order of ranks."""
        self.given[rank] = mine
        self.wait()
        everything = list(self.given)
        self.wait()
        self.collectives += rank == 0
        return everything

    def wait(self) -> None:
        """Until all are here. Who has met the others has met them, whatever becomes of them then."""
        self.baton.release()
        try:
            with self.news:
                meeting = self.met
                self.here += 1
                if self.here == self.size:
                    self.here, self.met = 0, self.met + 1
                    self.news.notify_all()
                while self.met == meeting:
                    if self.gone:
                        raise PeerGone("another tower is gone.")
                    assert self.news.wait(60.0), "nobody came"
        finally:
            self.baton.acquire()

    def leave(self) -> None:
        with self.news:
            self.gone = True
            self.news.notify_all()


class Member:
    """One tower's place in the meeting: a `Group`."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size
        self.closed: bool | None = None
        self.hidden = False

    def sum(self, flats: Sequence[torch.Tensor], what: str, meanwhile: Callable[[], None]) -> None:
        meanwhile()
        everything = self.meeting.exchange(self.rank, [flat.clone() for flat in flats])
        for index, flat in enumerate(flats):
            flat.copy_(everything[0][index])
            for others in everything[1:]:
                flat.add_(others[index])
        self.meeting.wait()

    def hide(self) -> None:
        self.hidden = True

    def gather(self, text: str) -> list[str]:
        return [str(each) for each in self.meeting.exchange(self.rank, text)]

    def share(self, data: bytes) -> bytes:
        return self.meeting.exchange(self.rank, data)[0]

    def close(self, *, failed: bool = False) -> None:
        self.closed = failed


def towers(
    recipe: Recipe,
    directory: Path,
    count: int,
    *,
    hooks: Callable[[int], Sequence[Hook]] = lambda rank: (),
    reports: list | None = None,
    apart: bool = True,
    **options: object,
) -> list[Session]:
    """The sessions of so many towers, put together as `evener train --towers` does; `run` lets them train.

    `apart`: as a small model's gradients are, see `Towers`.
    """
    everything: dict = {"save_checkpoint_secs": None, "logdir": str(directory), "towers": count} | options
    settings, meeting, reports = make(everything), Meeting(count), [] if reports is None else reports
    store = Store(Path(settings.logdir) / "checkpoints")
    restored = store.newest()
    found = []
    for rank in range(count):
        found.append(
            _tower(recipe, settings, Member(meeting, rank), store, restored, hooks(rank), reports, apart=apart)
        )
    return found


def _tower(recipe, settings, group, store, restored, hooks, reports, *, apart) -> Session:
    rank, clock = group.rank, Clock()
    built = build(settings, recipe)
    recipe = built.recipe
    settings, data, batches = data_of(recipe, settings)
    saver: Saver | NoSaver = NoSaver()
    ledger = Ledger()
    if rank == 0:
        schedule = SaveSchedule(every_seconds=None, every_steps=settings.save_checkpoint_steps, keep=settings.keep)
        with patch("evener.state.saver.ThreadPoolExecutor", Disk()):
            saver = Saver(store, schedule, shards=1, clock=clock)
        if restored:
            saver.resumed(restored[0].step, str(store.path(restored[0].step)))
        ledger = ledger_of(settings, batches, "towers")
    elif restored:
        restored = _copied(restored)
    parameters, travelling = torch.zeros(built.layout.nbytes, dtype=torch.uint8), Travelling.of(built.layout)
    parts = [[block[at : at + n] for at, n in built.layout.ranges(0)] for block in (parameters, travelling.block)]
    state = State(built.model, recipe, built.layout, slot=Slot(built.layout, 0, parts[0]))
    model = Towers(
        built.model, recipe, built.layout, parameters=parameters, gradients=travelling.block, seed=settings.seed,
        apart=apart,
    )  # fmt: skip
    local = Local(
        state, Slot(built.layout, 0, parts[1]), settings=settings, samples=len(data.train), saver=saver, ledger=ledger,
        restored=restored, report=reports.append if rank == 0 else lambda report: None, clock=clock, evener=EVENER,
        tower=rank, towers=settings.towers,
    )  # fmt: skip
    exchange = AllReduce(local, local._gradients, travelling, group, suspect=model.first_non_finite, early=not apart)
    local.ahead, local.named = batches.ahead, batches.named
    return Session(
        f"worker:{rank}", exchange, model, batches, hooks,
        recipe=recipe, settings=settings, report=reports.append, clock=clock,
    )  # fmt: skip


def _copied(restored):
    """As tower 0 hands it over."""

    class Wire:
        rank, size = 0, 1

        def __init__(self) -> None:
            self.told: list[bytes] = []

        def share(self, data: bytes) -> bytes:
            if self.rank:
                return self.told.pop(0)
            self.told.append(data)
            return data

    wire = Wire()
    share_restored(wire, restored)
    wire.rank = 1
    return share_restored(wire, None)


def run(sessions: Sequence[Session]) -> list[str | BaseException]:
    """All train to the end; what each returned or raised. Who fails is gone for the others."""
    meeting = sessions[0].exchange._group.meeting
    ends: list[str | BaseException] = [""] * len(sessions)

    def work(rank: int) -> None:
        with meeting.baton:
            try:
                ends[rank] = sessions[rank].run()
            except BaseException as error:
                ends[rank] = error
                meeting.leave()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90.0)
        assert not thread.is_alive(), "a tower hangs"
    return ends


def state_of(session: Session) -> State:
    return session.exchange._inner._state


def named(session: Session, what: str = "parameters") -> dict[str, torch.Tensor]:
    """A tower's parameters, or averages, by name."""
    state = state_of(session)
    names = [piece.spec.name for piece in state.parameters.pieces]
    return dict(zip(names, getattr(state, what).views, strict=True))
