"""evener, as a user would have it: `evener.run` of a recipe that trains the same network as the peers, plain SGD.

As launcher it starts all tasks (`--mode alone`, `towers`, or a mode of ps tasks); as ps or worker it is one task of a
cluster of several hosts, as `evener task`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import work
from job import Job, Meter, told
from torch import Tensor

import evener
from evener.cluster.environment import Flags, find
from evener.modes import mode_of
from evener.session.hooks import StepResult
from evener.settings import Settings
from evener.task.member import options_in, run_member

HERE = Path(__file__).parent
ENDLESS = 10**9  # steps: the driver ends it


class Count(evener.Hook):
    """Counts this worker's steps where the peers count theirs."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def begin(self, session: Any) -> None:
        self.meter = Meter(self.job.meter, self.job.index + int(session.task.partition(":")[2]))

    def after_step(self, session: Any, result: StepResult) -> None:
        self.meter.count(result.loss)


def recipe(*, model: str, hidden: int, data: str, meter: str, index: int) -> evener.Recipe:
    job = Job(
        role="worker", index=index, ps=(), workers=(), mode="", model=model, hidden=hidden, data=data, meter=meter,
        keys="",
    )  # fmt: skip

    def both() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        inputs, target = work.samples(job)
        return (inputs, target), (inputs[:100], target[:100])

    return evener.Recipe(
        model=lambda: work.model(job), data=both, optimizer=lambda made: work.optimizer(job, made.parameters()),
        hooks=lambda: [Count(job)],
    )  # fmt: skip


def main() -> None:
    job = told()
    first = job.index if job.role == "launcher" else 0  # several runs at once count beside each other
    options = {"model": job.model, "hidden": job.hidden, "data": job.data, "meter": job.meter, "index": first}
    logdir = tempfile.mkdtemp(dir=Path(job.meter).parent)
    common: dict[str, Any] = {"train_steps": ENDLESS, "logdir": logdir, "save_checkpoint_secs": None}
    if job.role == "launcher":
        if job.mode == "towers":
            common["towers"] = len(job.workers)
        elif job.mode != "alone":
            common |= {"mode": job.mode, "ps": len(job.ps), "workers": len(job.workers)}
        evener.run(f"{HERE / 'evener_way.py'}:recipe", recipe_options=options, quiet=True, **common)
        return
    hosts = {"ps_hosts": ",".join(job.ps), "worker_hosts": ",".join(job.workers)}
    found = find(Flags(job_name=job.role, task_index=job.index, **hosts))
    common |= {"recipe": f"{HERE / 'evener_way.py'}:recipe", "recipe_options": options, "mode": mode_of(job.mode, {})}
    settings = Settings(**options_in(found.cluster, common), keys=job.keys, insecure=not job.keys)
    run_member(found, settings, lambda report: None)


if __name__ == "__main__":
    main()
