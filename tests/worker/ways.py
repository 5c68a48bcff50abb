"""One recipe in every way of running, in this process: what it has learned, and what it was refused with.

With ps tasks these are real sessions in threads (`tasks_in_one_process.py`), so a model may draw no random numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("server", "worker", "zoo")]
import pytest
import torch
import towers_in_one_process as in_threads
from tasks_in_one_process import Tasks
from torch import Tensor, nn

from evener.errors import EvenerError
from evener.recipes.recipe import Recipe
from evener.session.hooks import Hook
from evener.session.session import Session
from evener.testing import Cluster, one_process

#: name -> (what stands for it in `Settings`, batches in each update)
WAYS = {
    "one process": ({}, 1),
    "2 towers": ({}, 2),
    "1 ps": ({"ps": 1, "workers": 2, "mode": "sync"}, 2),
    "3 ps": ({"ps": 3, "workers": 2, "mode": "sync"}, 2),
    "3 ps, async": ({"ps": 3, "workers": 1, "mode": "async"}, 1),
}
SERVERS = tuple(way for way in WAYS if "ps" in way)
ALONE = tuple(way for way in WAYS if way not in SERVERS)
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
STEPS, BATCH = 5, 6


def replicas(way: str) -> int:
    return WAYS[way][1]


@dataclass
class Ran:
    """How a run ended."""

    parameters: dict[str, Tensor] = field(default_factory=dict)  # and buffers
    averages: dict[str, Tensor] = field(default_factory=dict)
    error: BaseException | None = None  # the first that a task raised by itself
    sessions: list[Session] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)  # of each state: its groups' learning rates, now
    cluster: Cluster | None = None  # which has ended


def run(
    way: str,
    recipe: Recipe,
    directory: Path,
    hooks: Callable[[int], Sequence[Hook]] = lambda worker: (),
    before: Ran | None = None,
    **options: object,
) -> Ran:
    """Train for a few steps.

    Args:
        before: the run that this one goes on with, in the same directory.
        hooks: of each worker, by its index.
        options: those of `Settings`.
    """
    everything: dict = {"train_steps": STEPS, "batch_size": BATCH, **WAYS[way][0]} | options
    if way == "one process":
        return _alone(recipe, directory, hooks, everything)
    if way == "2 towers":
        return _towers(recipe, directory, hooks, everything)
    return _cluster(recipe, directory, hooks, {**everything, "before": before and before.cluster})


def _alone(recipe, directory, hooks, options) -> Ran:
    session, *_ = one_process(recipe, directory, hooks(0), **options)
    ran = Ran(sessions=[session])
    try:
        session.run()
    except Exception as error:
        ran.error = error
    return _of_state(ran, session.exchange._state)


def _towers(recipe, directory, hooks, options) -> Ran:
    sessions = in_threads.towers(recipe, directory, 2, hooks=hooks, **options)
    ends = in_threads.run(sessions)
    ran = Ran(sessions=sessions, error=_first(ends))
    for session in sessions:
        _of_state(ran, in_threads.state_of(session))
    return ran


def _of_state(ran: Ran, state) -> Ran:
    ran.parameters = {piece.spec.name: view.clone() for piece, view in state.parameters.named()} | state.frozen
    if state.averages is not None:
        ran.averages = {piece.spec.name: view.clone() for piece, view in state.averages.named()}
    ran.rates.append([float(group["lr"]) for group in state.optimizer.param_groups])
    return ran


def _cluster(recipe, directory, hooks, options) -> Ran:
    with Cluster(recipe, directory, **options) as cluster:
        tasks = Tasks(cluster, [list(hooks(worker)) for worker in range(options["workers"])])
        ended = tasks.run()
        ran = Ran(cluster.parameters(), sessions=tasks.sessions, error=_first(list(ended.values())), cluster=cluster)
        ran.parameters |= cluster.leader.shard.state.frozen
        if recipe.ema_decay is not None:
            ran.averages = cluster.parameters("averages")
        for server in cluster.servers:
            ran.rates.append([float(group["lr"]) for group in server.shard.state.optimizer.param_groups])
        return ran


def _first(ends: Sequence[object]) -> BaseException | None:
    """What went wrong, rather than what others say of it."""
    errors = [end for end in ends if isinstance(end, BaseException)]
    own = [error for error in errors if type(error).__name__ not in ("TaskFailed", "PeerGone", "ServerLost")]
    return next(iter(own or errors), None)


def model() -> nn.Module:
    """Nothing random, no normalization: [B, 8] -> [B, 3]."""
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def recipe_of(made: Callable[[], nn.Module] = model, **parts: object) -> Recipe:
    """50 samples, AdamW with decay: what is not left alone, moves."""
    generator = torch.Generator().manual_seed(1)
    inputs, target = torch.randn(50, 8, generator=generator), torch.randint(0, 3, (50,), generator=generator)
    everything: dict = {
        "model": made, "data": lambda: ((inputs, target), (inputs, target)), "name": "ways",
        "optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
    } | parts  # fmt: skip
    return Recipe(**everything)


class At(Hook):
    """Calls functions of (model, global step) at moments of each step."""

    def __init__(self, **moments: Callable[[nn.Module, int], None]) -> None:
        for moment, function in moments.items():
            setattr(self, moment, self._calling(function))

    @staticmethod
    def _calling(function):
        return lambda session, *details: function(session.towers.model, session.turn.version)


def every(**moments: Callable[[nn.Module, int], None]) -> Callable[[int], Sequence[Hook]]:
    """This hook on every worker."""
    return lambda worker: [At(**moments)]


def refused(ran: Ran, *words: str) -> None:
    """The run was refused with an error of ours that says all this."""
    assert isinstance(ran.error, EvenerError), f"ended with {ran.error!r}"
    said = f"{ran.error} {ran.error.why} {ran.error.fix}"
    for word in words:
        assert word in said, said


def went_well(ran: Ran) -> Ran:
    if ran.error is not None:
        raise ran.error
    return ran
