"""Where tasks may stand: bundles of Ray's placement groups.

Those that a run cannot do without are placed together or not at all: the ps tasks apart from each other, the workers
near each other or apart. Each further worker has a group of its own, and comes when Ray finds room for it. A bundle
whose node is lost Ray places anew by itself. One whose node is still there but is to go away it does not: its task
gets a new group, and the old bundle stays reserved until the run is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from evener.cluster.cluster import Task
from evener.errors import Unavailable
from evener.launch.starters.ray.asked import RayAsked
from evener.launch.starters.ray.nodes import resources
from evener.launch.starters.ray.room import lacking

#: Seconds until what is missing is told, and then from one time to the next.
SOON, AGAIN = 5.0, 30.0


class Places:
    """The places of one run.

    Args:
        needed: those that must be placed before any begins.
        name: of the run, for people who look at Ray's lists.
    """

    def __init__(self, asked: RayAsked, needed: list[Task], name: str) -> None:
        self._asked, self._needed, self._name = asked, needed, name
        self._groups: list[PlacementGroup] = []
        self._bundles: dict[Task, tuple[PlacementGroup, int]] = {}

    def reserve(self, tell: Callable[[str], None], patience: float) -> None:
        """Wait until there is room for those that are needed; says what is missing.

        Raises:
            Unavailable: there was none within `patience` seconds.
        """
        groups: dict[str, PlacementGroup] = {}
        for job, strategy in (("ps", "SPREAD"), ("worker", self._asked.ray_placement.upper())):
            tasks = [task for task in self._needed if task.job == job]
            groups[job] = self._group(tasks, strategy, f"evener {job} {self._name}")
            self._bundles.update({task: (groups[job], index) for index, task in enumerate(tasks)})
        deadline, told = time.monotonic() + patience, SOON
        for job, group in groups.items():
            while not group.wait(max(1.0, min(told, deadline - time.monotonic()))):
                tasks = [task for task in self._needed if task.job == job]
                missing = self.missing(tasks)
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"the Ray cluster had no room for the run within {patience:g} s.", why=f"{missing}.",
                        fix="ask for less (--workers, --resources-per-worker), or add nodes; `ray status` shows them.",
                    )  # fmt: skip
                tell(f"waits for the Ray cluster to place {len(tasks)} {job} tasks: {missing}")
                told = AGAIN

    def missing(self, tasks: list[Task]) -> str:
        """Why these are not there, in words."""
        if all(task in self._bundles and self._bundles[task][0].wait(1) for task in tasks):
            return "there is, Ray starts its process"
        return lacking([self._asked.needs(task.job) for task in tasks], *resources())

    def of(self, task: Task) -> PlacementGroupSchedulingStrategy:
        """The place of a task. If it has none, it gets one that may have to wait for room."""
        if task not in self._bundles:
            self._bundles[task] = self._group([task], "PACK", f"evener {task} {self._name}"), 0
        group, index = self._bundles[task]
        return PlacementGroupSchedulingStrategy(group, index)

    def leave(self, task: Task) -> None:
        """Its node is to go away: the next life of this task stands elsewhere."""
        group, _ = self._bundles.pop(task)
        if all(other is not group for other, _ in self._bundles.values()):
            remove_placement_group(group)

    def _group(self, tasks: list[Task], strategy: str, name: str) -> PlacementGroup:
        bundles: list[Any] = [self._asked.needs(task.job) for task in tasks]
        group: PlacementGroup = placement_group(bundles, strategy=strategy, name=name)
        self._groups.append(group)
        return group

    def close(self) -> None:
        for group in self._groups:  # also those that are gone: Ray takes no notice
            remove_placement_group(group)
        self._groups.clear()
