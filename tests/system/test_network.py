"""A cluster on several hosts: over a real network, also when that is cut, slow, or loses a host for good."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from networks import Network, missing
from running import RECIPE, Run, evener, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

#: The small recipe, whose run lasts until the test has seen enough: until there is a file `enough`.
ENDLESS = (
    RECIPE
    + """

class Enough(evener.Hook):
    def after_step(self, session, result):
        Path(f"{session.task} trains").touch()
        if result.local_step % 20 == 0 and Path("enough").exists():
            session.stop("the test has seen enough")


def endless():
    hooks = [Enough()]
    return evener.Recipe(model=lambda: model(8), data=data, optimizer=OPTIMIZERS["sgd"], hooks=lambda: hooks)
"""
)


SILENT = "broke, or nothing came by it for 4 s"


class Cluster:
    """ps tasks on the first hosts, each worker on a host of its own after them; all of one command line."""

    def __init__(self, network: Network, place: Path, ps: int, workers: int, words: list[str]) -> None:
        self.network, self._place = network, place
        self.host = {f"ps:{i}": i for i in range(ps)} | {f"worker:{i}": ps + i for i in range(workers)}
        addresses = {task: f"{Network.address(host)}:2222" for task, host in self.host.items()}
        hosts = [f"--{job}-hosts=" + ",".join(a for task, a in addresses.items() if task.startswith(job))
                 for job in ("ps", "worker")]  # fmt: skip
        (place / "recipe.py").write_text(ENDLESS)
        self._command = [
            sys.executable,
            "-m",
            "evener.cli.main",
            "task",
            words[0],
            *hosts,
            "--logdir",
            "run",
            *words[1:],
        ]
        self.tasks = {task: self.start(task, host) for task, host in self.host.items()}

    def start(self, task: str, host: int) -> Run:
        job, _, index = task.partition(":")
        return self.network.start(host, [*self._command, "--job-name", job, "--task-index", index], self._place)

    def __getitem__(self, task: str) -> Run:
        return self.tasks[task]

    def step(self) -> int:
        """The newest global step that ps:0 told."""
        told = re.findall(r"global step (\d+)", self["ps:0"].said())
        return int(told[-1]) if told else 0

    def wait_for_all(self) -> None:
        """Until each worker has trained: one that starts before the others makes global steps without them."""
        workers = [task for task in self.tasks if task.startswith("worker")]
        until(lambda: all((self._place / f"{task} trains").exists() for task in workers), 60.0, "every worker trains")

    def wait_for_steps(self) -> None:
        """Until the run has moved on."""
        before = self.step()
        until(lambda: self.step() > before, 60.0, f"a global step after {before}:\n{self['ps:0'].said()}")

    def finish(self, *without: str) -> str:
        """Everything ends well, but for these tasks; all that the others said."""
        said = ""
        for name, run in self.tasks.items():
            if name not in without:
                done = run.finish(60.0)
                assert done.code == 0, f"{name}: {done.text}"
                said += done.text
        return said


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(5) as made:
        yield made


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    assert evener(tmp_path, "keys", "new", "keys", "--ps", 2, "--workers", 3).code == 0
    return ["--keys", "keys"]


def test_tasks_on_three_hosts_train_to_the_end_of_the_run(network, keys, tmp_path):
    # In lockstep: one that is quick would else be through before the other has begun, whose ps is gone then.
    words = ["mnist", "--hidden", "20", "--train-steps", "60", "--mode", "sync", *keys]
    cluster = Cluster(network, tmp_path, ps=1, workers=2, words=words)

    assert "final evaluation at global step 60" in cluster.finish()
    assert (tmp_path / "run" / "checkpoints" / "step-00000060" / "manifest.json").exists()


@pytest.mark.parametrize("secured", [False, True], ids=["insecure", "keys"])
def test_a_worker_cut_off_comes_back_by_itself_and_the_others_go_on_meanwhile(secured, network, request, tmp_path):
    links = request.getfixturevalue("keys") if secured else ["--insecure"]
    words = ["recipe.py:endless", "--train-steps", "10000000", "--heartbeat-timeout", "4", *links]
    cluster = Cluster(network, tmp_path, ps=2, workers=3, words=words)
    cluster.wait_for_all()

    network.cut(cluster.host["worker:2"])
    cluster["ps:0"].wait_for(rf"worker:2 is gone \(10.77.0.5: .*its connection {SILENT}\); 1 lease returns", 60.0)
    cluster["worker:2"].wait_for(rf"ps:\d \(tcp://10.77.0.\d:2222\) is gone while worker:2 .*: .* {SILENT}", 60.0)
    for _ in range(3):  # the others do not wait
        cluster.wait_for_steps()

    network.heal(cluster.host["worker:2"])
    cluster["ps:0"].wait_for(r"worker:2 is back \(epoch 2\)", 30.0)
    cluster.wait_for_steps()
    (tmp_path / "enough").touch()
    cluster.finish()


@pytest.mark.parametrize(
    "mode", [["async"], ["bounded"], ["sync", "--replicas-to-aggregate", "2"]], ids=["async", "bounded", "backup"]
)
def test_a_worker_whose_host_vanishes_is_noticed_by_its_silence_and_the_run_ends_without_it(mode, network, tmp_path):
    words = [
        "recipe.py:endless",
        "--train-steps",
        "10000000",
        "--insecure",
        "--heartbeat-timeout",
        "4",
        "--mode",
        *mode,
    ]
    cluster = Cluster(network, tmp_path, ps=2, workers=3, words=words)
    cluster.wait_for_all()

    network.cut(cluster.host["worker:1"])
    cluster["ps:0"].wait_for(rf"worker:1 is gone \(10.77.0.4: .*its connection {SILENT}\)", 15.0)
    cluster.wait_for_steps()
    (tmp_path / "enough").touch()
    cluster.finish("worker:1")
    audit = evener(tmp_path, "audit", "run")
    assert audit.code == 0, audit.text


def test_a_worker_that_was_replaced_while_its_host_was_silent_is_fenced_when_it_is_back(network, tmp_path):
    words = ["recipe.py:endless", "--train-steps", "10000000", "--heartbeat-timeout", "4", "--insecure"]
    cluster = Cluster(network, tmp_path, ps=1, workers=2, words=words)
    cluster.wait_for_all()

    network.cut(cluster.host["worker:1"])
    cluster["ps:0"].wait_for(rf"worker:1 is gone \(.*its connection {SILENT}\)", 60.0)
    old, cluster.tasks["worker:1"] = cluster["worker:1"], cluster.start("worker:1", 4)
    log = tmp_path / "run" / "logs" / "ps-0.log"
    until(lambda: "epoch 2" in log.read_text(), 60.0, "another process takes over")
    network.heal(cluster.host["worker:1"])
    fenced = old.finish(60.0)
    assert fenced.code == 3
    assert "worker:1 was replaced by epoch 2; this process has epoch 1; the newer one is at" in fenced.text

    cluster.wait_for_steps()
    (tmp_path / "enough").touch()
    cluster.finish()


def test_a_slow_network_is_not_taken_for_a_dead_one(network, keys, tmp_path):
    words = ["mnist", "--hidden", "500", "--train-steps", "40", "--heartbeat-timeout", "2", *keys]
    for host in range(2):
        network.limit(host, 100.0)
    cluster = Cluster(network, tmp_path, ps=2, workers=3, words=words)

    assert "is gone" not in cluster.finish()
