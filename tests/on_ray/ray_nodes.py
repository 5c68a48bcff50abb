"""A Ray cluster of several nodes on this machine, in a process of its own (`nodes.py`): for tests and benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class RayNodes:
    """The cluster. Its head has two CPUs; nodes have what a test gives them."""

    def __init__(self, **environment: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("nodes.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | environment,
        )  # fmt: skip
        self.address = self._answer()["address"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                found: dict[str, Any] = json.JSONDecoder().raw_decode(line.removeprefix("ANSWER "))[
                    0
                ]  # Ray may speak on
                return found
        raise AssertionError("the cluster has ended")

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def add(self, **resources: float) -> str:
        """A node that has these; returns Ray's name of it."""
        return str(self._ask(add=resources)["node"])

    def remove(self, node: str) -> None:
        """As if its machine had lost power."""
        self._ask(remove=node)

    def drain(self, node: str) -> None:
        """Tell Ray that it will be taken away in a minute."""
        assert self._ask(drain=node)["taken"]

    def actors(self) -> list[str]:
        """The names of all that live, or wait for room."""
        return list(self._ask(actors=True)["actors"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
