"""The nodes of the cluster that this process is connected to."""

from __future__ import annotations

from typing import Any

import ray


def _alive() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def addresses() -> set[str]:
    """Of those that live."""
    return {node["NodeManagerAddress"] for node in _alive()}


def resources() -> tuple[int, dict[str, float], dict[str, float]]:
    """How many nodes there are, what they have together, and what of it is free."""
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return len(_alive()), has, free


def here() -> tuple[str, str]:
    """The address of the node of this actor, and Ray's name of it."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address, ray.get_runtime_context().get_node_id()


def draining(node: str) -> bool:
    """Whether it is to go away: Ray was told so by an autoscaler, by a notice of preemption, or by `ray drain-node`."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray Serve asks so too; there is no public way

    return node in GcsClient(address=ray.get_runtime_context().gcs_address).get_draining_nodes()
