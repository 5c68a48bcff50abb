"""64 workers on one ps: every lease once, every gradient once, and memory that was counted before.

The ps is `run_server` in a process of its own, whose memory is looked at from outside. The workers are threads here
with a worker's real links (`Servers`) and canned gradients: the gradient of lease k is 1 at place k and 0 elsewhere, so
the final parameters tell of each lease how often it was applied.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from evener.recipes.recipe import Recipe
from evener.settings import Settings
from evener.state.tensors import whole_views
from evener.task.build import VERSION, Built, build
from evener.task.wiring import Dialer
from evener.transport.channel import Memory
from evener.wire import codec
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.exchange.exchange import Computed
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers

WORKERS, LEASES, SAMPLES, RUN = 64, 256, 6400, "many"
NUMEL = 1 << 19
NBYTES = 4 * NUMEL  # of the parameters, and of one gradient: 2 MB
SLOTS = 1  # of SGD with momentum

#: What a ps needs beyond tensors, after its imports: PyTorch's first optimizer, code, 64 connections and their books,
#: one checkpoint on its way to the disk, and the 64 MB by which the allocator runs ahead (`devices.prepare_process`).
CONSTANT = 96 << 20

#: Gradients that a ps may hold for each worker. In shared memory a gradient stays in the worker's own memory; the one
#: is a copy, should it be held longer than the worker waits. Over TCP it is memory of the link, used again by each
#: gradient; the half is for parameters that wait to be sent (measured: 1.0 to 1.1 in all).
EACH = {"shared": 1.0, "tcp": 1.5}

SERVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_many_workers import RUN, built_for, settings_for
from evener.devices import prepare_process
from evener.task.server import run_server
from evener.report import Finished

class Printed:
    def publish(self, task, address):
        print("address", address, flush=True)

    def addresses(self):
        return []

def report(one):
    if isinstance(one, Finished):
        print("finished", one.global_step, one.examples, one.dropped_gradients, flush=True)

prepare_process(1, serves=True)
settings = settings_for(*json.loads(sys.argv[2]))
run_server(0, built_for(settings), settings, run=RUN, rendezvous=Printed(), stop_asked=str, report=report)
"""


class Row(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(NUMEL))


def settings_for(mode: str, transport: str, logdir: str) -> Settings:
    steps = LEASES if mode == "async" else LEASES // WORKERS
    return Settings(
        ps=1, workers=WORKERS, mode=mode, transport=transport, train_steps=steps, batch_size=10,
        save_checkpoint_secs=None, logdir=logdir, insecure=transport == "tcp",
    )  # fmt: skip


def built_for(settings: Settings) -> Built:
    """Momentum that is kept and does nothing: 1e-30 of the last update is lost in the rounding of a float."""
    recipe = Recipe(
        model=Row, data=lambda: (torch.zeros(SAMPLES), torch.zeros(SAMPLES)), name="row", metrics={},
        loss=lambda output, target: output.mean(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0, momentum=1e-30),
    )  # fmt: skip
    return build(settings, recipe)


class Server:
    """The ps: its process, what it said, and its memory."""

    def __init__(self, settings: tuple[str, str, str]) -> None:
        here = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, here, json.dumps(settings)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().removeprefix("address ").strip()
        assert self.address, "the ps did not start"
        self.before = self.most = self.memory()

    def memory(self) -> int:
        """Bytes of its own: not files, and not what is shared with the workers whose memory it is."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    def look(self) -> None:
        self.most = max(self.most, self.memory())

    @property
    def grown(self) -> int:
        return self.most - self.before


@contextmanager
def server(settings: tuple[str, str, str]) -> Iterator[Server]:
    one = Server(settings)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


class Crowd:
    """The workers: which leases they pushed, and what went wrong."""

    def __init__(self, settings: Settings, ps: Server) -> None:
        self.settings, self.ps, self.built = settings, ps, built_for(settings)
        self.pushed: Counter[int] = Counter()
        self.errors: list[BaseException] = []
        self.final: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def work(self, index: int) -> None:
        try:
            self._work(index)
        except BaseException as error:
            self.errors.append(error)

    def _work(self, index: int) -> None:
        layout = self.built.layout
        gradients, parameters = Memory(layout.nbytes), Memory(layout.nbytes)
        hello = Hello(
            Identity(index), RUN, VERSION, self.built.fingerprint, layout.fingerprint,
            codec.pack_specs(layout.specs), SAMPLES, "here", index,
        )  # fmt: skip
        name = f"worker:{index}"
        links = ServerLinks(
            name, lambda: [self.ps.address], layout, gradients=gradients, parameters=parameters,
            connect=Dialer(self.settings, name, RUN), report=lambda report: None, clock=time.monotonic, patience=60.0,
        )  # fmt: skip
        exchange = Servers(links, hello, sleep=threading.Event().wait)
        gradient = whole_views(layout, gradients.view)["row"]
        gradient.zero_()  # so that its pages exist before anyone pushes
        turn = exchange.start()
        while not turn.stop:
            lease = turn.lease
            gradient[lease] = 1.0
            turn = exchange.update(Computed(loss=0.5, examples=10, seconds=0.1))
            assert not turn.rejected, turn
            gradient[lease] = 0.0
            with self._lock:
                self.pushed[lease] += 1
                self.ps.look()
        if index == 0:
            exchange.show("parameters")
            self.final.append(whole_views(layout, parameters.view)["row"].clone())
        exchange.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("transport", ["tcp", "shared"])
def test_no_update_is_lost_or_doubled_and_the_memory_of_the_ps_is_bounded(
    mode: str, transport: str, tmp_path: Path
) -> None:
    options = (mode, transport, str(tmp_path / "run"))
    with server(options) as ps:
        crowd = Crowd(settings_for(*options), ps)
        threads = [threading.Thread(target=crowd.work, args=(index,)) for index in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100.0)
        assert not crowd.errors, crowd.errors
        said, _ = ps.process.communicate(timeout=60.0)
        assert ps.process.returncode == 0

    steps = crowd.settings.train_steps
    assert re.search(rf"finished {steps} {LEASES * 10} 0\n", said), said
    each = 1.0 if mode == "async" else 1.0 / WORKERS
    (final,) = crowd.final
    assert torch.equal(final[:LEASES], torch.full((LEASES,), -each)), "a lease was applied twice, or never"
    assert not final[LEASES:].any()
    assert crowd.pushed == Counter(range(LEASES))
    bound = NBYTES * (3 + SLOTS) + EACH[transport] * WORKERS * NBYTES + CONSTANT
    print(f"{mode} over {transport}: +{ps.grown / 2**20:.0f} MB, allowed {bound / 2**20:.0f} MB")
    assert ps.grown < bound
