"""Which tasks there are and where they are: frozen data, checked when made."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evener.errors import ConfigError

JOBS = ("ps", "worker")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; port 0 is found when the task starts and told through a rendezvous."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


@dataclass(frozen=True, slots=True)
class Task:
    """One process of a job."""

    job: str
    index: int

    def __str__(self) -> str:
        return f"{self.job}:{self.index}"


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """The addresses of all tasks, by job and index.

    Raises:
        ConfigError: no worker, or one address for two tasks.

    >>> cluster = Cluster.of({"ps": ["h0:2222"], "worker": ["h1:2222", "h2:2222"]})
    >>> str(cluster.address(Task("worker", 1)))
    'h2:2222'
    """

    ps: tuple[Address, ...]
    worker: tuple[Address, ...]

    def __post_init__(self) -> None:
        if not self.worker:
            raise ConfigError("the cluster has no job 'worker'.", fix="name at least one: --worker-hosts HOST:PORT.")
        seen: dict[Address, Task] = {}
        for task in self.tasks():
            address = self.address(task)
            if address.port and address in seen:
                raise ConfigError(
                    f"{seen[address]} and {task} have the same address {address}.",
                    fix="give each task a port of its own.",
                )
            seen[address] = task

    @classmethod
    def of(cls, jobs: Mapping[str, Iterable[str]]) -> ClusterSpec:
        """A cluster from host lists as users write them. Raises ConfigError naming the first bad entry."""
        for job in jobs:
            if job not in JOBS:
                raise _unknown_job(job)
        parsed = {
            job: tuple(address(text, Task(job, index)) for index, text in enumerate(jobs.get(job, ()))) for job in JOBS
        }
        return cls(parsed["ps"], parsed["worker"])

    def tasks(self) -> list[Task]:
        return [Task(job, index) for job in JOBS for index in range(len(getattr(self, job)))]

    def address(self, task: Task) -> Address:
        found: Address = getattr(self, task.job)[task.index]
        return found

    def task(self, job: str, index: object) -> Task:
        """One of its tasks, checked. Raises ConfigError for an unknown job or an index out of range."""
        if job not in JOBS:
            raise _unknown_job(str(job))
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise ConfigError(f"the task index must be an integer >= 0, got {index!r}.")
        count = len(getattr(self, job))
        if index >= count:
            has = f"{count} {job} tasks (0..{count - 1})" if count else f"no {job} tasks"
            fix = "check --task-index, or what TF_CONFIG says."
            raise ConfigError(f"{job} index {index}, but the cluster has {has}.", fix=fix)
        return Task(job, index)

    @property
    def fingerprint(self) -> str:
        """Equal on all tasks that were told the same cluster."""
        text = ";".join(f"{task}={self.address(task)}" for task in self.tasks())
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def address(text: str, task: Task) -> Address:
    """ "host:port" or "[v6]:port" of one task; blanks around it do not count.

    Raises:
        ConfigError: no host, or a port that is none.
    """
    scheme, slashes, rest = text.strip().partition("://")
    if slashes:
        raise ConfigError(
            f"address {text!r} of {task} begins with {scheme}://.",
            why="tasks speak a protocol of their own, whatever a cluster spoke before.",
            fix=f"write {rest.rstrip('/') or 'HOST:PORT'}.",
        )
    host, colon, port = text.strip().rpartition(":")
    host = host.strip("[]")
    if not colon or not host:
        raise ConfigError(f"address {text!r} of {task} has no port.", fix="write HOST:PORT.")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"address {text!r} of {task}: the port must be 1..65535, or 0 to find one.")
    return Address(host, int(port))


def _unknown_job(job: str) -> ConfigError:
    near = difflib.get_close_matches(job, JOBS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ConfigError(f"unknown job {job!r}{hint}", fix="the jobs are ps and worker.")
