"""Optimizers that show averages in the model between `eval` and `train`, as those of schedulefree do."""

import pytest
import torch
from loops_in_one_process import KEPT, RUN, Program, audited, good, plain, run
from torch.optim import SGD

from evener.loop import loop as loops
from evener.loop.loop import Loop
from evener.report import Line
from evener.settings import Settings
from evener.task.script import Joining, Over


class Averaged(SGD):
    """Of the first and the newest values, in the middle."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.param_groups[0].update(train_mode=False)

    def _move(self, train_mode, weight):
        (group,) = self.param_groups
        for p in group["params"] if group["train_mode"] != train_mode else ():
            if "first" in self.state[p]:
                p.data.lerp_(self.state[p]["first"], weight)
        group["train_mode"] = train_mode

    def eval(self):
        self._move(False, 0.5)

    def train(self):
        self._move(True, -1.0)

    def step(self, closure=None):
        assert self.param_groups[0]["train_mode"], "not in training"
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("first", p.detach().clone())
        return super().step(closure)


class Shows(Program):
    def make(self):
        model, _, loader = super().make()
        return [model, Averaged(model.parameters(), lr=0.1), loader]

    def loop(self, ev, model, optimizer, loader):
        for _ in range(self.epochs):
            optimizer.train()
            for batch in loader:
                self.step(model, optimizer, batch)
            trained = [p.detach().clone() for p in model.parameters()]
            optimizer.eval()
        return trained


@pytest.mark.parametrize("way", [way for way in KEPT if "2 ps" not in way])
def test_it_trains_the_same_and_where_nothing_can_be_shown_that_is_told_once(way, tmp_path):
    ran = good(run(way, Shows(), tmp_path))
    told = [line.text for line in ran.reported(Line) if "Averaged.eval() changes nothing here" in line.text]
    assert len(told) == (len(ran.ends) if "ps" in way else 0)
    assert audited(tmp_path).unapplied == ()
    if way in ("alone, kept", "launched"):
        assert all(map(torch.equal, ran.values(), plain(Shows(), tmp_path)))
    if way == "1 ps, 1 worker":
        (trained,) = run("plain", Shows(), tmp_path).ends
        for found, value in zip(ran.values(), trained, strict=True):  # back and forth is not there to the last bit
            assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)


def test_in_a_ps_task_it_is_in_training_before_any_program_says_so(monkeypatch):
    served = []

    def serve(_joining, _parts, built):
        served.append(built.recipe.optimizer(built.model).param_groups[0]["train_mode"])
        raise Over(0)

    monkeypatch.setattr(loops, "serve", serve)
    settings = Settings(script="train.py", batch_size=1, ps=1, workers=2)
    joining = Joining(job="ps", index=0, settings=settings, report=lambda _: None, run=RUN)
    with pytest.raises(Over):
        Loop(joining).prepare(*Shows().make())
    assert served == [True]
