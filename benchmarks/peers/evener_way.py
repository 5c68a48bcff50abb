"""evener, as a user would have it: `evener.run` of a recipe that trains the same network as the peers, plain SGD.

As launcher it starts all tasks (`--mode alone`, `towers`, or a mode of ps tasks); as ps or worker it is one task of a
cluster of several hosts, as `evener task`. More options may stand beside the mode: `--mode "async in_flight=2"`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from job import told

import evener
from evener.cluster.environment import Flags, find
from evener.modes import OPTIONS, mode_of
from evener.settings import Settings

RECIPE = f"{Path(__file__).parent / 'evener_recipe.py'}:recipe"
ENDLESS = 10**9  # steps: the driver ends it


def main() -> None:
    job = told()
    first = job.index if job.role == "launcher" else 0  # several runs at once count beside each other
    options = {"model": job.model, "hidden": job.hidden, "data": job.data, "meter": job.meter, "index": first}
    logdir = tempfile.mkdtemp(dir=Path(job.meter).parent)
    common: dict[str, Any] = {"train_steps": ENDLESS, "logdir": logdir, "save_checkpoint_secs": None}
    mode, *words = job.mode.split()
    more: dict[str, Any] = {name: int(value) if value.isdecimal() else value for name, value in
                            (word.split("=") for word in words)}  # fmt: skip
    if job.role == "launcher":
        if mode == "towers":
            common["towers"] = len(job.workers)
        elif mode != "alone":
            common |= {"mode": mode, "ps": len(job.ps), "workers": len(job.workers), **more}
        evener.run(RECIPE, recipe_options=options, quiet=True, **common)
        return
    from evener.task.member import options_in, run_member  # PyTorch, which a launcher does not need

    hosts = {"ps_hosts": ",".join(job.ps), "worker_hosts": ",".join(job.workers)}
    found = find(Flags(job_name=job.role, task_index=job.index, **hosts))
    common |= {
        "recipe": RECIPE,
        "recipe_options": options,
        "mode": mode_of(mode, {name: more.pop(name) for name in list(more) if name in OPTIONS}),
        **more,
    }
    settings = Settings(**options_in(found.cluster, common), keys=job.keys, insecure=not job.keys)
    run_member(found, settings, lambda report: None)


if __name__ == "__main__":
    main()
