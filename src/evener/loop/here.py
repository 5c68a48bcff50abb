"""A program that holds all parameters itself, alone or as one of several towers: its own optimizers take the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from evener.errors import ConfigError, NonFinite
from evener.loop.averaging import Averaging, Sums
from evener.loop.homes import Homes
from evener.loop.owner import Past, Step, Supply
from evener.loop.parts import Parts, check_dense
from evener.loop.record import Record
from evener.policy.deal import Deal, Unnumbered
from evener.policy.leases import LeaseState
from evener.report import Line
from evener.state.saver import begin
from evener.state.state import State
from evener.state.tensors import CPU, Slot, bind, frozen, named_tensors, whole_views, zeros
from evener.task.build import Built, tell_start
from evener.task.owner import Tower
from evener.task.script import Joining
from evener.worker.allreduce.group import Group
from evener.worker.allreduce.restored import share_restored
from evener.worker.compute.constants import Values, power_of_two
from evener.worker.exchange.exchange import Turn

#: Not an error: machines of different kinds may round differently.
DIFFER = (
    "warning: the towers' parameters differ. Where all machines are alike, the program has changed them itself, each "
    "tower by its own batches: give every optimizer to prepare, and take each update by its step()"
)

#: Nothing is wrong with it here, but what a run that continues would begin with is not what was there.
UNSAVED = (
    "warning: the program has changed {!r}, which no optimizer trains. It is not in the checkpoints: a run that "
    "continues begins with what the program makes of it. Save it yourself, or make buffers of what is to be saved"
)


def home_of(built: Built) -> torch.device:
    """The one device on which the program has put its model. Raises ConfigError if they are several."""
    tensors = named_tensors(built.model)
    devices = {tensors[spec.name].device for spec in built.layout.specs} or {CPU}
    if len(devices) > 1:
        raise ConfigError(
            f"the model lies on several devices: {', '.join(sorted(map(str, devices)))}.",
            why="a process that holds all parameters keeps them in one memory.",
            fix="put the model on one device, or use ps tasks (--ps 1).",
        )
    return devices.pop()


def untrained_of(built: Built) -> Values:
    """Parameters that no optimizer trains, as they are now: they are in no checkpoint."""
    left = frozen(built.model, built.layout)
    return Values({name: p for name, p in built.model.named_parameters() if name in left})


class Here:
    """All parameters in this process, as an `Owner`."""

    here, under_way = True, 0

    def __init__(self, joining: Joining, parts: Parts, built: Built, supply: Supply) -> None:
        self._settings, self._report, self._parts, self._supply = joining.settings, joining.report, parts, supply
        home, tower = home_of(built), joining.tower
        if tower is not None:
            check_dense(parts.optimizers)
        self._group = _met(tower, built.model, home) if tower is not None else None
        self._rank = tower.rank if tower is not None else 0
        self._record = Record(self._settings, self._report, saves=self._rank == 0)
        if self._rank == 0 and self._settings.logdir:
            tell_start(built, self._settings, joining.name, self._report)
        restored = self._record.restored
        if self._group is not None:
            restored = share_restored(self._group, restored)
        self._state = _state_of(built, home)
        self._untrained = untrained_of(built) if self._settings.logdir and self._rank == 0 else None
        for difference in begin(self._state, restored, self._settings, supply.length or 1):
            self._tell(f"warning: {difference}")
        self._homes = Homes(built.model, self._state.parameters, self._tell)
        self._averaging = None
        if self._group is not None:
            self._averaging = Averaging(
                self._group, self._state, parts, home, stop_asked=joining.stop_asked, heard=self._hear
            )
        book = restored[0].book if restored else LeaseState(0, ())
        towers = self._group.size if self._group is not None else 1
        self._deal = Deal(supply.length, towers, book) if supply.length else Unnumbered()
        self._stop, self._whole, self._differed = "", True, False
        self._in_hand, self._unused, self._past = 0, 0, Past(supply, self._tell)
        #: Called when others have taken a step that this tower's program knows nothing of, and with tower 0's news.
        self.idled: Callable[[], None] | None = None
        self.heard: Callable[[bytes], None] | None = None
        self._record.begin(self._state, supply.length, self._deal.state, restored)

    def _tell(self, text: str) -> None:
        if self._rank == 0:
            self._report(Line("worker:0", text))

    # --- the loop

    def start(self, want: int) -> Turn:
        self._judge_length()
        return self._turn(self._give(want), script=self._record.script)

    def step(self, step: Step) -> tuple[Any, Turn]:
        self._past.look(step)
        if self._averaging is not None:
            return self._step_together(step, self._averaging)
        self._record.stepping(step.seconds)
        self._clip(step.group)
        self._whole = False
        result = step.really()
        self._applied(step, [len(step.leases)], [step.group])
        self._deal.finish()
        return result, self._turn(self._give(step.want))

    def _step_together(self, step: Step, averaging: Averaging) -> tuple[Any, Turn]:
        if step.closure is not None:
            raise ConfigError(
                "optimizer.step was given a closure.",
                why="with towers the gradients of all are averaged before the step, and a closure computes others.",
                fix="call closure yourself before step(), or run the program alone.",
            )
        self._record.stepping(step.seconds)
        sums = averaging.give(step, self._shed())
        self._whole = False
        result = self._take(sums, step)
        return result, self._turn(self._give(step.want))

    def _take(self, sums: Sums, step: Step | None) -> Any:
        """The mean gradients are in place: every tower takes the same steps."""
        result = None
        if sums.differ and not self._differed:
            self._differed = True
            self._tell(DIFFER)
        groups = [group for group, gives in enumerate(sums.gives) if gives]
        for group in groups:
            optimizer = self._parts.optimizers[group]
            self._clip(group)
            result = step.really() if step is not None and step.group == group else sums.steps[group](optimizer)
        if self._averaging is not None:
            self._averaging.put_back()
        if sums.stop:
            self._stop = self._stop or sums.stop
        self._skip(sums.unused)
        if groups:
            self._applied(step, sums.counts, groups, sums.loss)
        self._deal.finish()
        return result

    def _clip(self, group: int) -> None:
        """As --clip-norm or --clip-value say."""
        norm, value = self._settings.clip_norm, self._settings.clip_value
        if norm is None and value is None:
            return
        mine = [p for one in self._parts.optimizers[group].param_groups for p in one["params"]]
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(mine, norm)
        elif value is not None:
            torch.nn.utils.clip_grad_value_(mine, value)

    def _applied(self, step: Step | None, counts: Sequence[int], groups: Sequence[int], loss: float = math.nan) -> None:
        """The parameters have changed by one update."""
        self._homes.look()
        self._state.step += 1
        self._record.counted += 0 in groups
        if bad := self._state.parameters.first_non_finite(self._state.infinite):
            raise NonFinite(
                f"the update to global step {self._state.step} has made {bad!r} NaN or infinite.",
                why="a loss, a gradient or the step was not finite, or too large for the numbers.",
                fix="lower the learning rate, or clip the gradients in your loop.",
            )
        self._whole = True
        self._in_hand -= counts[self._rank]
        if step is not None:
            self._record.script = step.script or self._record.script
            loss = step.loss if math.isnan(loss) else loss
        examples = sum(counts) * self._supply.size
        self._record.applied(self._deal.apply(counts), self._rank, loss=loss, examples=examples)
        self._judge_length()
        self._look_at_untrained()
        self._record.look(over=bool(self._stop))

    def _look_at_untrained(self) -> None:
        """Told once."""
        if self._untrained and (name := self._untrained.changed(sure=power_of_two(self._state.step))):
            self._tell(UNSAVED.format(name))
            self._untrained = None

    def draw(self, want: int, *, unused: Sequence[int] = (), wait: bool = False) -> Turn:
        self._unused += len(unused)  # other towers hear of it when they meet next
        self._in_hand -= len(unused)
        if self._averaging is None:
            self._skip([self._shed()])
            self._deal.finish()
        given = self._give(want)
        if not wait or given or self._averaging is None:
            return self._turn(given)
        self._idle(self._averaging)
        return self._turn(self._give(want))

    def _shed(self) -> int:
        unused, self._unused = self._unused, 0
        return unused

    def _idle(self, averaging: Averaging, *, left: bool = False) -> None:
        """This tower has no batch left: it helps to average until the others have none of this epoch either.

        Args:
            left: its program has left its loop: until those of all others have.
        """
        epoch = self._deal.epoch
        while not self._stop:
            sums = averaging.idle(self._shed(), left=left)
            self._take(sums, None)
            if self.idled is not None and any(sums.gives):
                self.idled()
            size = len(sums.counts)
            if sums.left == size if left else self._deal.epoch != epoch:
                return
            if sums.idle == size and sums.left and self._supply.length:
                self._stop = "a tower has left its loop"  # with batches that the others wait for
            if sums.idle == size and not left and not self._supply.length:
                return  # batches have no numbers, and a pass is over when all towers say so

    def _hear(self, script: bytes) -> None:
        if self.heard is not None:
            self.heard(script)

    def _skip(self, counts: Sequence[int]) -> None:
        self._record.skipped(self._deal.skip(counts))

    def _give(self, want: int) -> list[int]:
        given = self._deal.give(self._rank, max(0, want - self._in_hand))
        self._in_hand += len(given)
        return given

    def _judge_length(self) -> None:
        limit = self._settings.train_steps
        if limit is not None and self._record.counted >= limit:
            self._stop = self._stop or f"reached step {limit}"

    def _turn(self, leases: Sequence[int], script: bytes = b"") -> Turn:
        return Turn(
            version=self._state.step, lease=-1, leases=leases, stop=self._stop, chief=self._rank == 0, script=script
        )

    def settled(self, *, land: bool) -> Turn | None:
        return None

    # --- its end

    def stop(self, reason: str, *, complete: bool = False) -> None:
        if self._averaging is not None:
            self._averaging.asked = reason
        else:
            self._stop = self._stop or reason

    def close(self, reason: str = "", script: bytes = b"") -> None:
        record = self._record
        record.script = script or record.script
        try:
            if self._averaging is not None and not reason:
                self._idle(self._averaging, left=True)
            if self._whole and (not reason or record.tally.updates):
                record.save_last()
            if not reason:
                record.end(self._stop or "the script has ended")
        finally:
            record.close()
            if self._group is not None:
                self._group.close(failed=bool(reason))


def _met(tower: Tower, model: nn.Module, home: torch.device) -> Group:
    """The other towers. Nobody else of this process finds them: `torchmetrics` under `if ev.chief:` would wait for all.

    Nobody but SyncBatchNorm, which is made to find them.
    """
    group = tower.meet(home)
    if not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        group.hide()
    return group


def _state_of(built: Built, home: torch.device) -> State:
    """Parameters in one memory, the program's own optimizers beside it."""
    memory = zeros(built.layout.nbytes, home)
    views = whole_views(built.layout, memory)
    bind(built.model, {spec.name: views[spec.name] for spec in built.layout.specs if spec.trained})
    ranges = [memory[at : at + nbytes] for at, nbytes in built.layout.ranges(0)]
    return State(built.model, built.recipe, built.layout, slot=Slot(built.layout, 0, ranges), own=True)
