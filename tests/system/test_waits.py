"""Nothing waits in silence: each of the fourteen causes of a wait (RELIABILITY section 10) is injected and is told."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from running import small_disk, task_of

from evener.transport import keys

pytestmark = pytest.mark.slow
EVENER = [sys.executable, "-u", "-m", "evener"]
#: Seconds that a busy machine may need to start a few processes; what is told comes within 10 s of its cause.
PATIENCE = 60.0


class Told:
    """A command whose lines are read as they come."""

    def __init__(self, words: list[str], place: Path, program: list[str] | None = None) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*(program or EVENER), *words], cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def says(self, pattern: str) -> re.Match[str]:
        """Wait until the pattern stands in a line."""
        deadline = time.monotonic() + PATIENCE
        while True:
            over = self.process.poll() is not None and not self._thread.is_alive()
            if match := re.search(pattern, "".join(self.lines)):
                return match
            assert not over and time.monotonic() < deadline, f"nobody said {pattern!r}:\n{''.join(self.lines)}"
            time.sleep(0.02)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join()
        self.process.stdout.close()


@pytest.fixture
def told(tmp_path):
    """Starts commands; at the end none is left."""
    started: list[Told] = []

    def start(*words: str, program: list[str] | None = None) -> Told:
        started.append(Told([str(word) for word in words], tmp_path, program))
        return started[-1]

    yield start
    for one in started:
        children = psutil.Process(one.process.pid).children(recursive=True) if one.process.poll() is None else []
        one.end()
        psutil.wait_procs(children, timeout=10)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def task(job: str, index: int, *ps: str, workers: int = 1, more: tuple[str, ...] = ()) -> list[str]:
    """The words of one task; by TCP also on this machine, since causes between machines are meant."""
    hosts = ",".join(f"worker{i}:1" for i in range(workers))
    return [
        "task", "mnist", "--job-name", job, "--task-index", str(index), "--ps-hosts", ",".join(ps), "--worker-hosts",
        hosts, "--logdir", f"run-{job}-{index}", "--transport", "tcp", *more,
    ]  # fmt: skip


@pytest.fixture
def ps():
    return f"127.0.0.1:{free_port()}"


def test_1_a_closed_port(told, ps):
    waiting = told(*task("worker", 0, ps))
    waiting.says(rf"worker:0 +waiting for ps:0 to listen at tcp://{ps}: no process listens there \(\d+ s of 330 s\)")


def test_2_a_port_that_another_program_holds(told):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        threading.Thread(target=_hang_up_on_everyone, args=(other,), daemon=True).start()
        ps = f"127.0.0.1:{other.getsockname()[1]}"
        server, worker = told(*task("ps", 0, ps)), told(*task("worker", 0, ps))
        server.says(rf"{ps} is taken")
        server.says("fix: choose another port, or stop it")
        worker.says(rf"ps:0 to listen at tcp://{ps}: whoever listens there hangs up without an answer")


def _hang_up_on_everyone(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            listening.accept()[0].close()


def test_3_a_host_name_that_does_not_resolve(told):
    waiting = told(*task("worker", 0, "nowhere.invalid:2222"))
    waiting.says(r"ps:0 to listen at tcp://nowhere.invalid:2222: the name 'nowhere.invalid' does not resolve")


def test_4_an_address_that_swallows_packets(told):
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # its queue takes one or two; the kernel drops what comes then
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        ps = f"127.0.0.1:{full.getsockname()[1]}"
        told(*task("worker", 0, ps)).says(rf"ps:0 to listen at tcp://{ps}: no packet came back")


def test_5_a_wrong_key(told, ps, tmp_path):
    for name in ("ours", "theirs"):
        keys.new(tmp_path / name, keys.names(1, 1))
    (tmp_path / "theirs" / "ps-0.public").write_bytes((tmp_path / "ours" / "ps-0.public").read_bytes())
    server = told(*task("ps", 0, ps, more=("--keys", "ours")))
    server.says("worker:0 to join")
    told(*task("worker", 0, ps, more=("--keys", "theirs"))).says("ps:0 refused the key of worker:0")


def test_6_a_wrong_version(told, ps):
    program = (
        "import sys; from evener.task import build; build.VERSION = '0.0.9'; from evener.cli import main; main.main()"
    )
    server = told(*task("ps", 0, ps), program=[sys.executable, "-u", "-c", program])
    server.says("worker:0 to join")
    told(*task("worker", 0, ps)).says(r"worker:0 runs evener \d.*, ps:0 runs 0\.0\.9")


def test_7_a_ps_that_never_starts(told, ps):
    missing = f"127.0.0.1:{free_port()}"
    leader, worker = told(*task("ps", 0, ps, missing)), told(*task("worker", 0, ps, missing))
    leader.says("waiting for: ps:1 to follow ps:0")
    worker.says(rf"ps:1 to listen at tcp://{missing}: no process listens there")


def test_8_a_duplicate_task_index(told, ps):
    server, first = told(*task("ps", 0, ps)), told(*task("worker", 0, ps, more=("--train-steps", "1000000")))
    server.says(r"global step [1-9]")
    second = told(*task("worker", 0, ps))
    second.says(rf"worker:0 is already running at {re.escape(socket.gethostname())} pid {first.process.pid}")


def test_9_a_ps_that_was_killed(told, ps):
    server = told(*task("ps", 0, ps, more=("--train-steps", "1000000")))
    worker = told(*task("worker", 0, ps, more=("--train-steps", "1000000")))
    server.says(r"global step [1-9]")
    server.process.kill()
    worker.says(rf"ps:0 \(tcp://{ps}\) is gone while worker:0 waited for ps:0 to (release worker:0|show its)")
    worker.says(rf"waiting for ps:0 to listen at tcp://{ps}: no process listens there")


def test_10_a_worker_that_was_stopped(told):
    run = told("train", "mnist", "--ps", "1", "--workers", "2", "--mode", "sync", "--train-steps", "1000000")
    run.says(r"global step [1-9]")
    (worker,) = [one for one in psutil.Process(run.process.pid).children(recursive=True) if task_of(one) == "worker:1"]
    os.kill(worker.pid, signal.SIGSTOP)
    run.says(rf"worker:1 +waiting for SIGCONT: process {worker.pid} is stopped")
    run.says(r"run .*waiting for: .*worker 1")
    os.kill(worker.pid, signal.SIGCONT)


def test_11_data_too_short_for_one_batch(told):
    told("train", "mnist", "--batch-size", "5000").says(r"1437 training samples are fewer than one batch of 5000")


def test_12_a_disk_that_is_full(told, tmp_path):
    with small_disk(tmp_path / "disk", 12) as disk:  # too small for two checkpoints of the network
        run = told(
            "train", "mnist", "--ps", "1", "--workers", "1", "--logdir", disk, "--train-steps", "1000000",
            "--save-checkpoint-steps", "50",
        )  # fmt: skip
        run.says(r"the checkpoint of step \d+ was not saved: .*No space left on device")
        run.says(r"training goes on")


def test_13_a_loss_that_is_not_finite(told):
    run = told("train", "mnist", "--ps", "1", "--workers", "1", "--learning-rate", "1e20")
    run.says(r"(the loss of worker:0 is (nan|inf)|worker:0 pushed the gradient of .* that is not finite)")
    run.says("fix: lower the learning rate")


SLOW = """
import threading
import torch
from evener import Recipe

class Slow:
    def __len__(self):
        return 1000
    def batch(self, indices):
        if len(indices) > {least}:
            threading.Event().wait()  # the test ends it
        return torch.randn(len(indices), 4), torch.zeros(len(indices), dtype=torch.int64)

def recipe():
    return Recipe(
        model=lambda: torch.nn.Linear(4, 2), data=Slow, optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.1)
    )
"""


def test_14_a_slow_data_loader(told, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.replace("{least}", "4"))
    run = told("train", "slow.py:recipe", "--ps", "1", "--workers", "1")
    run.says(r"worker:0 +waiting for its data: the batch of lease \d+ \(\d+ s\)")


def test_14_a_data_set_whose_first_samples_do_not_come(told, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.replace("{least}", "0"))
    run = told("train", "slow.py:recipe", "--ps", "1", "--workers", "1")
    run.says(r"worker:0 +waiting for its data: the first samples \(\d+ s\)")
