"""A program as a worker of parameter servers: its gradients go there, and the newest parameters come back."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch.optim import Optimizer

from evener.errors import ConfigError
from evener.loop.flying import Flying
from evener.loop.owner import Past, Step, Supply
from evener.loop.parts import Parts, check_dense, unknown_scheduler
from evener.loop.said import Said
from evener.report import Line, Status
from evener.settings import Settings
from evener.state.optimizers import needs_closure
from evener.state.tensors import CPU, named_tensors
from evener.task.build import VERSION, Built
from evener.task.script import Joining
from evener.task.wiring import Dialer
from evener.transport.channel import Memory
from evener.wire import codec
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.compute.device_memory import DeviceMemory, Fetching
from evener.worker.compute.towers import Towers
from evener.worker.exchange.exchange import Computed, Own, Turn
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers


def check_for_servers(optimizers: Sequence[Optimizer], settings: Settings) -> None:
    """Raises ConfigError for an optimizer that cannot work where its gradients come from elsewhere."""
    if len(optimizers) > 1 and settings.terms.in_flight > 1:
        raise ConfigError(
            f"--in-flight {settings.terms.in_flight} does not go with {len(optimizers)} optimizers so far.",
            why="what one of them has changed would come while the gradients of another are computed.",
            fix="leave --in-flight out.",
        )
    for optimizer in optimizers:
        if needs_closure(optimizer):
            raise ConfigError(
                f"{type(optimizer).__name__} does not go with ps tasks.",
                why="its step() computes the loss again and again, where the parameters are; the data are not there.",
                fix="run it alone (python train.py), or use SGD, Adam, AdamW, ...",
            )
    check_dense(optimizers)


class Remote:
    """A worker's life, as an `Owner`."""

    here = False

    def __init__(self, joining: Joining, parts: Parts, built: Built, supply: Supply) -> None:
        settings, layout = joining.settings, built.layout
        check_for_servers(parts.optimizers, settings)
        self._supply, self._past = supply, Past(supply, self._tell)
        self._parts, self._told, self._chief = parts, b"", False
        self._joining = joining
        self._alone = settings.processes == 1
        self._said = Said(parts.optimizers)
        named = dict(parts.model.named_parameters())
        everything = frozenset().union(*parts.names)
        #: Of each optimizer, the parameters of the others: they change with their own steps alone.
        self._others = [[named[name] for name in layout.trained if name in everything - mine] for mine in parts.names]
        gradients, parameters = Memory(layout.nbytes), Memory(layout.nbytes)
        landing = Memory(layout.nbytes) if settings.terms.in_flight > 1 else None
        memory = _elsewhere(built, gradients, parameters)
        self._towers = Towers(
            built.model, built.recipe, layout,
            parameters=parameters.view, gradients=gradients.view, seed=settings.seed, memory=memory,
            apart=True,  # a program may keep its gradients for another optimizer's step, or over the next backward
        )  # fmt: skip
        hello = Hello(
            Identity(joining.index), joining.run, VERSION, built.fingerprint,
            layout.fingerprint, codec.pack_specs(layout.specs), supply.length, socket.gethostname(), os.getpid(),
            process=secrets.token_hex(8), sources=built.sources,
        )  # fmt: skip
        joining.report(Status(joining.name, "starting", waiting_for="the addresses of the ps tasks"))
        links = ServerLinks(
            joining.name, joining.rendezvous.addresses, layout, gradients=gradients,
            parameters=landing or parameters,
            connect=Dialer(settings, joining.name, joining.run), report=joining.report, clock=time.monotonic,
            patience=settings.stall_timeout + 30.0,
        )  # fmt: skip
        self._servers = Servers(links, hello, sleep=time.sleep)
        self._fetching = Fetching(self._servers, memory) if memory is not None else None
        self._exchange = self._fetching or self._servers
        self._flying = Flying(self._servers, landing, parameters, memory) if landing is not None else None
        for optimizer in parts.optimizers:
            _keeps_no_state(optimizer, self._tell)
            _takes_no_hooks(optimizer)
            _shows_nothing_else(optimizer, self._tell)

    def _tell(self, text: str) -> None:
        self._joining.report(Line(self._joining.name, text))

    @property
    def under_way(self) -> int:
        return self._flying.count if self._flying is not None else 0

    @property
    def _arrivals(self) -> int:
        return (self._flying or self._servers).arrivals

    def start(self, want: int) -> Turn:
        self._servers.want = want
        turn = replace(self._came((self._flying or self._exchange).start()), anew=False)
        if turn.stop:
            self._joining.report(Line(self._joining.name, f"the run is over: {turn.stop}"))
        return turn

    def _came(self, turn: Turn) -> Turn:
        """The model has other parameters now."""
        self._towers.arrived(self._arrivals)
        self._chief = turn.chief
        return turn

    def step(self, step: Step) -> tuple[Any, Turn]:
        self._past.look(step)
        result = None
        if step.closure is not None:
            with torch.enable_grad():
                result = step.closure()
        loss = step.loss
        if math.isnan(loss) and isinstance(result, torch.Tensor | float):
            loss = float(result)
        if self._flying is not None:
            self._flying.free()
            if self._flying.lost:
                self._told = b""
        unused = self._towers.collect(self._arrivals, self._parts.names[step.group])
        examples = sum(step.sizes) or len(step.leases) * self._supply.size
        own = Own(
            leases=step.leases, want=step.want, group=step.group, settings=self._settings(),
            script=step.script, spread=step.spread,
        )  # fmt: skip
        others = self._others[step.group]
        before = [parameter.detach().clone() for parameter in others]
        computed = Computed(loss=loss, examples=examples, seconds=step.seconds, unused=unused, own=own)
        turn = (self._flying or self._exchange).update(computed)
        if turn.anew or turn.rejected:
            self._told = b""  # what it said of settings was not taken either
        if others and not turn.anew:  # what was computed with them may still be on its way back through autograd
            torch._foreach_copy_([parameter.data for parameter in others], before)
        return result, self._came(turn)

    @property
    def altered(self) -> bool:
        """Whether the model has values of the program's own now."""
        return self._towers.constants.altered(self._arrivals, deep=False)

    def settled(self, *, land: bool) -> Turn | None:
        if self._flying is None:
            return None
        if land and not self._flying.landed:  # else what the program has made of the parameters would be lost unseen
            self._towers.constants.look(self._arrivals)
        arrivals, turn = self._arrivals, self._flying.settled(land=land)
        if self._arrivals != arrivals:
            self._towers.arrived(self._arrivals)
        if turn is not None:
            self._chief = turn.chief
            self._told = b"" if turn.anew or turn.rejected else self._told
        return turn

    def _settings(self) -> bytes:
        """The settings of all optimizers, if they have changed since they were told last. The chief's count."""
        if not self._chief:
            return b""
        now = json.dumps(self._said.now()).encode()
        if now == self._told:
            return b""
        self._told = now
        if not self._alone and (unknown := unknown_scheduler(self._parts)):
            self._alone = True  # told once
            self._tell(unknown)
        return now

    def draw(self, want: int, *, unused: Sequence[int] = (), wait: bool = False) -> Turn:
        if wait:  # the answer would undo what an optimizer that was not prepared has done, and nobody would know
            self._towers.constants.compare_arrived(self._arrivals, deep=False)
        known = self._servers.version
        turn = self._servers.draw(want, unused=unused, wait=wait)
        if not (wait or turn.anew or turn.stop) and turn.version > known:  # an epoch has begun since
            self._towers.constants.compare_arrived(self._arrivals, deep=False)
            turn, wait = self._servers.newest(turn.version) or turn, True
        self._chief = turn.chief
        if wait or turn.anew:
            if self._flying is not None:
                self._flying.land(turn)
            elif self._fetching is not None:
                self._fetching.fetch()
            self._came(turn)
        return turn

    def stop(self, reason: str, *, complete: bool = False) -> None:
        self._exchange.stop(reason, complete=complete)

    def close(self, reason: str = "", script: bytes = b"") -> None:
        self._servers.keeps = script
        self._exchange.close(reason)


def _keeps_no_state(optimizer: Optimizer, tell: Callable[[str], None]) -> None:
    """A program that keeps checkpoints of its own would begin again with an optimizer that knows nothing."""
    kind, told = type(optimizer).__name__, False

    def saved(_optimizer: Optimizer) -> None:
        nonlocal told
        if not told and not _accelerate_wraps():
            told = True
            tell(
                f"warning: the state_dict of {kind} holds its settings alone: its state lies in the ps tasks. "
                "To go on with all of it give --logdir, and the same again"
            )

    def loaded(_optimizer: Optimizer, state: Any) -> None:
        if not state["state"] and _accelerate_wraps():
            return
        raise ConfigError(
            f"load_state_dict of {kind} was called after prepare.",
            why="its state lies in the ps tasks, which have begun with what there was at prepare.",
            fix="load checkpoints before prepare; or let --logdir keep all, and give the same again to go on.",
        )

    optimizer.register_state_dict_pre_hook(saved)
    optimizer.register_load_state_dict_pre_hook(loaded)


def _shows_nothing_else(optimizer: Optimizer, tell: Callable[[str], None]) -> None:
    """One that shows its averages in the model between `eval` and `train`, as schedulefree's do, has none here."""
    really = getattr(optimizer, "eval", None)
    if not callable(really):
        return
    kind = type(optimizer).__name__

    def shown(self: Optimizer) -> Any:
        self.eval = really  # type: ignore[attr-defined]  # told once
        tell(
            f"warning: {kind}.eval() changes nothing here: what it shows instead of the trained parameters lies in the "
            "ps tasks. What is validated and saved now are the trained ones; towers, or one process, show the others"
        )
        return really()

    optimizer.eval = MethodType(shown, optimizer)  # type: ignore[attr-defined]


def _accelerate_wraps() -> bool:
    """Whether Accelerate puts its shell around an optimizer: it takes the state and loads it at once, for another
    device's sake."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("torch.", "evener.")):
        frame = frame.f_back
    return frame.f_code.co_name == "__init__" and str(frame.f_globals.get("__name__", "")).startswith("accelerate.")


def _takes_no_hooks(optimizer: Optimizer) -> None:
    """From now on: its steps are taken elsewhere, and nobody would call them."""
    kind = type(optimizer).__name__

    def refuse(_self: Optimizer, _hook: Any) -> Any:
        raise ConfigError(
            f"a step hook of {kind} was registered after prepare.",
            why="its steps are taken in the ps tasks, which have the hooks that there were at prepare.",
            fix="register it before prepare, and let it take parameters from its optimizer's param_groups; or do in "
            "the program, before step(), what it is to do to gradients.",
        )

    optimizer.register_step_pre_hook = MethodType(refuse, optimizer)  # type: ignore[method-assign]
    optimizer.register_step_post_hook = MethodType(refuse, optimizer)  # type: ignore[method-assign]


def _elsewhere(built: Built, gradients: Memory, parameters: Memory) -> DeviceMemory | None:
    """For a model that the program has put on other devices."""
    homes = {name: tensor.device for name, tensor in named_tensors(built.model).items()}
    found = {spec.name: homes[spec.name] for spec in built.layout.specs}
    if set(found.values()) <= {CPU}:
        return None
    return DeviceMemory(built.layout, found, parameters=parameters.view, gradients=gradients.view)
