"""Time and disks of a test: nothing passes, and nothing is written, until the test says so."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Disk:
    """Takes the place of the savers' threads: a job is done at once, or, while `held`, when `work` is called."""

    def __init__(self) -> None:
        self.held = False
        self.jobs: list[tuple[Future[Any], Callable[..., Any], tuple[object, ...]]] = []

    def __call__(self, workers: int, thread_name_prefix: str = "") -> Disk:
        return self

    def submit(self, job: Callable[..., Any], *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((future, job, arguments))
        if not self.held:
            self.work()
        return future

    def work(self) -> None:
        jobs, self.jobs = self.jobs, []
        for future, job, arguments in jobs:
            try:
                future.set_result(job(*arguments))
            except Exception as error:
                future.set_exception(error)

    def shutdown(self, wait: bool = True) -> None:
        self.work()
