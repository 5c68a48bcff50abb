"""A program's own loop, joined to a run: what `evener.join` returns."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from evener import chaos
from evener.data.chance import seed_batch
from evener.errors import ConfigError, SessionError, TaskFailed
from evener.loop.alone import Alone, Counted
from evener.loop.hand import Hand
from evener.loop.here import Here
from evener.loop.kept import Kept, states_of, unpacked
from evener.loop.leased import Leased, Streamed
from evener.loop.numbered import length_of
from evener.loop.owner import Owner, Step, Supply
from evener.loop.parts import Parts, Scheduler, bare, build, sorted_out
from evener.loop.remote import Remote
from evener.loop.serving import serve
from evener.loop.sinks import Sinks
from evener.report import Line, Status
from evener.task.build import Built
from evener.task.script import Joining, Over
from evener.weights import write
from evener.worker.exchange.exchange import Turn

#: Seconds between two times that the chief tells what its program keeps.
TELL = 1.0
#: Why a run ends when a person wants it to.
INTERRUPTED = "interrupted"


class Loop:
    """A program's place in a run. `prepare` first; then the loop is the program's own.

    Args:
        joining: who this process is.
        clock: seconds, monotonic.
    """

    def __init__(self, joining: Joining) -> None:
        self._joining = joining
        self._clock = time.monotonic
        self._parts: Parts | None = None
        self._owner: Owner | None = None
        self.hand = Hand()
        self._turn = Turn(version=0, lease=-1)
        self._supply = Supply()
        self._kept = Kept()
        self._told_at = -math.inf
        self._spread = False
        self._logged = math.nan
        self._answered = self._clock()
        self._passes, self._start = 0, 0  # passes begun, and those to be left out
        self._inside, self._left_out = False, False
        self._moved = 1  # updates that the last step brought
        self._scheduled: list[bool] = []  # of each scheduler, whether it was last stepped within a pass
        self._ahead_leases, self._asked, self._said = 1, False, False
        self._sinks = Sinks(joining.settings, joining.report)
        joining.joined = True
        joining.finish, joining.stop = self._finish, self._stop_early

    # --- what a program asks

    @property
    def is_server(self) -> bool:
        """Whether this is a ps task: its `prepare` does not return, so it need not read data."""
        return self._joining.job == "ps"

    @property
    def chief(self) -> bool:
        """Whether this process is to validate, save and print: one of all workers. Not in passes that were left out."""
        return self._turn.chief and not self._left_out

    @property
    def step(self) -> int:
        """Updates of the parameters so far, by all workers and optimizers together."""
        return self._turn.version

    @property
    def worker(self) -> int:
        """The number of this worker, from 0."""
        return self._joining.index

    @property
    def workers(self) -> int:
        """How many workers the run was started with."""
        return self._joining.settings.processes

    @property
    def state(self) -> dict[str, Any]:
        """Yours: numbers, texts, lists, dictionaries, tensors. The chief's is saved in checkpoints, and comes back."""
        return self._kept.state

    def should_stop(self) -> bool:
        """Whether the run is over: for loops without a loader."""
        self._asked = True
        return self.stopped

    @property
    def stopped(self) -> bool:
        return bool(self._turn.stop)

    @property
    def number(self) -> int:
        return self._passes - 1

    def log(self, values: Mapping[str, float]) -> None:
        """Figures of this worker: into TensorBoard, the live view and the log. A "loss" is the run's loss.

        Args:
            values: by name; tensors of one element are read.
        """
        figures = {name: float(value) for name, value in values.items()}
        if "loss" in figures:
            self._logged = figures["loss"]
        if self._turn.chief:
            self._sinks.log(figures, self.step)

    def save(self, path: str | Path, *models: nn.Module) -> None:
        """Write a model's `state_dict`, plain PyTorch (.pt, .pth) or safetensors, all or nothing; from the chief alone.

        Args:
            models: one that was prepared; none: the one that there is.
        """
        parts = self._prepared()
        which = models or parts.models
        if len(which) != 1:
            raise ConfigError(
                f"{path}: which of {len(which)} models?", fix='name one: ev.save("generator.pt", generator).'
            )
        if self._turn.chief:
            state = bare(which[0]).state_dict()
            write({name: v.detach().cpu() if isinstance(v, Tensor) else v for name, v in state.items()}, Path(path))

    # --- prepare

    def prepare(self, *given: Any) -> Any:
        """Join the models and optimizers to the run, and share out the batches of the first loader.

        Args:
            given: models, optimizers, DataLoaders, schedulers, in any order and number.

        Returns:
            The same, in this order: the first loader as one that is shared out, all else as it was given; one alone
            for one.

        Raises:
            ConfigError: what cannot be prepared.
            Over: this is a ps task, and the run has ended.
        """
        if self._parts is not None:
            raise SessionError("prepare was called twice.", fix="give it everything at once.")
        parts = self._parts = sorted_out(given)
        joining, settings = self._joining, self._joining.settings
        built = build(parts, settings)
        if self.is_server:
            serve(joining, parts, built)
        joining.report(Status(joining.name, "starting"))
        loader = parts.loaders[0] if parts.loaders else None
        self._supply = Supply(length_of(loader), loader.batch_size or 1) if loader is not None else Supply()
        owner = self._owner = self._owned(parts, built)
        shared = self._shared(loader) if loader is not None else None
        self._take(owner.start(self._want()))
        self._begin_where_it_was()
        for number, optimizer in enumerate(parts.optimizers):
            self._watch(number, optimizer)
        really = [self._follow(number, scheduler) for number, scheduler in enumerate(parts.schedulers)]
        if isinstance(owner, Here):
            owner.idled = partial(self._idled, really)
        joining.report(Status(joining.name, "training"))
        if joining.launched and loader is None and not isinstance(owner, Alone):
            seed_batch(settings.seed, self.worker)  # each worker is to play other episodes
        prepared = [shared if thing is loader and loader is not None else thing for thing in given]
        return prepared[0] if len(prepared) == 1 else tuple(prepared)

    def _owned(self, parts: Parts, built: Built) -> Owner:
        joining = self._joining
        if joining.settings.ps:
            return Remote(joining, parts, built, self._supply)
        if joining.tower is None and not joining.settings.logdir:
            return Alone()
        return Here(joining, parts, built, self._supply)

    def _shared(self, loader: DataLoader[Any]) -> Leased | Streamed | Counted | DataLoader[Any]:
        if isinstance(self._owner, Alone):
            return loader
        if not self._supply.length:
            return Streamed(loader, self._joining.index, self.workers, self)
        if not self._joining.launched and self._joining.tower is None:
            return Counted(loader, self._supply.length, self)
        leased = Leased(loader, self._joining.settings.seed, self)
        self._ahead_leases = leased.ahead
        return leased

    def _begin_where_it_was(self) -> None:
        """Go on as what the chief has kept says; passes that were finished are left out."""
        kept = unpacked(self._turn.script)
        if isinstance(self._owner, Alone):
            return
        if kept is None:
            self._start = self._epoch() if self._supply.length else 0
            return
        self._kept = kept
        self._restore(kept)
        self._start = self._epoch() + kept.ahead if self._supply.length else max(0, kept.passes - 1)

    def _epoch(self) -> int:
        while self._supply.length and self.hand.first < 0 and not self.stopped:
            self.wait()
        return max(0, self.hand.first) // self._supply.length

    def _restore(self, kept: Kept) -> None:
        if self._joining.settings.hyperparameters == "recipe":
            return  # as the program says now: its schedulers take the steps of passes that are left out, too
        parts = self._prepared()
        for scheduler, state in zip(parts.schedulers, kept.schedulers, strict=False):
            scheduler.load_state_dict({**scheduler.state_dict(), **state})
        groups = [group for one in parts.optimizers for group in one.param_groups]
        for group, settings in zip(groups, kept.settings, strict=False):
            group.update({key: value for key, value in settings.items() if key in group})

    def _prepared(self) -> Parts:
        if self._parts is None:
            raise SessionError("prepare was not called yet.", fix="call ev.prepare(model, optimizer, loader) first.")
        return self._parts

    # --- steps

    def _watch(self, number: int, optimizer: Optimizer) -> None:
        """From now on its `step` is an update of the run."""
        really = optimizer.step

        def step(_self: Optimizer, closure: Any = None) -> Any:
            return self._stepped(number, partial(really, closure) if closure is not None else really, closure)

        def refuse(_self: Optimizer, _group: Any) -> None:
            raise ConfigError(
                f"add_param_group of {type(optimizer).__name__} was called after prepare.",
                why="what is trained was agreed upon by all tasks then.",
                fix="give the optimizer all groups before prepare; a learning rate of 0 keeps a group as it is.",
            )

        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # schedulers look at this, and at `_opt_called`
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
        optimizer.add_param_group = MethodType(refuse, optimizer)  # type: ignore[method-assign]
        optimizer._opt_called = True  # type: ignore[attr-defined]

    def _stepped(self, number: int, really: Any, closure: Any) -> Any:
        assert self._owner is not None
        if self.stopped:
            return self._late()
        now = self._clock()
        step = Step(
            group=number, really=really, closure=closure, leases=self.hand.take(), want=self._want(),
            loss=self._logged, seconds=now - self._answered, script=self._script(now), spread=self._spread,
        )  # fmt: skip
        self._logged, self._spread = math.nan, False
        chaos.point("worker.computing")
        result, turn = self._owner.step(step)
        self._moved = max(1, turn.version - self._turn.version)
        self._take(turn)
        self._answered = self._clock()
        return result

    def _want(self) -> int:
        return (self._ahead_leases + self.hand.most - 1) if self._supply.length else 0

    def _take(self, turn: Turn) -> None:
        if turn.anew:
            self.hand.clear()
        self.hand.add(turn.leases)
        # Once the run is over nobody is chief for the servers; the program still has to save what it has.
        self._turn = replace(turn, chief=self._turn.chief) if turn.stop else turn
        if turn.failed:
            raise TaskFailed(f"the run ended: {turn.stop}.")
        if turn.stop == INTERRUPTED:
            raise Over(0)
        if turn.script and self._parts is not None and (kept := unpacked(turn.script)) is not None:
            self._kept = kept
            self._restore(kept)

    def _late(self) -> None:
        """A step after the end: without a loader nothing else would end the loop."""
        if not self._said:
            self._said = True
            words = f"the run is over ({self._turn.stop}): steps change nothing any more"
            self._joining.report(Line(self._joining.name, words))
        if not self._supply.length and not self._asked:
            raise Over(0)

    # --- batches, for the loader

    def draw(self, want: int) -> None:
        assert self._owner is not None
        self._take(self._owner.draw(want))

    def wait(self) -> None:
        assert self._owner is not None
        unused = self.hand.take()
        if unused and self._joining.launched:
            self._forget_gradients()
        self._take(self._owner.draw(self._want(), unused=unused, wait=True))

    def _forget_gradients(self) -> None:
        """Those of batches that no step has used are named as not applied: the next step must not apply them."""
        for optimizer in self._prepared().optimizers:
            Optimizer.zero_grad(optimizer)

    def passing(self) -> bool:
        number, self._passes = self._passes, self._passes + 1
        before, self._left_out = self._left_out, number < self._start
        if self._left_out or self.stopped:
            return True
        if before:  # what the program has made of its learning rates meanwhile was made of empty passes
            self._restore(self._kept)
        self._told_at = -math.inf
        if isinstance(self._owner, Here):
            self._share(self._owner)
        self._inside = True
        if self._supply.length and self.hand.first >= 0:
            self._kept.ahead = max(0, number - self.hand.first // self._supply.length)
        return False

    def passed(self, *, whole: bool) -> None:
        self._inside = False
        self._told_at = -math.inf
        if whole and not self._supply.length and isinstance(self._owner, Here):
            self._take(self._owner.draw(0, wait=True))

    def _share(self, owner: Here) -> None:
        """Towers begin a pass with the settings of tower 0, whose program may have judged a validation alone."""
        told = owner.share(self._keep().packed() if self.worker == 0 else b"")
        if self.worker and (kept := unpacked(told)) is not None:
            self._kept = kept
            self._restore(kept)

    # --- what is kept

    def _keep(self) -> Kept:
        parts, kept = self._prepared(), self._kept
        kept.version, kept.passes = self._turn.version, self._passes
        kept.schedulers = states_of(parts.schedulers)
        kept.settings = [
            {key: value for key, value in group.items() if key != "params"}
            for one in parts.optimizers
            for group in one.param_groups
        ]
        return kept

    def _script(self, now: float) -> bytes:
        due = self._spread or now - self._told_at >= TELL
        if not (due and self._turn.chief and self._joining.settings.logdir):
            return b""
        self._told_at = now
        return self._keep().packed()

    def _idled(self, steps: Sequence[Callable[..., None]]) -> None:
        """Other towers have taken a step: schedulers that the program steps with each of its own go along."""
        for step, inside in zip(steps, self._scheduled, strict=True):
            if inside:
                step()

    def _follow(self, number: int, scheduler: Scheduler) -> Callable[..., None]:
        """Steps that it takes within a pass follow the global step; others count once. See docs/own-loop.md."""
        really = scheduler.step

        def step(_self: Scheduler, *args: Any, **kwargs: Any) -> None:
            if self._left_out and self._joining.settings.hyperparameters == "checkpoint":
                return
            if isinstance(scheduler, ReduceLROnPlateau):
                if self._turn.chief:
                    really(*args, **kwargs)
                    self._spread = True
                return
            self._scheduled[number] = self._inside
            for _ in range(self._moved if self._inside and isinstance(self._owner, Remote) else 1):
                really(*args, **kwargs)

        self._scheduled.append(False)
        scheduler.step = MethodType(step, scheduler)  # type: ignore[method-assign]
        return really

    # --- the end

    def _stop_early(self, reason: str) -> None:
        if self._owner is not None:
            self._owner.stop(reason)

    def _finish(self, error: BaseException | None) -> None:
        """The program has ended."""
        self._sinks.close()
        if self._owner is None:
            return
        if error is None:
            self._owner.close(script=self._keep().packed() if self._turn.chief else b"")
            self._joining.report(Status(self._joining.name, "done"))
            return
        with contextlib.suppress(Exception):  # the first error is the one to tell
            self._owner.close(f"{type(error).__name__}: {error}".splitlines()[0])
