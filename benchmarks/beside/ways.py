"""What is trained, by whom: workloads, and the ways of training that are compared on each. Data only."""

from __future__ import annotations

from dataclasses import dataclass

#: (role, index) of the processes that the driver starts.
Roots = tuple[tuple[str, int], ...]
ONE: Roots = (("launcher", 0),)
PAIR: Roots = (("worker", 0), ("worker", 1))


def cluster(ps: int, workers: int, *more: tuple[str, int]) -> Roots:
    return (*(("ps", index) for index in range(ps)), *(("worker", index) for index in range(workers)), *more)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One program of benchmarks/peers in one way of running."""

    name: str
    program: str
    roots: Roots
    mode: str = ""
    ps: int = 0
    workers: int = 1
    counts: int = 1  # slots of the meter that are counted in
    shared: bool = False  # an update is one gradient of one of these: they share the updates out
    peer: bool = False  # needs the environment of the peers
    keys: bool = False

    @property
    def groups(self) -> list[list[int]]:
        """Slots whose steps together are the updates: all where each gradient is an update, else each alone."""
        slots = list(range(self.counts))
        return [slots] if self.shared else [[slot] for slot in slots]


def _evener(name: str, mode: str, ps: int, workers: int) -> Way:
    shared = mode.startswith("async")
    return Way(
        name=name, program="evener_way.py", roots=ONE, mode=mode, ps=ps, workers=workers, counts=workers, shared=shared
    )


def _tensorflow(name: str, mode: str, ps: int, workers: int) -> Way:
    return Way(
        name=name, program="tensorflow_ps.py", roots=cluster(ps, workers), mode=mode, ps=ps, workers=workers,
        counts=workers, shared=mode == "async", peer=True,
    )  # fmt: skip


PLAIN = Way(name="plain loop", program="plain_loop.py", roots=PAIR[:1])
TWO_PLAIN = Way(name="two free plain loops", program="plain_loop.py", roots=PAIR, workers=2, counts=2)
LOCKSTEP = Way(
    name="two plain loops in lockstep", program="plain_loop.py", roots=PAIR, workers=2, counts=2, mode="lockstep"
)  # fmt: skip
ALONE = _evener("evener alone", "alone", 0, 1)
TWO_ALONE = Way(
    name="two free evener processes", program="evener_way.py", roots=(("launcher", 0), ("launcher", 1)), mode="alone",
    counts=2,
)  # fmt: skip
ASYNC_1 = _evener("evener async 1 ps + 1", "async", 1, 1)
ASYNC_2 = _evener("evener async 1 ps + 2", "async", 1, 2)
FLYING_1 = _evener("evener async 1 ps + 1 in flight 2", "async in_flight=2", 1, 1)
FLYING_2 = _evener("evener async 1 ps + 2 in flight 2", "async in_flight=2", 1, 2)
ASYNC_4 = _evener("evener async 2 ps + 4", "async", 2, 4)
SYNC = _evener("evener sync 1 ps + 2", "sync", 1, 2)
TOWERS = _evener("evener towers 2", "towers", 0, 2)
TF_1 = _tensorflow("TensorFlow PS 1 ps + 1", "async", 1, 1)
TF_2 = _tensorflow("TensorFlow PS 1 ps + 2", "async", 1, 2)
TF_4 = _tensorflow("TensorFlow PS 2 ps + 4", "async", 2, 4)
SYNC_REPLICAS = _tensorflow("SyncReplicas 1 ps + 2", "sync", 1, 2)
STRATEGY = Way(
    name="TF2 PSS 1 ps + 2", program="tensorflow_strategy.py", roots=cluster(1, 2, ("chief", 0)), ps=1, workers=2,
    peer=True,
)  # fmt: skip
DDP = Way(name="DDP over Gloo", program="ddp.py", roots=PAIR, workers=2, counts=2)
_BARE = {"program": "bare_ps.py", "roots": cluster(1, 2), "ps": 1, "workers": 2, "counts": 2}
BARE = Way(name="bare ps 1 ps + 2", mode="async", shared=True, **_BARE)
BARE_FLYING = Way(name="bare ps 1 ps + 2 in flight 2", mode="async in_flight=2", shared=True, **_BARE)
BARE_SYNC = Way(name="bare ps sync 1 ps + 2", mode="sync", **_BARE)
BARE_COPIED = Way(name="bare ps sync 1 ps + 2 workers copy", mode="sync copies=1", **_BARE)
BARE_SAME = Way(name="bare ps sync 1 ps + 2 no copy", mode="sync copies=0", **_BARE)
RPC = Way(name="torch RPC 1 ps + 2", program="rpc.py", roots=cluster(1, 2), ps=1, workers=2, counts=2, shared=True)
RAY = Way(
    name="Ray actor 1 ps + 2", program="ray_actor.py", roots=ONE, ps=1, workers=2, counts=2, shared=True, peer=True
)

# Between two hosts: each task a process of its own, ps tasks on one and workers on the other.
_APART = {"roots": cluster(1, 2), "ps": 1, "workers": 2, "counts": 2}
ASYNC_OPEN = Way(name="evener async no keys", program="evener_way.py", mode="async", shared=True, **_APART)
ASYNC_KEYS = Way(name="evener async keys", program="evener_way.py", mode="async", shared=True, keys=True, **_APART)
SYNC_OPEN = Way(name="evener sync no keys", program="evener_way.py", mode="sync", **_APART)
SOCKETS = Way(name="plain sockets", program="plain_sockets.py", **_APART)
LINK_OPEN = Way(name="evener link no keys", program="evener_link.py", **_APART)
LINK_KEYS = Way(name="evener link keys", program="evener_link.py", keys=True, **_APART)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One model, and who trains it."""

    name: str
    ways: tuple[Way, ...]
    model: str = "mlp"
    hidden: int = 0
    updates: int = 200  # after these the loss is compared and the measuring begins
    apart: bool = False  # in two network namespaces
    learns: bool = True

    @property
    def unit(self) -> str:
        return "gradients/s" if self.learns else "round trips/s"


FREE = (PLAIN, TWO_PLAIN, LOCKSTEP, ALONE, TWO_ALONE)
WORKS = (
    Work(
        name="MLP 500", hidden=500,
        ways=(
            *FREE, ASYNC_1, ASYNC_2, FLYING_1, FLYING_2, ASYNC_4, SYNC, TOWERS, TF_1, TF_2, TF_4, SYNC_REPLICAS,
            STRATEGY, DDP, RPC, RAY, BARE, BARE_FLYING, BARE_SYNC, BARE_COPIED, BARE_SAME,
        ),
    ),
    Work(name="MLP 100", hidden=100, ways=(PLAIN, ALONE, TWO_ALONE, ASYNC_2, FLYING_2, TF_2, BARE, BARE_FLYING)),
    Work(
        name="MLP 11 M", hidden=13_900, updates=60,
        ways=(TWO_PLAIN, LOCKSTEP, ALONE, TWO_ALONE, ASYNC_2, FLYING_2, SYNC, TOWERS, DDP),
    ),
    Work(
        name="transformer", model="transformer", updates=150,
        ways=(PLAIN, ALONE, ASYNC_2, SYNC, TOWERS, DDP),
    ),
    Work(
        name="MLP 500 between hosts", hidden=500, apart=True,
        ways=(ASYNC_OPEN, ASYNC_KEYS, SYNC_OPEN, TF_2, SYNC_REPLICAS),
    ),
    Work(name="1.6 MB between hosts", hidden=500, apart=True, learns=False, ways=(SOCKETS, LINK_OPEN, LINK_KEYS)),
)  # fmt: skip
