"""Which cluster this process is in, and as which task: from flags, TF_CONFIG, torchrun or Slurm.

The only reader of environment variables; everything else is told. `explain` says what was found and who said so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from evener.cluster import tf_config
from evener.cluster.cluster import ClusterSpec, Task
from evener.cluster.slurm import nodelist
from evener.errors import ConfigError
from evener.settings import Settings

#: Bytes of a block that tasks copy past the caches.
PAST_CACHES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What the command line said about the cluster; None or empty: nothing."""

    job_name: str | None = None
    task_index: int | None = None
    ps_hosts: str = ""
    worker_hosts: str = ""
    ps: int | None = None  # how many of the tasks that a scheduler started are ps tasks
    port: int = 2222  # of ps:0 where a scheduler gives hosts but no ports


@dataclass(frozen=True, slots=True)
class Found:
    """A task in its cluster, and where that was read."""

    cluster: ClusterSpec
    task: Task
    source: str


def find(flags: Flags, environment: Mapping[str, str] | None = None) -> Found:
    """The cluster and this process's task. Flags win over variables, which may not contradict them.

    Args:
        environment: the variables; those of this process if None.

    Raises:
        ConfigError: nothing says which cluster, or two sources disagree.
    """
    environment = os.environ if environment is None else environment
    if flags.ps_hosts or flags.worker_hosts:
        found = _from_flags(flags)
        _check_agreement(found, environment)
        return found
    for read in (_from_tf_config, _from_torchrun, _from_slurm):
        read_found = read(flags, environment)
        if read_found is not None:
            return _with_flags(read_found, flags)
    told = "TF_CONFIG names no cluster" if environment.get("TF_CONFIG", "").strip() else "TF_CONFIG is not set"
    raise ConfigError(
        "nothing says which cluster this task belongs to.",
        why=f"there are no host lists, {told}, nor are torchrun's and Slurm's variables.",
        fix="give --ps-hosts, --worker-hosts, --job-name and --task-index; `evener train` starts all tasks by itself.",
    )


def chaos_plan(environment: Mapping[str, str] | None = None) -> str:
    """What tests want to go wrong (`evener.chaos`); empty in real life."""
    return (os.environ if environment is None else environment).get("EVENER_CHAOS", "")


def find_cluster(flags: Flags, environment: Mapping[str, str] | None = None) -> ClusterSpec:
    """The cluster, for who is none of its tasks. Raises ConfigError as `find`."""
    if flags.ps_hosts or flags.worker_hosts:
        return ClusterSpec.of({"ps": hosts(flags.ps_hosts), "worker": hosts(flags.worker_hosts)})
    return find(flags, environment).cluster


def hosts(text: str) -> list[str]:
    """ "h0:2222, h1:2222" as a list; blanks do not count."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _from_flags(flags: Flags) -> Found:
    cluster = find_cluster(flags)
    if not flags.job_name:
        raise ConfigError("the job of this task is not given.", fix="add --job-name ps or --job-name worker.")
    if flags.task_index is None:
        raise ConfigError("the index of this task is not given.", fix="add --task-index 0, 1, ...")
    return Found(cluster, cluster.task(flags.job_name, flags.task_index), "command line")


def _with_flags(found: Found, flags: Flags) -> Found:
    """A scheduler's variables give the cluster; --job-name and --task-index may still say who we are."""
    if flags.job_name is None and flags.task_index is None:
        return found
    job = flags.job_name or found.task.job
    index = found.task.index if flags.task_index is None else flags.task_index
    return Found(found.cluster, found.cluster.task(job, index), f"{found.source} and command line")


def _check_agreement(found: Found, environment: Mapping[str, str]) -> None:
    told = _from_tf_config(Flags(), environment)
    if told is not None and told.task != found.task:
        raise ConfigError(
            f"this task is {found.task} by the command line, {told.task} by TF_CONFIG.",
            fix="unset TF_CONFIG, or leave the flags out.",
        )


def _from_tf_config(_flags: Flags, environment: Mapping[str, str]) -> Found | None:
    told = tf_config.read(environment.get("TF_CONFIG", ""))
    return Found(*told, "TF_CONFIG") if told else None


def _from_torchrun(flags: Flags, environment: Mapping[str, str]) -> Found | None:
    """RANK and WORLD_SIZE: the first --ps ranks are ps tasks, on the host of MASTER_ADDR."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        return None
    rank, world = _integer(environment, "RANK"), _integer(environment, "WORLD_SIZE")
    # torchrun's own store listens on MASTER_PORT; ours follow it
    first = _integer(environment, "MASTER_PORT") + 1
    return _ranked(rank, [environment["MASTER_ADDR"]] * world, flags.ps or 0, first, "torchrun's variables")


def _from_slurm(flags: Flags, environment: Mapping[str, str]) -> Found | None:
    """SLURM_PROCID of SLURM_NTASKS over SLURM_STEP_NODELIST: the first --ps ranks are ps tasks."""
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not names or "SLURM_PROCID" not in environment or "SLURM_NTASKS" not in environment:
        return None
    nodes, tasks = nodelist(names), _integer(environment, "SLURM_NTASKS")
    each = -(-tasks // len(nodes))
    placed = [nodes[rank // each] for rank in range(tasks)]
    return _ranked(_integer(environment, "SLURM_PROCID"), placed, flags.ps or 0, flags.port, "Slurm's variables")


def _ranked(rank: int, placed: list[str], ps: int, port: int, source: str) -> Found:
    if not 0 < ps < len(placed):
        raise ConfigError(
            f"{source} name {len(placed)} tasks, and {ps} of them are to be ps tasks.",
            why="a cluster has at least one ps and one worker task.",
            fix=f"add --ps P with P from 1 to {len(placed) - 1}.",
        )
    addresses = [f"{host}:{port + index}" for index, host in enumerate(placed)]
    cluster = ClusterSpec.of({"ps": addresses[:ps], "worker": addresses[ps:]})
    return Found(cluster, cluster.task(*(("ps", rank) if rank < ps else ("worker", rank - ps))), source)


def _integer(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(f"{name}={environment[name]!r} is not an integer.", fix="correct or unset it.") from None


def explain(found: Found) -> str:
    """For people: the cluster, this task, and who said so."""
    lines = [f"this task is {found.task}, said by {found.source}", "cluster:"]
    for task in found.cluster.tasks():
        mine = "   <- this task" if task == found.task else ""
        lines.append(f"  {task!s:12} {found.cluster.address(task)}{mine}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Rank:
    """This process's place among those that torchrun has started."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def one_machine(self) -> bool:
        return self.local_size == self.size


def rank_here(environment: Mapping[str, str] | None = None) -> Rank | None:
    """torchrun's variables, if it has started this process and others. Raises ConfigError if they are no numbers."""
    environment = os.environ if environment is None else environment
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        return None
    rank, size = _integer(environment, "RANK"), _integer(environment, "WORLD_SIZE")
    if not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= set(environment):  # not torchrun, who does as it does: one a machine
        return Rank(rank, size, 0, 1) if size > 1 else None
    local = _integer(environment, "LOCAL_RANK"), _integer(environment, "LOCAL_WORLD_SIZE")
    return Rank(rank, size, *local) if size > 1 else None


def runtime_directory() -> str:
    """Where the system keeps this user's sockets and secrets while it runs; empty if it does not say."""
    return os.environ.get("XDG_RUNTIME_DIR", "")


def loopback_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Gloo and NCCL listen on this machine alone, instead of where its name leads to; a user's own choice stays."""
    interface = "lo" if sys.platform == "linux" else "lo0"
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: interface for name in names if name not in environment}


@contextmanager
def on_this_machine(alone: bool) -> Iterator[None]:
    """In this block no other machine is reached, if `alone`."""
    before = dict(os.environ)
    variables = loopback_variables(before) if alone else {}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


def device_variables(settings: Settings, job: str, environment: Mapping[str, str], rank: int = 0) -> dict[str, str]:
    """What a task's environment must say before PyTorch first looks at the GPUs. A ps task sees none.

    Args:
        rank: of a worker among those of its machine. A program with a loop of its own says "cuda" and means the one
            GPU that is this worker's; where evener places the model, each worker sees them all.
    """
    if job == "ps":
        return {"CUDA_VISIBLE_DEVICES": ""}
    variables: dict[str, str] = {}
    seen = settings.visible_devices
    if settings.script and settings.num_gpus:
        given = seen if seen is not None else environment.get("CUDA_VISIBLE_DEVICES")
        gpus = given.split(",") if given else [str(gpu) for gpu in range(settings.num_gpus)]
        seen = gpus[rank % min(settings.num_gpus, len(gpus))]
    if seen is not None:
        variables["CUDA_VISIBLE_DEVICES"] = seen
    if settings.allow_growth:
        name = "PYTORCH_ALLOC_CONF" if "PYTORCH_ALLOC_CONF" in environment else "PYTORCH_CUDA_ALLOC_CONF"
        others = [part for part in environment.get(name, "").split(",") if part and "expandable_segments" not in part]
        variables[name] = ",".join([*others, "expandable_segments:True"])
    return variables


def copying_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Let glibc copy large blocks past the caches, unless the user has said otherwise. x86 only: else it means nothing.

    Tasks of one machine write gradients and parameters where another one has read. Through the caches that takes ten
    times as long where the two cores have caches of their own: 650 microseconds for 1.6 MB, 60 past them. By default
    glibc goes past them from most of the last cache on, some 20 MB. It looks at this when a process begins.
    """
    name, which = "GLIBC_TUNABLES", "glibc.cpu.x86_non_temporal_threshold"
    said = environment.get(name, "")
    return {} if which in said else {name: ":".join(filter(None, [said, f"{which}={PAST_CACHES:#x}"]))}


def task_environment(settings: Settings, job: str, rank: int = 0) -> dict[str, str]:
    """The environment of a task that is started."""
    alone = loopback_variables(os.environ) if settings.way in ("towers", "pipeline") else {}
    copying = copying_variables(os.environ)
    return {**os.environ, **device_variables(settings, job, os.environ, rank), **alone, **copying}


def change_environment(changes: Mapping[str, str | None]) -> None:
    """Of this very process; None removes a variable."""
    for name, value in changes.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def seeing_devices(settings: Settings, job: str, rank: int = 0) -> Iterator[None]:
    """The same for this very process, until the block ends.

    Raises:
        ConfigError: PyTorch uses the GPUs already, so it would not look again.
    """
    variables = device_variables(settings, job, os.environ, rank)
    before = {name: os.environ.get(name) for name in variables}
    torch = sys.modules.get("torch")
    if variables != before and job != "ps" and torch is not None and torch.cuda.is_initialized():
        raise ConfigError(
            f"{' and '.join(variables)} cannot change now.",
            why="PyTorch has used a GPU in this process already, and reads them once before.",
            fix="call evener.run first, or use `evener train`.",
        )
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
