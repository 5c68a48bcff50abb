"""Real tasks ask the kernel for no more, update by update, than the parts that `worker/test_system_calls.py` counts.

Hooks, the loop of a ps task and the words to the launcher are there too. Some of that is done by the clock, so what is
allowed grows with the seconds that the counted updates took: a loaded machine fails nothing, a quiet one sees one call
more in each update.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from running import evener

pytestmark = pytest.mark.slow

WARM, COUNTED = 50, 400
#: Calls in a second: ticks of a ps task, figures of a worker, who is silent.
BY_THE_CLOCK = 80

RECIPE = """
import json, os, sys, time
from pathlib import Path

import torch
from torch import nn

sys.path.append({worker!r})
from kernel_calls import KernelCalls

from evener.recipes.recipe import Recipe


class Counting:
    kind, number = "", 0

    def __call__(self, kind):
        self.kind = self.kind or kind
        if kind != self.kind:
            return
        self.number += 1
        if self.number == {warm}:
            self.calls, self.since = KernelCalls(), time.monotonic()
            self.calls.__enter__()
        if self.number == {warm} + {counted}:
            self.calls.__exit__()
            found = dict(seconds=time.monotonic() - self.since, calls=self.calls.seen)
            Path({place!r}, f"{{kind}}-{{os.getpid()}}.json").write_text(json.dumps(found))


counting = Counting()  # of this process


class Net(nn.Linear):
    def forward(self, inputs):
        counting("computes")
        return super().forward(inputs)


class Descent(torch.optim.SGD):
    elementwise = True

    def step(self, closure=None):
        counting("updates")
        return super().step(closure)


def data():
    inputs = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    return (inputs, (inputs.sum(1) > 0).long()), (inputs[:20], (inputs[:20].sum(1) > 0).long())


recipe = Recipe(model=lambda: Net(8, 2), data=data, optimizer=lambda model: Descent(model.parameters(), lr=0.1))
"""

ONE = ["--ps", "1", "--workers", "1"]
#: name -> options, calls of each task that computes, of each that updates alone, and how many of these there are
WAYS = {
    "one process": ([], 1, 0, (1, 0)),
    "shared memory": (ONE, 3, 5, (1, 1)),
    "tcp": ([*ONE, "--transport", "tcp", "--insecure"], 6, 7, (1, 1)),
    "tcp with keys": ([*ONE, "--transport", "tcp", "--keys", "keys"], 6, 7, (1, 1)),
    "sync": (["--ps", "1", "--workers", "2", "--mode", "sync"], 3, 9, (2, 1)),
    "towers": (["--towers", "2"], 4, 0, (2, 0)),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_task_asks_the_kernel_for_more_in_each_update(way, tmp_path):
    options, computes, updates, tasks = WAYS[way]
    worker = str(Path(__file__).parents[1] / "worker")
    found = tmp_path / "found"
    found.mkdir()
    text = RECIPE.format(worker=worker, place=str(found), warm=WARM, counted=COUNTED)
    (tmp_path / "counted.py").write_text(text)
    if "--keys" in options:
        evener(tmp_path, "keys", "new", "keys", "--ps", 1, "--workers", 1)

    done = evener(
        tmp_path, "train", "counted.py:recipe", *options, "--train-steps", WARM + COUNTED + 10, "--logdir", "run"
    )

    assert done.code == 0, done.text
    told = [(path.name, json.loads(path.read_text())) for path in sorted(found.iterdir())]
    assert Counter(name.partition("-")[0] for name, _ in told) == +Counter(computes=tasks[0], updates=tasks[1])
    for name, task in told:
        each = computes if name.startswith("computes") else updates
        most = each * COUNTED + BY_THE_CLOCK * task["seconds"] + COUNTED // 10
        assert sum(task["calls"].values()) < most, (name, task)
