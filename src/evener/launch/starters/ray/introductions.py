"""Who of a run stands on the cluster, and by which keys they know each other."""

from __future__ import annotations

import threading
from typing import Any

import ray

#: Seconds that others have to learn a new key. One who takes longer is about to be found dead.
LEARN = 10.0


class Introductions:
    """Public keys of all tasks, and the actors that have to know them. Its methods are called by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._certificates: dict[str, str] = {}
        self._standing: dict[str, Any] = {}

    def introduce(self, task: str, actor: Any, certificate: str) -> None:
        """Let this actor and all others know each other: before its task begins, so that it is no stranger to any."""
        name = task.replace(":", "-")
        with self._lock:
            self._certificates[name] = certificate
            others = [other for known, other in self._standing.items() if known != task]
            self._standing[task] = actor
            known = dict(self._certificates)
        learning = [actor.trust.remote(known), *(other.trust.remote({name: certificate}) for other in others)]
        ray.wait(learning, num_returns=len(learning), timeout=LEARN)

    def gone(self, task: str, actor: Any) -> None:
        with self._lock:
            if self._standing.get(task) is actor:
                del self._standing[task]
