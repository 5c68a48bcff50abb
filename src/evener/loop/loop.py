"""A program's own loop, joined to a run: what `evener.join` returns."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from evener.data.chance import seed_batch
from evener.errors import ConfigError, SessionError
from evener.loop.alone import Alone, Counted
from evener.loop.here import Here
from evener.loop.keeping import Keeper
from evener.loop.leased import Leased, Streamed, supply_of
from evener.loop.owner import Owner, Step, Supply
from evener.loop.parts import Frozen, Parts, bare, build, sorted_out
from evener.loop.passes import Passes
from evener.loop.remote import Remote
from evener.loop.schedulers import Schedulers
from evener.loop.serving import put_in_training, serve
from evener.loop.sinks import Sink, Sinks
from evener.report import Line, Status
from evener.slow import slowed
from evener.task.build import Built
from evener.task.script import Joining, Over
from evener.weights import write


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
        self._passes: Passes | None = None
        self._frozen: Frozen | None = None
        self._keeper = Keeper(joining.settings, told=bool(joining.settings.logdir) or joining.tower is not None)
        self._logged, self._answered = math.nan, self._clock()
        self._asked, self._said = False, False  # whether it asks when to stop, and was told that steps change nothing
        self._sinks = Sinks(joining.settings, joining.report)
        joining.joined, joining.finish = True, self._finish

    # --- what a program asks

    @property
    def is_server(self) -> bool:
        """Whether this is a ps task: its `prepare` does not return, so it need not read data."""
        return self._joining.job == "ps"

    @property
    def chief(self) -> bool:
        """Whether this process is to validate, save and print: one of all workers. Not in passes that were left out."""
        return self._passes is not None and self._passes.turn.chief and not self._passes.left_out

    @property
    def step(self) -> int:
        """Updates of the parameters so far, by all workers and optimizers together."""
        return self._passes.turn.version if self._passes is not None else 0

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
        return self._keeper.kept.state

    def should_stop(self) -> bool:
        """Whether the run is over: for loops without a loader."""
        self._asked = True
        return self._passes is not None and self._passes.stopped

    def stop(self, reason: str = "the program has seen enough") -> None:
        """End the run, on every worker, after the updates under way: then loaders are empty, steps change nothing."""
        if self._owner is not None:
            self._owner.stop(reason, complete=True)

    def log(self, values: Mapping[str, float]) -> None:
        """Figures of this worker: into TensorBoard, the live view and the log. A "loss" is the run's loss.

        Args:
            values: by name; tensors of one element are read.
        """
        figures = {name: float(value) for name, value in values.items()}
        if "loss" in figures:
            self._logged = figures["loss"]
        if self.chief:
            self._sinks.log(figures, self.step)

    def log_to(self, sink: Sink) -> None:
        """Hand every `log` of the chief on to a tracker of yours: anything with `log(values, step)` and `close()`."""
        self._sinks.add(sink)

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
        if self.chief and self._passes is not None:
            self._passes.settle(land=not (isinstance(self._owner, Remote) and self._owner.altered))  # its own are meant
            state = bare(which[0]).state_dict()
            write({name: v.detach().cpu() if isinstance(v, Tensor) else v for name, v in state.items()}, Path(path))

    # --- prepare

    def prepare(self, *given: Any) -> Any:
        """Join the models and optimizers to the run, and share out the batches of the first loader.

        Args:
            given: models, optimizers, DataLoaders, schedulers, in any order and number.

        Returns:
            The same, in this order; the first loader as one that is shared out. One alone for one.

        Raises:
            ConfigError: what cannot be prepared.
            Over: this is a ps task, and the run has ended.
        """
        if self._parts is not None:
            raise SessionError("prepare was called twice.", fix="give it everything at once.")
        parts = self._parts = self._keeper.parts = sorted_out(given)
        joining, settings = self._joining, self._joining.settings
        put_in_training(parts.optimizers if self.is_server else ())
        built, joining.prepared = build(parts, settings, joining.rules), True
        if self.is_server:
            serve(joining, parts, built)
        joining.report(Status(joining.name, "starting"))
        loader = parts.loaders[0] if parts.loaders else None
        supply = supply_of(loader, by_samples=settings.by_samples)
        owner = self._owner = self._owned(parts, built, supply)
        passes = self._passes = self._keeper.passes = Passes(
            owner, supply, heard=self._keeper.hear, begun=self._begin_pass, unused=self._forget_gradients,
            slow=slowed(settings.slow, self.worker, settings.seed), usual=float(settings.mean_batch), grads=parts.graded
        )  # fmt: skip
        self._frozen = None if isinstance(owner, Alone) else Frozen(parts, built.layout)
        shared = self._shared(loader, passes) if loader is not None else None
        passes.first()
        joining.stop = owner.stop  # before, Ctrl-C ends the program as any other: there is nothing to save
        if lost := joining.lost():
            owner.stop(lost)
        self._begin_where_it_was(passes)
        for number, optimizer in enumerate(parts.optimizers):
            self._watch(number, optimizer)
        schedulers = Schedulers(
            parts.schedulers, passes, apart=isinstance(owner, Remote), again=self._keeper.fresh,
            judged=self._keeper.judged, turned=self._keeper.soon, inside=self._keeper.kept.inside,
            several=len(parts.names) > 1,
        )  # fmt: skip
        self._keeper.inside = schedulers.inside
        if isinstance(owner, Here):
            owner.idled, owner.heard = schedulers.idled, self._keeper.hear
        joining.report(Status(joining.name, "training"))
        if joining.launched and not supply.length:
            seed_batch(settings.seed, self.worker)  # each worker is to play other episodes
        prepared = [shared if thing is loader and loader is not None else thing for thing in given]
        return prepared[0] if len(prepared) == 1 else tuple(prepared)

    def _owned(self, parts: Parts, built: Built, supply: Supply) -> Owner:
        joining = self._joining
        if joining.settings.ps:
            return Remote(joining, parts, built, supply)
        if joining.tower is None and not joining.settings.logdir:
            return Alone()
        return Here(joining, parts, built, supply)

    def _shared(self, loader: DataLoader[Any], passes: Passes) -> Leased | Streamed | Counted | DataLoader[Any]:
        if isinstance(self._owner, Alone):
            return loader
        if not passes.supply.length:
            return Streamed(loader, self._joining.index, self.workers, passes)
        if not self._joining.launched and self._joining.tower is None:
            return Counted(loader, passes.supply.length, passes)
        leased = Leased(loader, self._joining.settings.seed, passes, by_samples=self._joining.settings.by_samples)
        passes.ahead = leased.ahead + self._joining.settings.terms.in_flight - 1  # one is computed without an answer
        return leased

    def _begin_where_it_was(self, passes: Passes) -> None:
        """Go on as what the chief has kept says; passes that were finished are left out."""
        if isinstance(self._owner, Alone):
            return
        kept = self._keeper.kept
        passes.again = kept.glances
        passes.start = passes.epoch() + kept.ahead if passes.supply.length else max(0, kept.passes - 1)

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
        passes = self._passes
        assert passes is not None
        if passes.stopped:
            return self._late(passes)
        if self._frozen is not None:
            self._frozen.check()
        now = self._clock()
        leases = passes.hand.take()
        step = Step(
            group=number, really=really, closure=closure, leases=leases, sizes=passes.hand.sizes(leases),
            want=passes.want, loss=self._logged, seconds=now - self._answered,
            script=self._keeper.due(passes, now), spread=self._keeper.spread,
        )  # fmt: skip
        self._logged, self._keeper.spread = math.nan, False
        result = passes.step(step)
        self._answered = self._clock()
        return result

    def _late(self, passes: Passes) -> None:
        """A step after the end: without a loader nothing else would end the loop."""
        passes.leave_if_interrupted()
        if not self._said:
            self._said = True
            words = f"the run is over ({passes.turn.stop}): steps change nothing any more"
            self._joining.report(Line(self._joining.name, words))
        if not passes.supply.length and not self._asked:
            raise Over(0)

    def _forget_gradients(self) -> None:
        """Those of batches that no step has used are named as not applied: the next step must not apply them."""
        for optimizer in self._prepared().optimizers if self._joining.launched else ():
            Optimizer.zero_grad(optimizer)

    def _begin_pass(self, anew: bool) -> None:
        if anew:  # what the program has made of its learning rates meanwhile was made of empty passes
            self._keeper.restore()
        self._keeper.soon()  # the chief's program may have judged a validation alone

    # --- the end

    def _finish(self, error: BaseException | None) -> None:
        """The program has ended."""
        self._sinks.close()
        if self._owner is None:
            return
        passes = self._passes
        try:
            if error is None and passes is not None:
                passes.settle(land=False)  # nobody looks at the model any more: it stays as the program has left it
        except BaseException as failed:
            self._finish(failed)
            raise
        if error is None:
            keeps = passes is not None and passes.turn.chief and not isinstance(self._owner, Alone)
            self._owner.close(script=self._keeper.packed(passes) if keeps and passes is not None else b"")
            self._joining.report(Status(self._joining.name, "done"))
            return
        with contextlib.suppress(Exception):  # the first error is the one to tell
            self._owner.close(f"{type(error).__name__}: {error}".splitlines()[0])
