"""What an update costs each of several towers beside its model, as in `test_costs.py`; they sum in shared memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import near_towers
import pytest
import torch
from passes import Passes
from test_costs import COUNTED, WARM, WIDTH, each, net, plain_loop

from evener.data.dataset import Data, Tensors
from evener.recipes.recipe import Recipe

SIZE = 4 * WIDTH  # bytes of the model


@dataclass
class Cost:
    """One tower's, of one update: what is more than a plain loop takes."""

    passes: dict[str, int]
    moved: tuple[float, float]  # sizes of the model read and written
    blocks: float
    meetings: float


class Counting:
    """Passes of each tower, which take their steps within one another's."""

    def __init__(self, count: int) -> None:
        self.passes = [Passes(WIDTH) for _ in range(count)]

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        mine, before = self.passes[rank], self.passes[:rank]
        for passes in before:
            passes.paused = True
        with mine:
            yield
        for passes in before[-1:]:
            passes.paused = False


def of_towers(directory, count, *, apart):
    inputs, labels = torch.randn(10, WIDTH // 16), torch.arange(10)
    recipe = Recipe(
        model=net, data=lambda: Data(Tensors(inputs, labels)), name="net",
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip
    sessions = near_towers.towers(recipe, directory, count, apart=apart, batch_size=10, train_steps=99)
    bells, counting = [session.exchange._group._bell for session in sessions], Counting(count)
    for number in range(WARM + COUNTED):
        if number == WARM:
            before = [bell._meetings for bell in bells]
        near_towers.step(sessions, counting if number >= WARM else Counting(count))
    met = [(bell._meetings - meetings) / COUNTED for bell, meetings in zip(bells, before, strict=True)]
    near_towers.close(sessions)
    plain = plain_loop(inputs, labels)
    return [_cost(passes, *plain, meetings) for passes, meetings in zip(counting.passes, met, strict=True)]


def _cost(found, passes, read, written, blocks, meetings) -> Cost:
    more = Counter(each(found.seen))
    more.subtract(passes)
    moved = (found.read // COUNTED - read) / SIZE, (found.written // COUNTED - written) / SIZE
    return Cost({name: n for name, n in more.items() if n}, moved, found.blocks / COUNTED - blocks, meetings)


def near(read: int, written: int):
    """So many sizes of the model, but for the few numbers that travel before it."""
    return pytest.approx((read, written), abs=0.01)


@pytest.mark.parametrize("count", [2, 3])
def test_a_tower_meets_the_others_once_and_copies_its_gradients_once_to_where_they_read_them(count, tmp_path):
    """It brings its gradients together, gives them, adds up what all gave, and looks at the mean and at the outcome."""
    brings = {"_foreach_copy_": 1}
    sums = {"memmove": 1, "add": 1, "div_": 1} | ({"add_": count - 2} if count > 2 else {})

    costs = of_towers(tmp_path, count, apart=True)

    assert costs == [Cost(brings | sums | {"sum": 2}, near(3 + 2 * count, 2 + count), blocks=0, meetings=1)] * count


def test_large_layers_go_where_they_travel_from_as_they_are_made_and_are_looked_at_there(tmp_path, monkeypatch):
    """No layer is there twice, but for the one that is made now."""
    monkeypatch.setattr("evener.worker.compute.towers.LARGE", SIZE)

    costs = of_towers(tmp_path, 2, apart=False)

    passes = {"copy_": 1, "memmove": 1, "add": 1, "div_": 1, "sum": 3}
    assert costs == [Cost(passes, near(8, 4), blocks=0, meetings=1)] * 2
