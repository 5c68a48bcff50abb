"""The Ray launcher keeps the contract of starters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evener.commands.on_ray import OnRay
from evener.launch.starters.ray.asked import RayAsked
from evener.settings import Settings
from evener.testing.contracts.starters import StarterContract

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("RAY"), reason="all runs on a Ray cluster: make test-ray"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]


class TestOnRay(StarterContract):
    @pytest.fixture
    def starter(self, cluster: Any, place: Path) -> Iterator[Any]:
        settings = Settings(recipe="errand_0:recipe", ps=1, workers=1, logdir=str(place / "run"))
        ray = OnRay(
            RayAsked(ray_address=cluster.address, resources_per_ps={"CPU": 0.5}, resources_per_worker={"CPU": 0.5})
        )
        (place / "run").mkdir()
        starter = ray.starter(ray.settings(settings), place, lambda line: None)
        yield starter
        starter.close()

    @pytest.fixture
    def broken(self, starter: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Ray makes no actor."""

        def fails(task: str) -> Any:
            raise RuntimeError("no more actors")

        monkeypatch.setattr(starter, "_ground", starter._ground.__class__(fails, *list(vars_of(starter._ground))[1:]))
        return starter


def vars_of(ground: Any) -> list[Any]:
    return [getattr(ground, name) for name in ground.__dataclass_fields__]
