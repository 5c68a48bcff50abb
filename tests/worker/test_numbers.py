"""Numbers at the edge of a dtype: means are means, what is not finite is named, and nothing of it is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from ways import EVERY_WAY, WAYS, recipe_of, run, went_well

from evener.errors import NonFinite, TaskFailed
from evener.state.checkpoint import Store

TWO = pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way][1] == 2])
ONE = pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way][1] == 1])


class Steep(nn.Module):
    """A row of zeros whose gradient is the same number everywhere, until `then` takes its place at the third batch."""

    def __init__(self, slope: float, dtype: torch.dtype = torch.float32, then: float | None = None) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(40, dtype=dtype))
        self.register_buffer("calls", torch.tensor(0))
        self.slopes = slope, slope if then is None else then

    def forward(self, x):
        if self.training:
            self.calls += 1
        return _Sloped.apply(self.row, self.slopes[int(self.calls) > 2])


class _Sloped(torch.autograd.Function):
    """The loss 1, with a gradient that no multiplication has rounded."""

    @staticmethod
    def forward(ctx, row, slope):
        ctx.made, ctx.slope = row, slope
        return torch.ones((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(ctx.made, ctx.slope), None


def steep(*, lr, optimizer=torch.optim.SGD, **how):
    return recipe_of(
        lambda: Steep(**how), loss=lambda output, target: output, metrics={},
        optimizer=lambda model: optimizer(model.parameters(), lr=lr),
    )  # fmt: skip


def saved(directory):
    """The step of the newest checkpoint, and whether all in it is finite; None if there is none."""
    store = Store(directory / "checkpoints", writable=False)
    found = store.newest()
    store.close()
    if found is None:
        return None
    tensors = [*found[1].parameters.values(), *found[1].optimizer.values()]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    return found[0].step


@EVERY_WAY
def test_float16_gradients_of_40000_have_the_mean_40000(way, tmp_path):
    """Their sum is no float16."""
    recipe = steep(slope=40_000.0, dtype=torch.float16, lr=2.0**-10)
    ran = went_well(run(way, recipe, tmp_path, train_steps=1))
    assert set(ran.parameters["row"].tolist()) == {-39.0625}


@EVERY_WAY
def test_and_may_be_clipped_though_their_squares_are_none(way, tmp_path):
    recipe = steep(slope=40_000.0, dtype=torch.float16, lr=1.0)
    ran = went_well(run(way, recipe, tmp_path, train_steps=1, clip_norm=1.0))
    torch.testing.assert_close(ran.parameters["row"].float(), torch.full((40,), -(40**-0.5)), rtol=1e-3, atol=0)


@TWO
def test_a_mean_that_is_too_large_is_named_as_that_and_blames_no_gradient(way, tmp_path):
    ran = run(way, steep(slope=3e38, lr=1e-3), tmp_path, save_checkpoint_steps=1)

    assert isinstance(ran.error, NonFinite), ran.error
    assert "the mean of the gradients of" in str(ran.error)
    assert "though each of them is" in str(ran.error)
    assert saved(tmp_path) is None
    assert not ran.parameters["row"].any(), "nothing was applied"


@EVERY_WAY
def test_a_gradient_that_is_not_finite_is_named_with_its_parameter(way, tmp_path):
    ran = run(way, steep(slope=float("nan"), lr=1e-3), tmp_path, save_checkpoint_steps=1)

    assert isinstance(ran.error, NonFinite | TaskFailed), ran.error  # the ps says why, its workers that it did
    assert "'row" in str(ran.error), "or the part of it that a shard holds"
    assert "gradient" in str(ran.error)
    assert saved(tmp_path) in (None, 0), "nothing of it"
    assert not ran.parameters["row"].any()


@EVERY_WAY
def test_an_update_that_makes_parameters_infinite_is_named_and_blames_no_gradient(way, tmp_path):
    """The first two updates are good; with several shards, the second is saved if the first has been by then."""
    ran = run(way, steep(slope=1.0, then=1e30, lr=1e10), tmp_path, save_checkpoint_steps=1)

    assert isinstance(ran.error, NonFinite), ran.error
    assert "the update to global step 3 has made 'row" in str(ran.error)
    assert "though its gradient was finite" in str(ran.error)
    assert "of the gradients" not in str(ran.error)
    assert saved(tmp_path) in ({1, 2} if way.startswith("3 ps") else {2})


@ONE
def test_the_learning_rate_that_is_told_is_that_of_the_update(way, tmp_path):
    ran = run(way, steep(slope=1.0, then=1e30, lr=1e10), tmp_path)
    assert "learning rate 1e+10" in str(ran.error)
