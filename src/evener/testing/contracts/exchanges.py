"""What every exchange promises, whoever owns the parameters: see `Exchange` in worker/exchange/exchange.py.

One worker, whose gradients the contract writes down by hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evener.data.dataset import Data, Tensors
from evener.errors import NonFinite
from evener.recipes.recipe import Recipe
from evener.state.checkpoint import Store
from evener.worker.exchange.exchange import Computed, Exchange, Turn

#: Of the optimizer: each step makes p of p - g - DECAY * p, where there is a gradient g.
DECAY = 0.5


class Two(nn.Module):
    """Two parameters of eight ones, float64."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(8, dtype=torch.float64))
        self.other = nn.Parameter(torch.ones(8, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.one.sum() * self.other.sum()


def recipe() -> Recipe:
    """40 samples; the next parameters can be worked out in one's head."""
    data = Data(Tensors(torch.arange(40.0), torch.zeros(40)))
    return Recipe(
        model=Two, data=lambda: data, loss=lambda output, target: output.mean(), metrics={}, ema_decay=0.5,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=DECAY), name="two",
    )  # fmt: skip


@dataclass
class Bench:
    """An exchange that was not started, and what lies on both its sides."""

    exchange: Exchange
    model: nn.Module
    gradients: Mapping[str, Tensor]  # where the exchange finds them, by the names of the model's parameters

    def parameters(self) -> dict[str, list[float]]:
        return {name: tensor.detach().tolist() for name, tensor in self.model.named_parameters()}

    def update(self, value: float, *, other: float | None = None, unused: Collection[str] = ()) -> Turn:
        """Give a gradient that is this number everywhere, or another for `other`; but for those that have none."""
        for name, parameter in self.model.named_parameters():
            number = other if name == "other" and other is not None else value
            parameter.grad = None if name in unused else torch.full_like(parameter, number)
            self.gradients[name].fill_(0.0 if name in unused else number)
        return self.exchange.update(Computed(loss=0.5, examples=10, seconds=0.1, unused=unused))

    def refused(self, value: float) -> str:
        """The same with a gradient that must not be applied because of `other`; what is told of it.

        Who owns the parameters alone fails with it. With others it is a turn: the run has failed for all of them.
        """
        try:
            turn = self.update(1.0, other=value)
        except NonFinite as error:
            return error.what
        assert turn.failed and turn.lease == -1
        return turn.stop


def eight(one: float, other: float) -> dict[str, list[float]]:
    return {"one": [one] * 8, "other": [other] * 8}


class ExchangeContract:
    """Who inherits overrides `made`, and `batches` where a gradient is of several."""

    batches = 1  # of a gradient

    def made(self, directory: Path, **options: object) -> AbstractContextManager[Bench]:
        """An exchange of `recipe()` for one worker, with these `Settings`, that saves into this directory.

        When the context ends, so does all that belongs to it; a run that has ended is saved by then.
        """
        raise NotImplementedError

    # --- turns

    def test_the_first_turn_brings_the_first_parameters_and_a_batch(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=3) as bench:
            turn = bench.exchange.start()

            assert (turn.version, turn.batches, turn.stop) == (0, list(range(self.batches)), "")
            assert (turn.rejected, turn.staleness, turn.dropped, turn.learning_rate) == ("", 0, 0, 1.0)
            assert turn.chief
            assert bench.parameters() == eight(1.0, 1.0)

    def test_an_update_is_in_the_model_when_the_next_turn_comes(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=9) as bench:
            bench.exchange.start()

            turn = bench.update(0.25)
            assert (turn.version, turn.rejected, bench.parameters()) == (1, "", eight(0.25, 0.25))
            turn = bench.update(-1.0)
            assert (turn.version, turn.rejected, bench.parameters()) == (2, "", eight(1.125, 1.125))

    def test_each_batch_comes_once_and_in_order_and_those_that_were_announced_come(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=6) as bench:
            turns = [bench.exchange.start()]
            while not turns[-1].stop:
                turns.append(bench.update(0.0))
            came = [lease for turn in turns[:-1] for lease in turn.batches]

            assert came == list(range(6 * self.batches))
            for number, turn in enumerate(turns[:-1]):
                after = came[(number + 1) * self.batches :]
                assert list(turn.ahead) == after[: len(turn.ahead)]

    def test_the_last_turn_says_why_and_has_no_batch(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=2) as bench:
            bench.exchange.start()
            assert bench.update(1.0).stop == ""
            last = bench.update(1.0)

            assert (last.version, last.lease, last.stop) == (2, -1, "reached step 2")
            assert last.chief and not last.failed

    def test_nothing_comes_unasked_while_nothing_breaks(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=9) as bench:
            bench.exchange.start()
            bench.update(1.0)

            assert bench.exchange.returned() is None

    # --- gradients

    def test_a_parameter_without_a_gradient_is_left_alone(self, tmp_path: Path) -> None:
        """A gradient of zero is something else: weight decay moves its parameter."""
        with self.made(tmp_path, train_steps=9) as bench:
            bench.exchange.start()
            bench.update(0.0, unused=["other"])

            assert bench.parameters() == eight(0.5, 1.0)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_gradient_that_is_not_finite_is_refused_and_applied_to_nothing(
        self, tmp_path: Path, value: float
    ) -> None:
        with self.made(tmp_path, train_steps=9) as bench:
            bench.exchange.start()
            bench.update(0.25)

            assert re.search("'other'.* is not finite", bench.refused(value))
            assert bench.parameters() == eight(0.25, 0.25)

    # --- what it shows

    def test_what_it_shows_is_in_the_model_until_the_parameters_are_asked_for_again(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=9) as bench:
            bench.exchange.start()
            bench.update(0.25)
            bench.update(-1.0)
            shown = {}
            for what in ("averages", "gradients", "parameters", "parameters"):
                version = bench.exchange.show(what)
                shown[what] = version, bench.parameters()

            assert shown["parameters"] == (2, eight(1.125, 1.125))
            assert shown["gradients"] == (2, eight(-1.0, -1.0))
            version, averages = shown["averages"]
            assert version == 2 and averages["one"] == averages["other"]
            assert all(0.25 <= number < 1.125 for number in averages["one"])
            assert bench.update(0.0).version == bench.exchange.show("parameters") == 3
            assert bench.parameters() == eight(0.5625, 0.5625)

    def test_arrivals_count_what_others_have_filled_in_and_are_0_where_nobody_does(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=9) as bench:
            counts = [bench.exchange.arrivals]
            bench.exchange.start()
            counts.append(bench.exchange.arrivals)
            bench.update(1.0)
            counts.append(bench.exchange.arrivals)
            bench.exchange.show("parameters")
            counts.append(bench.exchange.arrivals)

            assert counts == [0, 0, 0, 0] or counts == sorted(set(counts))

    # --- the end

    @pytest.mark.parametrize("complete", [True, False])
    def test_a_run_that_is_asked_to_stop_does_and_evaluates_unless_it_was_cut_short(
        self, tmp_path: Path, complete: bool
    ) -> None:
        with self.made(tmp_path, train_steps=9) as bench:
            bench.exchange.start()
            bench.update(1.0)
            last = bench.exchange.stop("enough", complete=complete) or bench.update(1.0)

            assert last.stop == "enough" and last.lease == -1
            assert (last.chief, last.failed) == (complete, False)

    def test_what_was_reached_is_saved(self, tmp_path: Path) -> None:
        with self.made(tmp_path, train_steps=2) as bench:
            bench.exchange.start()
            while not bench.update(1.0).stop:
                pass
            bench.exchange.conclude()
            bench.exchange.close()
        restored = Store(tmp_path / "checkpoints", writable=False).newest()

        assert restored is not None and restored[0].step == 2
