"""A Ray cluster whose nodes come and go as a test wants it, one for each process of the suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNodes

sys.path.insert(0, str(Path(__file__).parents[1] / "system"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayNodes]:
    nodes = RayNodes()
    yield nodes
    nodes.close()


@pytest.fixture
def nodes(cluster: RayNodes) -> Iterator[RayNodes]:
    """The cluster; what a test adds goes away with it."""
    added: list[str] = []
    add, remove = cluster.add, cluster.remove

    def adding(**resources: float) -> str:
        added.append(add(**resources))
        return added[-1]

    def removing(node: str) -> None:
        added.remove(node)
        remove(node)

    cluster.add, cluster.remove = adding, removing  # type: ignore[method-assign]
    yield cluster
    cluster.add, cluster.remove = add, remove  # type: ignore[method-assign]
    for node in added:
        remove(node)
