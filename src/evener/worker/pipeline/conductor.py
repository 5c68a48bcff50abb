"""Stage 0 of a pipeline conducts: what it does with its own part, the other stages do with theirs when it asks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

import msgspec
from torch import Tensor

from evener import errors
from evener.data.batches import Batches
from evener.state.atomic import FileRecord
from evener.state.checkpoint import Manifest, Store
from evener.state.contents import Contents
from evener.state.saver import Saver
from evener.state.state import State
from evener.state.tensors import Slot
from evener.worker.exchange.exchange import Computed, Turn
from evener.worker.exchange.local import Local
from evener.worker.pipeline.pipeline import StagePart
from evener.worker.pipeline.stage_group import WHAT, Ask, StageGroup


class StageSaved(msgspec.Struct, frozen=True):
    """What a stage tells of its part of a checkpoint."""

    files: dict[str, FileRecord]
    values: bytes
    error: str = ""


class StagesSaver(Saver):
    """Saves of all stages: each writes its own files while this one does."""

    others = "worker"
    group: StageGroup  # set before the first save

    def start(self, contents: Contents, manifest: Manifest) -> None:
        if self.group.broken:
            raise errors.PeerGone("the other stages cannot save.", why="one of them failed before.")
        super().start(contents, manifest)
        self.group.give(Ask.SAVE, contents.step)
        for stage in range(1, self.group.stages):
            saved = msgspec.json.decode(self.group.receive_text(stage), type=StageSaved)
            self.add(stage, saved.files, saved.values, saved.error)


class Conductor:
    """Stage 0's exchange: what it does with its own part, the others are asked to do with theirs.

    Args:
        local: owns this stage's parameters, counts leases, saves.
        stop_asked: a reason when the launcher wants the run to end.
    """

    def __init__(self, local: Local, part: StagePart, group: StageGroup, stop_asked: Callable[[], str]) -> None:
        self._local, self._part, self._group, self._stop_asked = local, part, group, stop_asked

    arrivals = 0

    def start(self) -> Turn:
        return self._heeding(self._local.start())

    def update(self, computed: Computed) -> Turn:
        if self._part.bad:
            stages = ", ".join(f"worker:{stage}" for stage in self._part.bad)
            raise errors.not_finite(f"the gradient of {stages} is not finite (loss {computed.loss:.6g}).")
        self._group.give(Ask.APPLY)
        return self._heeding(self._local.update(computed, self._part.factor))

    def _heeding(self, turn: Turn) -> Turn:
        if not turn.stop and (reason := self._stop_asked()):
            return self._local.stop(reason, complete=False) or turn
        return turn

    def show(self, what: str) -> int:
        step = self._local.show(what)
        self._group.give(Ask.SHOW, WHAT.index(what))
        values: dict[str, Tensor] = {}
        for stage in range(1, self._group.stages):
            slot = Slot(self._part.slot.layout, stage)
            self._group.receive(slot.flats, stage)
            values |= {piece.spec.name: view for piece, view in slot.named()}
        self._part.foreign.fill(values)
        return step

    def conclude(self) -> None:
        self._local.conclude()

    def judge(self, figures: Mapping[str, float]) -> None:
        """All stages have the schedule, and an order carries a whole number: the figure's bits."""
        if (figure := self._local.figure) in figures:
            (bits,) = struct.unpack("<q", struct.pack("<d", figures[figure]))
            self._group.give(Ask.JUDGE, bits)
        self._local.judge(figures)

    def returned(self) -> Turn | None:
        return None

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        return self._local.stop(reason, complete=complete)

    def close(self, reason: str = "") -> None:
        try:
            self._local.close(reason)
            if not self._group.broken:
                self._group.give(Ask.END)
        finally:
            self._group.close()


def follow(part: StagePart, state: State, *, store: Store, batches: Batches, busy: Callable[[str, int], None]) -> None:
    """Do what stage 0 asks, until it says END.

    Args:
        busy: is told what this stage does, or waits for, and at which step.
    """
    group = part.group
    last = group.stage == group.stages - 1
    while True:
        busy("an order of worker:0, which computes, evaluates or saves", state.step)
        ask, number = group.take()
        match ask:
            case Ask.COMPUTE:
                busy(f"its part of lease {number}", state.step)
                part.compute(batches.batch(number) if last else None, number)
            case Ask.APPLY:
                state.apply(part.slot, part.unused, part.factor)
            case Ask.JUDGE:
                (figure,) = struct.unpack("<d", struct.pack("<q", number))
                state.judged({state.schedule.figure if state.schedule else "": figure})
            case Ask.SHOW:
                group.send(_shown(state, part.slot, WHAT[number]))
            case Ask.SAVE:
                busy(f"its part of the checkpoint of step {number}", state.step)
                group.send_text(msgspec.json.encode(_save(state, store, group.stage)))
            case _:
                return


def _shown(state: State, gradients: Slot, what: str) -> Sequence[Tensor]:
    if what == "averages" and state.averages is not None:
        return state.averages.flats
    return (gradients if what == "gradients" else state.parameters).flats


def _save(state: State, store: Store, stage: int) -> StageSaved:
    contents = state.contents()
    try:
        return StageSaved(store.write_shard(contents, stage), msgspec.json.encode(contents.values))
    except (OSError, errors.EvenerError) as error:  # stage 0 tells it; training goes on
        return StageSaved({}, b"", str(error) or type(error).__name__)
