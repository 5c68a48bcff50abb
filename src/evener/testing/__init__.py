"""For tests of what runs on evener, or inside it: virtual time, a cluster in one process, and the contracts.

`Clock` and `Disk` stand for time and disks. `Cluster` is the ps tasks of a run, `Worker` a worker by hand, `Trainer`
one that computes; all meet in memory (`transport.listen("memory")`): nothing listens on the network, nothing waits.
`evener.testing.contracts` has what every transport, policy, exchange and starter promises, as classes of tests to
inherit; they need pytest and hypothesis, which nothing else here does.
"""

from __future__ import annotations

from evener.testing.alone import data_of, differences, ledger_of, one_process, same_bits
from evener.testing.clock import Clock, Disk
from evener.testing.cluster import Cluster, Row, row_recipe
from evener.testing.workers import EVENER, RUN, Scripted, Trainer, Worker, finished, train

__all__ = [
    "EVENER", "RUN", "Clock", "Cluster", "Disk", "Row", "Scripted", "Trainer", "Worker", "data_of", "differences",
    "finished", "ledger_of", "one_process", "row_recipe", "same_bits", "train",
]  # fmt: skip
