"""What a step costs beside its model. Counted, not timed.

Counted are messages, passes over memory as large as the parameters, bytes of it that are read and written (in sizes of
the model), and such memory made. A step that takes one more of these is slower on every machine, by how much depends
on the model. What is asked of the kernel: `test_system_calls.py`. Figures in time are in `benchmarks/`.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from passes import Passes
from torch import nn

from evener.data.dataset import Data, Tensors
from evener.recipes.recipe import Recipe
from evener.testing import Cluster, Row, one_process, row_recipe
from evener.transport.memory import MemoryListener
from evener.wire import codec
from evener.worker.exchange.exchange import Computed

WIDTH = 1 << 16
#: Updates before they are counted, since what is made once is made then; and those that are counted.
WARM, COUNTED = 3, 4


def each(found):
    """Of one update."""
    assert all(count % COUNTED == 0 for count in found.values()), found
    return {name: count // COUNTED for name, count in found.items()}


# --- servers


def advance(cluster, workers, updates):
    """Workers push in turn until there were so many updates, and all have their answers."""
    until = cluster.step + updates
    while cluster.step < until:
        for worker in workers:
            if worker.turn is not None and cluster.step < until:
                worker.push(1.0, finite=True)  # it has looked, as `Servers` do
        for worker in workers:
            if worker.turn is None:
                worker.listen()


def served(directory, monkeypatch, optimizer=torch.optim.SGD, **options):
    """Of one update: messages by their kind, passes on all shards, how often the model's size is read and written by
    them and by the answers' copies, and blocks made."""
    recipe = row_recipe(model=lambda: Row(WIDTH), optimizer=lambda model: optimizer(model.parameters(), lr=0.1))
    sent, encode = Counter(), codec.encode
    copied, answer = Counter(), MemoryListener.send

    def counted(message):
        sent[type(message).__name__] += 1
        return encode(message)

    def copying(listener, peer, header, payload=()):
        copied["nbytes"] += sum(part.nbytes for part in payload)
        answer(listener, peer, header, payload)

    with Cluster(recipe, directory, train_steps=100, batch_size=10, **options) as cluster:
        workers = cluster.started(*range(cluster.settings.workers))
        advance(cluster, workers, WARM)
        with monkeypatch.context() as patched, Passes(WIDTH // cluster.settings.ps) as passes:
            patched.setattr(codec, "encode", counted)
            patched.setattr(MemoryListener, "send", copying)
            advance(cluster, workers, COUNTED)
        size = cluster.built.layout.nbytes
    fills = passes.seen.pop("fill_")  # by the test, of gradients
    moved = passes.read + copied["nbytes"], passes.written + copied["nbytes"] - fills * size
    return each(sent), each(passes.seen), tuple(nbytes / size / COUNTED for nbytes in moved), passes.blocks // COUNTED


@pytest.mark.parametrize("mode", ["async", "bounded"])
def test_a_gradient_by_itself_is_added_and_its_outcome_looked_at(mode, tmp_path, monkeypatch):
    messages, passes, moved, blocks = served(tmp_path, monkeypatch, mode=mode, ps=1, workers=2)

    assert messages == {"Push": 1, "Released": 1}
    assert passes == {"sum": 1, "add_": 1}
    assert moved == (4, 2)
    assert blocks == 0


def test_two_shards_agree_by_two_messages_more_and_pass_over_their_own_halves_alone(tmp_path, monkeypatch):
    messages, passes, moved, blocks = served(tmp_path, monkeypatch, mode="async", ps=2, workers=2)

    assert messages == {"Push": 2, "Released": 2, "Held": 1, "Decided": 1}
    assert passes == {"sum": 2, "add_": 2}
    assert moved == (4, 2)
    assert blocks == 0


def test_a_mean_of_two_is_two_passes_and_one_look_more(tmp_path, monkeypatch):
    messages, passes, moved, blocks = served(tmp_path, monkeypatch, mode="sync", ps=1, workers=2)

    assert messages == {"Push": 2, "Released": 2}
    assert passes == {"sum": 1 + 1, "add": 1, "div_": 1, "add_": 1}
    assert moved == (9, 5)
    assert blocks == 0


def test_a_mean_on_two_shards_takes_one_decision(tmp_path, monkeypatch):
    messages, passes, moved, blocks = served(tmp_path, monkeypatch, mode="sync", ps=2, workers=2)

    assert messages == {"Push": 4, "Released": 4, "Held": 2, "Decided": 1}
    assert passes == {"sum": 4, "add": 2, "div_": 2, "add_": 2}
    assert moved == (9, 5)
    assert blocks == 0


def test_an_optimizer_is_asked_once_and_what_it_takes_is_its_own(tmp_path, monkeypatch):
    """The same passes as in a loop of plain PyTorch, and one look."""
    parameter = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
    plain = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    plain.step()
    with Passes(WIDTH) as alone:
        plain.step()
    _, passes, moved, blocks = served(tmp_path, monkeypatch, torch.optim.Adam, mode="async", ps=1, workers=2)

    assert passes == alone.seen | {"sum": 1}
    size = parameter.nbytes
    assert moved == (alone.read / size + 2, alone.written / size + 1)
    assert blocks == alone.blocks


# --- one process


def net():
    return nn.Linear(WIDTH // 16, 16, bias=False)


def plain_loop(inputs, labels):
    """Of one update of plain PyTorch: passes, bytes read, bytes written, blocks made."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passes = Passes(WIDTH)
    for number in range(WARM + COUNTED):
        with passes if number >= WARM else Passes(WIDTH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return each(passes.seen), passes.read // COUNTED, passes.written // COUNTED, passes.blocks / COUNTED


def test_one_process_looks_twice_and_brings_its_gradients_together(tmp_path):
    inputs, labels = torch.randn(10, WIDTH // 16), torch.arange(10)
    recipe = Recipe(
        model=net, data=lambda: Data(Tensors(inputs, labels)), name="net",
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip
    session, *_ = one_process(recipe, tmp_path, batch_size=10, train_steps=99)
    turn, passes = session.exchange.start(), Passes(WIDTH)
    for number in range(WARM + COUNTED):
        with passes if number >= WARM else Passes(WIDTH):
            loss = session.towers.begin(session.batches.batch(turn.lease), turn.lease)
            session.towers.collect()
            turn = session.exchange.update(Computed(loss=loss, examples=10, seconds=0.1))
    session.exchange.close("the test is over")
    more, size = Counter(each(passes.seen)), 4 * WIDTH
    plain, read, written, blocks = plain_loop(inputs, labels)
    more.subtract(plain)

    assert {name: count for name, count in more.items() if count} == {"sum": 2, "_foreach_copy_": 1}
    assert passes.read // COUNTED - read == 3 * size
    assert passes.written // COUNTED - written == size
    assert passes.blocks / COUNTED == blocks
