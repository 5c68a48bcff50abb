"""Whose are the settings of an optimizer: what a program says of them, and what its steps change, as Prodigy's do."""

import math

import pytest
import torch
from loops_in_one_process import (
    BATCH,
    BATCHES,
    EXACT,
    IN_LOCKSTEP,
    audited,
    good,
    plain,
    replicas,
    run,
)
from test_every_loop_goes_on import Scheduled
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from evener.loop.said import Said, sayable


class Counting(SGD):
    """Steps that become shorter, by a number that it keeps in its groups; and a limit that there is not."""

    elementwise = True

    def __init__(self, params, lr, limit=math.inf):
        super().__init__(params, lr)
        self.param_groups[0].update(k=0, limit=limit)

    def step(self, closure=None):
        group = self.param_groups[0]
        group["k"] += 1
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.data.sub_(parameter.grad, alpha=min(group["limit"], group["lr"] / group["k"]))


class Counts(Scheduled):
    def make(self):
        torch.manual_seed(1)
        model = nn.Linear(3, 1).double()
        optimizer = Counting(model.parameters(), lr=0.5)
        return [model, optimizer, self.loader(), LambdaLR(optimizer, lambda step: 0.9**step)]


@pytest.mark.parametrize("way", [*EXACT, *IN_LOCKSTEP])
@pytest.mark.parametrize("at", [0, 4])
def test_what_an_optimizer_counts_in_its_groups_goes_on_whatever_a_schedule_says_there(way, at, tmp_path):
    before = run(way, Counts(True, at), tmp_path) if at else None
    ran = good(run(way, Counts(True), tmp_path, before=before))
    many = replicas(way)
    expected = plain(Counts(True, batches=BATCHES // many, batch=many * BATCH), tmp_path)
    for found, value in zip(ran.values(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)
    assert audited(tmp_path).unapplied == ()


def test_a_program_says_what_its_optimizer_was_made_with():
    assert {"lr", "betas", "weight_decay", "initial_lr"} <= sayable(AdamW([torch.zeros(1)]))
    assert "limit" in sayable(Counting([torch.zeros(1)], 0.1)) and "k" not in sayable(Counting([torch.zeros(1)], 0.1))


def test_and_whatever_else_it_has_changed_but_no_limit_that_there_is_not():
    optimizer = Counting([torch.zeros(1)], lr=torch.tensor(0.5))
    said = Said([optimizer])
    (first,) = said.now()
    assert first["lr"] == 0.5 and not {"k", "limit", "params"} & first.keys()
    optimizer.param_groups[0].update(k=7, limit=3.0)
    optimizer.param_groups[0]["lr"].fill_(0.25)
    assert {key: said.now()[0][key] for key in ("lr", "k", "limit")} == {"lr": 0.25, "k": 7, "limit": 3.0}
    optimizer.param_groups[0].update(k=0)
    assert said.now()[0]["k"] == 0, "it is the program's from then on"
