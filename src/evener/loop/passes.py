"""A worker's turns, and the passes that its program makes over the loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evener.errors import ConfigError, TaskFailed
from evener.loop.hand import Hand
from evener.loop.here import Here
from evener.loop.owner import Owner, Step, Supply
from evener.slow import Slowed
from evener.task.script import Over
from evener.worker.exchange.exchange import Turn

#: Why a run ends when a person wants it to.
INTERRUPTED = "interrupted"
#: Batches without a step that may be.
FEW = 16


class Passes:
    """What the owner of the parameters has told last, and which pass is under way. `Gives` batches to the loader.

    Args:
        ahead: leases that the loader wants in hand.
        heard: gets what the chief's program keeps, where a turn brings it.
        begun: called when a pass begins; `anew`: those before it were left out.
        unused: called before batches are named that no step has used.
        slow: `--slow` of this worker, which sleeps before its steps.
        grads: whether a parameter has a gradient.
        usual: samples of a batch in the mean, where workers have batches of their own size.
    """

    def __init__(  # noqa: PLR0913 - what it asks and whom it tells, each once
        self,
        owner: Owner,
        supply: Supply,
        *,
        heard: Callable[[bytes], None],
        begun: Callable[[bool], None],
        unused: Callable[[], None],
        slow: Slowed | None = None,
        usual: float = 1.0,
        grads: Callable[[], bool] = lambda: True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._graded, self._left_early = grads, False
        self._owner, self.supply = owner, supply
        self._slow, self._usual, self._sleep = slow or Slowed(None, 0), usual, sleep
        self._heard, self._begun, self._unused = heard, begun, unused
        self.hand = Hand()
        self.ahead = 1
        self.turn = Turn(version=0, lease=-1)
        self.moved = 1  # updates since the step before the last
        self.counted = 0  # the version up to which schedulers have counted, with this worker's steps under way
        self.caught_up: Callable[[int], None] | None = None  # called where a pass is over, with updates not counted
        self.count = 0  # passes begun
        self.start = 0  # passes that are left out, since they were finished before
        self.begun = 0  # as often as a loader was iterated, glances among them
        self.glances = self.again = 0  # those before the first step; those of the life that this one goes on from
        self._glancing = False
        self.inside, self.left_out = False, False
        self._steps = self._idle = 0  # steps taken; batches of a size of their own without one

    @property
    def stopped(self) -> bool:
        return bool(self.turn.stop)

    @property
    def number(self) -> int:
        """Of the pass under way, from 0."""
        return self.epoch() if self._glancing else self.count - 1

    @property
    def want(self) -> int:
        return (self.ahead + self.hand.most - 1) if self.supply.length else 0

    @property
    def more(self) -> int:
        """Passes begun, more than epochs."""
        if not self.supply.length or self.hand.first < 0:
            return 0
        return max(0, self.count - 1 - self.hand.first // self.supply.length)

    # --- turns

    def first(self) -> None:
        self._take(self._owner.start(self.want))
        self.counted = max(self.counted, self.turn.version)

    def step(self, step: Step) -> Any:
        self._steps += 1
        batches = sum(step.sizes) / self._usual if step.sizes else max(1, len(step.leases))
        if extra := self._slow.longer(step.seconds, batches):
            self._sleep(extra)
            step = replace(step, seconds=step.seconds + extra)
        result, turn = self._owner.step(step)
        self._hear(turn)
        reached = turn.version + self._owner.under_way
        self.moved = max(0, reached - self.counted)  # also those made while this worker waited for a batch
        self.counted = max(self.counted, reached)  # a step that was not taken in the end was counted all the same
        return result

    def draw(self, want: int) -> None:
        self.settle(land=False)
        self.leave_if_interrupted()
        if self.hand.first < 0 and not self.stopped:
            self._take(self._owner.draw(want))

    def settle(self, *, land: bool) -> None:
        """Hear what has come of a step that was not waited for. `land`: see `Owner.settled`."""
        if (turn := self._owner.settled(land=land)) is not None:
            self._hear(turn)

    def wait(self) -> None:
        self.settle(land=False)
        self.leave_if_interrupted()
        if self.hand.first >= 0 or self.stopped:
            return
        if unused := self.hand.take():
            self._unused()
            self._refuse_to_accumulate(len(self.hand.sizes(unused)))
        self._take(self._owner.draw(self.want, unused=unused, wait=True))

    def _refuse_to_accumulate(self, batches: int) -> None:
        """Now and then a program takes no step, as GradScaler does at the beginning; not with every second batch."""
        self._idle += batches
        if self._idle >= FEW and 3 * self._idle > self._steps:
            raise ConfigError(
                f"the program took no step with {self._idle} of its batches, and {self._steps} steps.",
                why="with --batch-sizes and --batch-by-speed each step is of one batch: they say how large it is.",
                fix="take a step with each batch, and let the sizes be larger; or leave the option out.",
            )

    def epoch(self) -> int:
        """Of the next batch, waited for."""
        while self.supply.length and self.hand.first < 0 and not self.stopped:
            self.wait()
        return max(0, self.hand.first) // self.supply.length

    def _take(self, turn: Turn) -> None:
        self._hear(turn)
        self.leave_if_interrupted()

    def leave_if_interrupted(self) -> None:
        """After Ctrl-C a program ends where it asks for a batch or for a further step.

        What it does between is still a part of the last step: a scheduler's, say.
        """
        if self.turn.stop == INTERRUPTED:
            raise Over(0)

    def _hear(self, turn: Turn) -> None:
        if turn.anew:
            self.hand.clear()
        self.hand.add(turn.leases, turn.count)
        # Once the run is over nobody is chief for the servers; the program still has to save what it has.
        self.turn = replace(turn, chief=self.turn.chief) if turn.stop else turn
        if turn.failed:
            raise TaskFailed(f"the run ended: {turn.stop}.")
        if turn.script:
            self._heard(turn.script)

    # --- passes

    def passing(self) -> bool:
        self.leave_if_interrupted()
        self._forget_a_glance()
        self.begun += 1
        if self.glances < self.again and not self._steps and not self.stopped:
            self._glancing = self.inside = True
            return False
        number, before = self.count, self.left_out
        self.count += 1
        self.left_out = number < self.start
        if self.left_out or self.stopped:
            return True
        self._begun(before)
        self.inside = True
        return False

    def _forget_a_glance(self) -> None:
        """A batch that a program only looks at before it trains (`next(iter(loader))`) is no pass: it comes again.

        Also where the program still holds the iterator. One that goes on from a checkpoint looks again.
        """
        if self.inside:
            self.hand.unload()
        looked = (self._left_early or self.inside) and not self._steps and not self.left_out
        if looked and not self._graded():
            self.hand.put_back()
            self.glances += 1
            self.count -= not self._glancing
        elif self._glancing:  # it was no glance: the program is another one now, and has trained there
            self.count, self.again = self.count + 1, 0
        self._left_early = self._glancing = self.inside = False

    def passed(self, *, whole: bool) -> None:
        self.inside, self._left_early = False, not whole
        if whole:
            self.settle(land=True)
            self.leave_if_interrupted()
        if whole and not self.supply.length and isinstance(self._owner, Here):
            self._take(self._owner.draw(0, wait=True))
        if whole and self.caught_up is not None and self.turn.version > self.counted:
            self.caught_up(self.turn.version - self.counted)
            self.counted = self.turn.version
