"""TensorFlow's variable TF_CONFIG: JSON with a "cluster" and a "task".

Its `chief` (or `master`) is worker 0; its `evaluator` has no equal here.
"""

from __future__ import annotations

import json
from typing import Any

from evener.cluster.cluster import ClusterSpec, Task
from evener.errors import ConfigError


def read(text: str) -> tuple[ClusterSpec, Task] | None:
    """The cluster and this process's task; None where the variable is empty or speaks of no cluster.

    Raises:
        ConfigError: what is wrong in it.
    """
    if not text.strip():
        return None
    try:
        config: Any = json.loads(text)
    except RecursionError as error:
        raise ConfigError(
            "TF_CONFIG is not what it should be: too many lists in each other.", fix="correct it."
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"TF_CONFIG is not JSON: line {error.lineno} column {error.colno}: {error.msg}.", fix="correct it."
        ) from error
    jobs = _jobs(config)
    if not jobs:
        return None
    lists = {job: _addresses(job, told) for job, told in jobs.items()}
    chiefs = [*lists.pop("chief", []), *lists.pop("master", [])]
    workers = [*chiefs, *lists.pop("worker", [])]
    lists.pop("evaluator", None)
    cluster = ClusterSpec.of({"ps": [], **lists, "worker": workers})
    task = config.get("task")
    task = task if isinstance(task, dict) else {}
    job, index = task.get("type", "worker"), task.get("index", 0)
    if job == "evaluator":
        raise ConfigError(
            "TF_CONFIG makes this task an evaluator, which evener has not.",
            why="the chief validates at --eval-every and at the end.",
            fix="do not start this task, or run `evener eval RECIPE --checkpoint LOGDIR`.",
        )
    if job in ("chief", "master"):
        job = "worker"
    elif job == "worker" and isinstance(index, int):
        index += len(chiefs)
    return cluster, cluster.task(job, index)


def _jobs(config: Any) -> dict[str, Any]:
    """What TF_CONFIG says under "cluster"; empty where it speaks of a task alone, as for a run without a cluster."""
    if isinstance(config, dict) and "sparseCluster" in config and not config.get("cluster"):
        raise ConfigError(
            'TF_CONFIG has a "sparseCluster", which names some tasks of a cluster only.',
            why="every task is told of all: their number says what is averaged, their addresses who is who.",
            fix='name all tasks: "cluster": {"ps": ["host:port", ...], "worker": ["host:port", ...]}.',
        )
    jobs = (config.get("cluster") or {}) if isinstance(config, dict) else config
    if not isinstance(jobs, dict):
        what = 'The "cluster" of TF_CONFIG' if isinstance(config, dict) else "TF_CONFIG"
        raise ConfigError(
            f"{what} is {repr(jobs)[:80]}.", fix='write {"cluster": {"ps": [...], "worker": [...]}, "task": {...}}.'
        )
    return jobs


def _addresses(job: str, told: Any) -> list[str]:
    if not isinstance(told, list) or not all(isinstance(address, str) for address in told):
        raise ConfigError(f"job {job!r} of TF_CONFIG is {repr(told)[:80]}.", fix='write a list: ["host:port", ...].')
    return told
