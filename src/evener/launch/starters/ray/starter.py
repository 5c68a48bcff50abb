"""Starts the tasks of a run on a Ray cluster, each life in an actor of its own."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from evener.cluster.cluster import Task
from evener.control.control import Assignment, log_of
from evener.launch.starters.process import Running
from evener.launch.starters.ray.asked import RayAsked
from evener.launch.starters.ray.bringing import Bringing, Ground
from evener.launch.starters.ray.host import TaskHost
from evener.launch.starters.ray.introductions import Introductions
from evener.launch.starters.ray.life import RayTask
from evener.launch.starters.ray.metrics import Metrics
from evener.launch.starters.ray.nodes import draining, here
from evener.launch.starters.ray.places import Places
from evener.launch.starters.ray.told import ActorHere, Start
from evener.settings import Settings


class RayTasks:
    """Tasks on the cluster that this process is connected to.

    Args:
        settings: of the run.
        start: where the person has started it.
        leave: disconnects from the cluster.
    """

    def __init__(self, asked: RayAsked, settings: Settings, start: Start, leave: Callable[[], None]) -> None:
        self._asked, self._settings, self._start, self._leave = asked, settings, start, leave
        tasks = [Task("ps", index) for index in range(settings.ps)]
        tasks += [Task("worker", index) for index in range(settings.workers)]
        fewest = settings.min_workers or settings.workers
        self._name = Path(settings.logdir).name
        self._tasks = {str(task): task for task in tasks}
        self._places = Places(
            asked, [task for task in tasks if task.job == "ps" or task.index < fewest], self._name
        )  # fmt: skip
        self._metrics = Metrics(self._name)
        self._lock = threading.Lock()
        self._apart = ""  # a node that has not the launcher's logdir
        self._ground = Ground(
            self._actor,
            self._missing,
            self._draining,
            self._seen,
            lambda: bool(self._apart),
            Introductions(),
        )

    def reserve(self, tell: Callable[[str], None]) -> None:
        """Find room for the tasks that the run cannot begin without. Raises Unavailable."""
        (Path(self._settings.logdir) / self._start.token).touch()
        self._places.reserve(tell, self._settings.stall_timeout)

    def start(self, assignment: Assignment) -> Running:
        task = f"{assignment.job}:{assignment.index}"
        running = RayTask(task, str(log_of(assignment)), _kill, self._metrics.hear)
        running.begin(Bringing(running, assignment, self._ground))
        return running

    # --- for the lives, which are threads

    def _actor(self, task: str) -> Any:
        """A new one. It comes to stand when Ray has room for it."""
        needs = self._asked.needs(self._tasks[task].job)
        with self._lock:
            place = self._places.of(self._tasks[task])
        options = {
            "name": f"evener {task} {self._name} {secrets.token_hex(2)}",
            "num_cpus": needs.pop("CPU"), "num_gpus": needs.pop("GPU", 0.0), "resources": needs,
            "scheduling_strategy": place, "max_restarts": 0,
        }  # fmt: skip
        return ray.remote(TaskHost).options(**options).remote(task, self._start, here, draining)

    def _missing(self, task: str) -> str:
        return self._places.missing([self._tasks[task]])

    def _draining(self, task: str) -> None:
        with self._lock:
            self._places.leave(self._tasks[task])

    def _seen(self, where: ActorHere) -> str:
        with self._lock:
            if where.shares or self._apart:
                return ""
            self._apart = where.host
        return (
            f"{where.host} does not see the logdir {self._settings.logdir}: a ps task that is lost with its node ends "
            "the run; give a --logdir that all nodes share"
        )

    def close(self) -> None:
        """The run is over: nothing of it stays on the cluster."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            self._places.close()
        with contextlib.suppress(OSError):
            (Path(self._settings.logdir) / self._start.token).unlink(missing_ok=True)
        self._leave()


def _kill(actor: Any, stands: bool) -> None:
    with contextlib.suppress(Exception):  # it is gone already, or this process is no longer connected
        actor.end.remote() if stands else ray.kill(actor, no_restart=True)
