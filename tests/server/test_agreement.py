"""What tasks compare before they train together: a difference is refused with both sides, or told where it may be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from evener.data.look import described
from evener.errors import ModelMismatch, VersionError
from evener.report import Line
from evener.server.agreement import Expected, compare
from evener.state.tensors import specs_of
from evener.testing import RUN, Cluster, Trainer, row_recipe, train
from evener.wire import codec
from evener.wire.agreed import fingerprint_of
from evener.wire.layout import Layout
from evener.wire.messages import Hello
from evener.wire.words import Identity
from evener.worker.allreduce.allreduce import DIFFERENCES, agree

sys.path.append(str(Path(__file__).parents[1] / "worker"))
from towers_in_one_process import Meeting, Member

LAYOUT = Layout(specs_of(torch.nn.Linear(4, 3)))
MINE = "train.py:11111111 net.py:22222222"


def hello(**changes: object) -> Hello:
    said: dict = {
        "identity": Identity(1), "run": RUN, "evener": "1.0", "recipe": "mine 12ab",
        "layout": LAYOUT.fingerprint, "specs": codec.pack_specs(LAYOUT.specs), "samples": 40, "host": "there",
        "pid": 812, "sources": MINE,
    } | changes  # fmt: skip
    return Hello(**said)


def expected(**changes: object) -> Expected:
    return Expected(**({"run": RUN, "recipe": "mine 12ab", "evener": "1.0", "sources": MINE} | changes))


def judged(worker: Hello, server: Expected | None = None) -> str:
    return compare(worker, server or expected(), LAYOUT, "ps:0")


def test_a_worker_that_trains_the_same_is_let_in_without_a_word():
    assert judged(hello()) == ""


def test_the_order_in_which_files_are_named_is_no_difference_in_what_is_told():
    with pytest.raises(ModelMismatch) as error:
        judged(hello(sources="net.py:22222222 train.py:33333333"))
    assert error.value.what == "worker:1 runs train.py:33333333, ps:0 runs train.py:11111111."


@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        ("train.py:33333333 net.py:22222222", "worker:1 runs train.py:33333333, ps:0 runs train.py:11111111."),
        (f"{MINE} more.py:44444444", "worker:1 runs more.py:44444444, ps:0 runs no such files."),
        ("train.py:11111111", "worker:1 runs no such files, ps:0 runs net.py:22222222."),
        ("", "worker:1 runs no such files, ps:0 runs net.py:22222222 train.py:11111111."),
    ],
)
def test_other_files_of_the_recipe_are_refused_with_both_digests_or_told_where_they_may_differ(theirs, what):
    with pytest.raises(ModelMismatch) as error:
        judged(hello(sources=theirs))
    assert error.value.what == what
    assert "its files differ, or were edited since a task was started" in error.value.why
    assert "--allow-difference" in error.value.fix
    assert judged(hello(sources=theirs), expected(allow_difference=True)) == what


@pytest.mark.parametrize(
    ("changes", "kind", "what"),
    [
        ({"evener": "0.9"}, VersionError, "worker:1 runs evener 0.9, ps:0 runs 1.0."),
        ({"recipe": "mine 99ff"}, ModelMismatch, "worker:1 trains 'mine 99ff', ps:0 trains 'mine 12ab'."),
    ],
)
def test_other_options_or_another_evener_are_never_allowed(changes, kind, what):
    with pytest.raises(kind) as error:
        judged(hello(**changes), expected(allow_difference=True))
    assert error.value.what == what


def test_what_is_told_otherwise_is_named_with_both_values():
    told = {"option width": 5, "seed": 0, "batch size": 100}
    theirs, ours = fingerprint_of("mine", told | {"seed": 4, "option width": "5\n"}), fingerprint_of("mine", told)
    with pytest.raises(ModelMismatch) as error:
        judged(hello(recipe=theirs), expected(recipe=ours))
    assert (
        error.value.what
        == "worker:1 trains mine with option width=5 , seed=4, ps:0 trains mine with option width=5, seed=0."
    )


def test_a_difference_in_what_is_too_long_to_travel_is_still_one():
    ours, theirs = (fingerprint_of("mine", {"option names": "x" * 2000 + end}) for end in "ab")
    assert max(map(len, (ours, theirs))) < 1024
    with pytest.raises(ModelMismatch, match=r"trains 'mine [0-9a-f]{12}', ps:0 trains 'mine [0-9a-f]{12}'"):
        judged(hello(recipe=theirs), expected(recipe=ours))


# --- the first batch

BATCH, OTHER = "float32[10] 4.5+-2.87", "float32[10] 9+-5.74"


def lines(run: Cluster) -> list[str]:
    return [line.text for line in run.reported(Line)]


def test_another_first_batch_is_refused_with_both(tmp_path):
    with Cluster(row_recipe(), tmp_path, train_steps=9) as run:
        run.worker(0).ask(run.worker(0).hello(batch=BATCH))
        stranger = run.worker(1)
        error = stranger.refused(stranger.hello(batch=OTHER))

        assert isinstance(error, ModelMismatch)
        assert error.what == f"the first samples of this worker are {OTHER}, those of the run {BATCH}."
        assert "random, numpy and torch" in error.fix
        assert "--allow-difference" in error.fix
        assert set(run.leader.links.seats) == {0}


def test_or_told_where_it_may_differ(tmp_path):
    with Cluster(row_recipe(), tmp_path, train_steps=9, allow_difference=True) as run:
        for index, batch in enumerate((BATCH, OTHER)):
            worker = run.worker(index)
            worker.ask(worker.hello(batch=batch))

        assert set(run.leader.links.seats) == {0, 1}
        told = [line for line in lines(run) if "first samples" in line]
        assert told == [f"warning: the first samples of this worker are {OTHER}, those of the run {BATCH}."]


def test_the_same_first_batch_is_no_word_worth(tmp_path):
    with Cluster(row_recipe(), tmp_path, train_steps=4) as run:
        train([Trainer(run, index) for index in range(2)])
        assert not [line for line in lines(run) if "warning" in line]


# --- towers


def agreed(*facts: dict, allowed: tuple[str, ...] = ()) -> list[str]:
    """What tower 0 hears, when each of so many has these facts."""

    class Together(Member):
        def gather(self, text: str) -> list[str]:
            return [json.dumps(one) for one in facts]

    return agree(Together(Meeting(len(facts)), 0), facts[0], allowed)


FACTS = {"seed": 1, "recipe files": "train.py:11111111", "first samples": BATCH}


@pytest.mark.parametrize(("name", "theirs"), [("recipe files", "train.py:33333333"), ("first samples", OTHER)])
def test_towers_compare_the_same_and_are_refused_with_both_sides_or_told(name, theirs):
    what = f"worker:1 has {name} {theirs}, worker:0 has {FACTS[name]}."
    with pytest.raises(ModelMismatch) as error:
        agreed(FACTS, FACTS | {name: theirs})
    assert error.value.what == what
    assert "--allow-difference" in error.value.fix

    assert agreed(FACTS, FACTS | {name: theirs}, allowed=DIFFERENCES) == [what]
    assert agreed(FACTS, FACTS, FACTS) == []


def test_of_towers_other_differences_are_never_allowed():
    with pytest.raises(ModelMismatch, match="worker:1 has seed 2, worker:0 has 1") as error:
        agreed(FACTS, FACTS | {"seed": 2}, allowed=DIFFERENCES)
    assert "--allow-difference" not in error.value.fix


# --- a batch in a few words


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((torch.tensor([[1.0, 3.0]]), torch.tensor([2])), "float32[1, 2] 2+-1, int64[1] sum 2"),
        ({"x": torch.tensor([1, 2]), "mask": torch.tensor([True, False])}, "{x: int64[2] sum 5, mask: bool[2] sum 1}"),
        ([torch.zeros(0), "text", 3], "float32[0], str, int"),
        (torch.zeros(2, dtype=torch.complex64), "complex64[2]"),
        (torch.tensor([float("nan")]), "float32[1] nan+-nan"),
    ],
    ids=str,
)  # fmt: skip
def test_a_batch_is_told_by_its_dtypes_shapes_and_values(batch, words):
    assert described(batch) == words


def test_batches_of_other_values_or_in_another_order_are_told_apart_and_rounding_is_not():
    one, other = torch.arange(6), torch.arange(6).flip(0)
    assert described(one) != described(other)
    assert described(one.float()) != described(one.float() * 2)
    assert described(one.float()) == described(one.float() * (1 + 1e-6))
