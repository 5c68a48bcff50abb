"""`evener task`: one command per task, with the flags of the old programs, started in any order."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
EVENER = [sys.executable, "-m", "evener"]
#: As the tutorials wrote them: underscores, one dash list, `--ps_host`, `--task_id`.
FLAGS = [
    "--train_steps",
    "60",
    "--batch_size",
    "100",
    "--learning_rate",
    "0.05",
    "--hidden_units",
    "20",
    "--num_gpus",
    "0",
]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(words: list[str], place, variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*EVENER, "task", "mnist", *FLAGS, *words],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(variables or {})},
    )  # fmt: skip


def finish(tasks: list[subprocess.Popen[str]]) -> list[str]:
    """Their outputs; kills what has not ended in time, so that nothing is left behind."""
    outputs = []
    try:
        for task in tasks:
            outputs.append(task.communicate(timeout=90)[0])
    finally:
        for task in tasks:
            if task.poll() is None:
                task.kill()
                task.communicate()
    assert [task.returncode for task in tasks] == [0] * len(tasks), "\n".join(outputs)
    return outputs


@pytest.mark.parametrize("ps", [1, 2])
def test_tasks_started_workers_first_train_together_with_the_old_flags(ps, tmp_path):
    ports = free_ports(ps)
    cluster = ["--ps_host=" + ",".join(f"localhost:{port}" for port in ports), "--worker_hosts=localhost:1,localhost:2"]
    logdir = ["--logdir", str(tmp_path / "run")]
    workers = [
        start([*cluster, "--job_name=worker", f"--task_id={i}", *logdir, "--sync_replicas=True"], tmp_path)
        for i in (0, 1)
    ]
    servers = [
        start([*cluster, "--job_name=ps", f"--task_index={i}", *logdir, "--sync_replicas"], tmp_path) for i in range(ps)
    ]

    outputs = finish([*workers, *servers])
    assert "this task is worker:1, said by command line" in outputs[1]
    assert "final evaluation at global step 60" in outputs[0]
    assert (tmp_path / "run" / "checkpoints" / "step-00000060" / "manifest.json").exists()


def test_a_worker_whose_command_comes_when_a_short_run_is_over_is_told_so(tmp_path):
    (port,) = free_ports(1)
    cluster = [f"--ps_hosts=localhost:{port}", "--worker_hosts=localhost:1,localhost:2", f"--logdir={tmp_path}/run"]
    server = start([*cluster, "--job_name=ps", "--task_index=0"], tmp_path)
    finish([start([*cluster, "--job_name=worker", "--task_index=0"], tmp_path)])
    late = start([*cluster, "--job_name=worker", "--task_index=1"], tmp_path)

    told, served = finish([late, server])
    assert "the run is over: reached step 60" in told
    assert "worker:1 has not come yet, so it stays until 60 s after the first worker came" in served


def test_tf_config_says_the_same_and_the_chief_is_worker_0(tmp_path):
    (port,) = free_ports(1)
    jobs = {"ps": [f"127.0.0.1:{port}"], "chief": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"]}

    def task(kind: str) -> subprocess.Popen[str]:
        told = json.dumps({"cluster": jobs, "task": {"type": kind, "index": 0}})
        return start(["--logdir", str(tmp_path / kind)], tmp_path, {"TF_CONFIG": told})

    outputs = finish([task("worker"), task("chief"), task("ps")])
    assert "this task is worker:1, said by TF_CONFIG" in outputs[0]
    assert "this task is worker:0, said by TF_CONFIG" in outputs[1]


def test_a_worker_that_is_told_another_cluster_is_refused_by_name(tmp_path):
    (port,) = free_ports(1)
    server = start([f"--ps-hosts=127.0.0.1:{port}", "--worker-hosts=h:1", "--job-name=ps", "--task-index=0"], tmp_path)
    stranger = start(
        [f"--ps-hosts=127.0.0.1:{port}", "--worker-hosts=h:1,h:2", "--job-name=worker", "--task-index=1"], tmp_path
    )
    try:
        output = stranger.communicate(timeout=60)[0]
        assert stranger.returncode == 1
        assert "ps:0 belongs to run" in output
    finally:
        for task in (server, stranger):
            task.kill()
            task.communicate()


def test_download_only_loads_the_data_and_trains_nothing(tmp_path):
    finish([start(["--download_only"], tmp_path)])
    assert not list(tmp_path.iterdir())


def test_explain_names_the_cluster_and_who_said_so():
    words = ["--ps-hosts", " h0:2222", "--worker-hosts", "h1:2222", "--job-name", "worker", "--task-index", "0"]
    shown = subprocess.run([*EVENER, "explain", *words], capture_output=True, text=True, check=True).stdout
    assert "this task is worker:0, said by command line" in shown
    assert "ps:0         h0:2222" in shown
