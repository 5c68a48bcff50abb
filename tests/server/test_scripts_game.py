"""Scripts by chance: whatever the mode, who dies or accumulates, with however many optimizers: every batch once."""

import os
from itertools import count
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from evener.commands.account import account
from evener.ledger import path_of
from evener.ledger.lines import Skipped, Update
from evener.ledger.reading import read
from evener.testing import Cluster, Scripted, row_recipe

EPOCHS = 3
GAMES = 15 if os.environ.get("QUICK") else 60
contract = settings(
    derandomize=True, deadline=None, database=None, max_examples=GAMES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.generate],  # each game takes its time: the first that fails is told as it is
)  # fmt: skip
directories = count()


class Loop:
    """One life of a script: for each epoch, for each batch: a gradient of `every` batches, for each optimizer."""

    def __init__(self, cluster, index, *, every, optimizers, want, unused):
        self.worker = Scripted(cluster, index)
        self.worker.want = want
        self.every, self.optimizers, self.unused = every, optimizers, unused
        self.group = 0  # whose turn it is
        self.rest = False  # there is no more to accumulate over
        self.asked = "release"  # for what it waits
        self.left = False
        self.worker.greet()
        self.worker.join()

    def hears(self):
        """Whether it is its turn."""
        worker = self.worker
        released = self.asked == "release" and (worker.turn is not None or worker.listen() is not None)
        if released or (self.asked == "drawn" and worker.drawn_since() is not None):
            self.asked = ""
        return not self.asked and not self.left

    def acts(self):
        worker, size = self.worker, self.worker.cluster.samples
        if self.group:
            self._push([])
        elif worker.hand and worker.hand[0] >= EPOCHS * size:
            self.left = True
            worker.leave()
        elif len(worker.hand) >= self.every or (worker.hand and self.rest and not self.unused):
            self._push(worker.hand[: self.every])
        elif not self.rest:
            self.rest = not worker.draw(self.every).leases
        else:
            self.rest = False
            self.asked = "" if worker.draw(wait=True, unused=worker.hand) is not None else "drawn"

    def _push(self, leases):
        self.rest = False
        group, self.group = self.group, (self.group + 1) % self.optimizers
        self.asked = "" if self.worker.push(1.0, leases=leases, group=group) is not None else "release"


def play(cluster, random, workers, deaths, *, moves=3000, **script):
    """Until all have left their loops, or so many moves; whether they have."""
    loops = {index: Loop(cluster, index, **script) for index in range(workers)}
    left = set()
    for _ in range(moves):
        if not cluster.settings.by_samples:
            cluster.leader.rounds.scripts.hands.check()
        ready = [index for index, loop in loops.items() if loop.hears()]
        left |= {index for index, loop in loops.items() if loop.left}
        if len(left) == workers:
            return True
        if left and moves < 3000:
            return False  # a server that begins anew does not know that they have
        assert ready, f"nobody goes on: {cluster.leader.waiting_for()}"
        index = random.choice(ready)
        if deaths and random.random() < 0.04:
            deaths -= 1
            victim = random.choice(sorted(set(loops) - left))
            loops[victim].worker.die(random.sample(range(cluster.settings.ps), cluster.settings.ps))
            cluster.settle()
            loops[victim] = Loop(cluster, victim, **script)
        else:
            loops[index].acts()
    assert moves < 3000, f"it does not end: {cluster.leader.waiting_for()}"
    return False


MODES = [
    {"mode": "async"},
    {"mode": "bounded", "staleness": 0},
    {"mode": "bounded", "staleness": 2},
    {"mode": "sync"},
    {"mode": "sync", "elastic": True},
    {"mode": "sync", "backup": True},
    {"mode": "sync", "accumulate": True},
    {"mode": "rennala", "gradients_per_update": 3},
    {"mode": "ringmaster", "max_delay": 2},
    {"mode": "softsync", "gradients_per_update": 2},
    {"mode": "sync", "sizes": True},
    {"mode": "async", "sizes": True},
    {"mode": "bounded", "staleness": 1, "sizes": True},
    {"mode": "quorum"},
    {"mode": "quorum", "max_delay": 1, "linger": 0.5},
]


def each(lease):
    """A lease is the number of a batch, or -1, or a stretch of samples."""
    return range(*lease) if isinstance(lease, tuple) else [lease] * (lease >= 0)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
@contract
@given(
    seed=st.integers(0, 2**32), workers=st.integers(1, 4), batches=st.integers(1, 11), ps=st.integers(1, 2),
    every=st.integers(1, 3), optimizers=st.integers(1, 2), want=st.integers(1, 4), unused=st.booleans(),
    deaths=st.integers(0, 3),
)  # fmt: skip
def test_every_batch_of_every_epoch_is_applied_once_or_closed(
    tmp_path, mode, seed, workers, batches, ps, deaths, **script
):
    options = dict(mode)
    if options.pop("backup", False):
        options["replicas_to_aggregate"] = max(1, workers - 1)
    if options.get("accumulate"):
        options["replicas_to_aggregate"] = workers + 1
    if options.get("accumulate") or options["mode"] in ("rennala", "softsync", "quorum"):
        script["optimizers"] = 1
    sized = {"batch_size": 1}
    if options.pop("sizes", False):
        sized = {"batch_sizes": tuple(1 + index % 3 for index in range(workers))}
        script |= {"optimizers": 1, "every": 1}
    directory = tmp_path / str(next(directories))
    with Cluster(
        row_recipe(), directory, ps=ps, workers=workers, batches=batches, script="loop.py", **sized, **options
    ) as cluster:
        play(cluster, Random(seed), workers, deaths, **script)
        cluster.finish()
        assert len(set(cluster.versions())) == 1
        assert cluster.leader.course.stopping == "every worker has left its loop"
    found = account(directory)
    assert found.clean, str(found)
    assert found.epochs == EPOCHS and not found.unapplied
    lines = [line for _, line in read(path_of(directory))]
    applied = [one for line in lines if isinstance(line, Update) for entry in line.entries for one in each(entry[0])]
    closed = [one for line in lines if isinstance(line, Skipped) for one in each(line.lease)]
    assert sorted(lease for lease in applied + closed if lease < EPOCHS * batches) == list(range(EPOCHS * batches))
    assert script["unused"] or not closed


@pytest.mark.parametrize("mode", MODES[:5], ids=lambda mode: "-".join(map(str, mode.values())))
@contract
@given(
    seed=st.integers(0, 2**32), workers=st.integers(1, 3), batches=st.integers(1, 9), ps=st.integers(1, 2),
    every=st.integers(1, 2), want=st.integers(1, 3), moves=st.integers(1, 60),
)  # fmt: skip
def test_servers_that_begin_anew_go_on_in_the_epoch_of_their_checkpoint(
    tmp_path, mode, seed, workers, batches, ps, moves, **script
):
    directory, cluster, random = tmp_path / str(next(directories)), None, Random(seed)
    options = {"ps": ps, "workers": workers, "batches": batches, "script": "loop.py", "batch_size": 1, **mode}
    for generation in range(3):
        if cluster is not None:
            cluster.close()
        cluster = Cluster(row_recipe(), directory, before=cluster, save_checkpoint_steps=3, **options)
        cluster.tick(1.0)
        moves = 3000 if generation == 2 else moves
        if play(cluster, random, workers, 0, moves=moves, optimizers=1, unused=False, **script):
            break
        cluster.tick(1.0)
    cluster.finish()
    cluster.close()
    found = account(directory)
    assert found.clean, str(found)
    assert (found.epochs, found.broken, found.unapplied) == (EPOCHS, (), ())
