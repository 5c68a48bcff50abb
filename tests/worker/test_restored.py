"""Towers go on from the checkpoint of one of them, and never have it in memory twice."""

import torch
from torch import nn
from training import assert_equal, manifest_for, recipe_of, shards_of, train

from evener.state.contents import Contents
from evener.worker.allreduce import restored
from evener.worker.allreduce.restored import share_restored


class Tells:
    """Tower 0 of a group."""

    rank, size = 0, 2

    def __init__(self):
        self.told = []

    def share(self, data):
        self.told.append(data)
        return data


class Hears:
    """Another tower of it."""

    rank, size = 1, 2

    def __init__(self, told):
        self.told = list(told)

    def share(self, data):
        assert data == b""
        return self.told.pop(0)


def checkpoint():
    recipe = recipe_of(
        lambda model: torch.optim.Adam(model.parameters()), lambda: nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 7)),
        ema_decay=0.9,
    )  # fmt: skip
    states = shards_of(recipe)
    train(states, 3)
    contents = states[0].contents()
    return manifest_for(states, [contents], files={}), contents


def test_every_tower_has_the_same_checkpoint_bit_for_bit(monkeypatch):
    monkeypatch.setattr(restored, "_TOGETHER", 2000)
    manifest, contents = checkpoint()
    first = Tells()
    assert share_restored(first, (manifest, contents)) == (manifest, contents)
    other = Hears(first.told)
    theirs, found = share_restored(other, None)

    assert (theirs, found.step, found.values) == (manifest, contents.step, contents.values)
    for kind in ("parameters", "averages", "optimizer"):
        assert getattr(found, kind)
        assert_equal(getattr(found, kind), getattr(contents, kind))
    assert other.told == []


def test_what_travels_at_once_is_no_more_than_its_largest_tensor_or_so_many_bytes(monkeypatch):
    monkeypatch.setattr(restored, "_TOGETHER", 2000)
    first = Tells()
    share_restored(first, checkpoint())

    largest = 50 * 40 * 4
    assert largest < max(map(len, first.told[1:])) < largest + 500
    assert sum(len(told) > 3000 for told in first.told[1:]) == 4  # that weight, its average and what Adam keeps of it


def test_towers_that_begin_share_nothing():
    first = Tells()

    assert share_restored(first, None) is None
    assert share_restored(Hears(first.told), None) is None


def test_a_tensor_without_numbers_travels_too_also_as_the_first():
    contents = Contents(3, {"mask": torch.empty(0), "weight": torch.ones(3)}, {}, {}, {})
    first = Tells()
    manifest = checkpoint()[0]
    share_restored(first, (manifest, contents))
    _, found = share_restored(Hears(first.told), None)
    assert_equal(found.parameters, contents.parameters)
