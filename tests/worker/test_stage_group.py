"""Two stages in real processes: one that is stopped before it takes an order is waited for no longer than agreed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

STAGE = """
import os, signal, sys
from evener.errors import Unavailable
from evener.worker.allreduce.meeting import listening_store, store_at
from evener.worker.pipeline.stage_group import Ask, StageGroup

stage = int(sys.argv[1])
if stage == 0:
    store, address = listening_store("127.0.0.1", 60.0)
    print(address, flush=True)
else:
    store = store_at(sys.stdin.readline().strip(), 60.0)
group = StageGroup(store, stage=stage, stages=2, patience=2.0)
if stage == 1:
    assert group.take() == (Ask.CONTINUE, -1)
    assert group.take() == (Ask.COMPUTE, 7)
    print("stops", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
group.give(Ask.CONTINUE, -1)
group.give(Ask.COMPUTE, 7)
sys.stdin.readline()  # the other one has stopped
try:
    group.give(Ask.COMPUTE, 8)
except Unavailable as error:
    print(error.what, group.broken, flush=True)
group.close()
"""


def test_an_order_that_nobody_takes_ends_the_wait_at_the_stall_timeout(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    stages = [
        subprocess.Popen(
            [sys.executable, "stage.py", str(stage)], cwd=tmp_path, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for stage in range(2)
    ]  # fmt: skip
    first, second = stages
    try:
        second.stdin.write(first.stdout.readline())
        second.stdin.flush()
        assert second.stdout.readline() == "stops\n"
        os.waitpid(second.pid, os.WUNTRACED)
        said, _ = first.communicate("go on\n", timeout=60)
        assert said == "worker:0 has waited 2 s for worker:1 to take the order COMPUTE. True\n"
        assert first.returncode == 0
    finally:
        for stage in stages:
            stage.send_signal(signal.SIGKILL)
            stage.wait()
            stage.stdin.close()
            stage.stdout.close()
