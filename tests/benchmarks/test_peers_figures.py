"""What `make bench-peers` says and writes: which ratios, of which rounds, and that documents quote nothing else."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "peers")]

from beside import tables, ways  # noqa: E402
from beside.aims import AIMS, Aim, learned  # noqa: E402
from job import LOSSES, Meter  # noqa: E402

RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
AIM = Aim("MLP 500", ways.TOWERS, ways.DDP, 2.2)


@dataclass(frozen=True)
class One:
    rate: float
    cpu_ms: float = 1.0
    begin: float = 1.0
    loss: float = 0.1


def found(mine, others):
    return {("MLP 500", ways.TOWERS.name): mine, ("MLP 500", ways.DDP.name): others}


# --- documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_quotes_what_was_measured(document):
    measured = tables.ratios(RESULTS)
    for _, name, quoted, _ in tables.QUOTED.findall(document.read_text()):
        digits = len(quoted.partition(".")[2])
        assert quoted == f"{measured[name]:.{digits}f}", f"{document.name}: {name}"


def test_the_results_have_a_place_for_what_the_command_writes():
    assert tables.replaced(RESULTS, "new").count("new\n" + tables.END) == 1


def test_writing_leaves_the_rest_of_the_document():
    before = f"first\n{tables.BEGIN}\nold\n{tables.END}\nlast\n"
    assert tables.replaced(before, "new") == f"first\n{tables.BEGIN}\nnew\n{tables.END}\nlast\n"


def test_a_quotation_is_brought_up_to_date_with_as_many_decimals_as_it_had():
    quoted = "takes <!--bench-peers: a / b-->1.8<!----> times, <!--bench-peers: c-->0.50<!---->"
    assert tables.requoted(quoted, {"a / b": 2.06, "c": 0.613}) == quoted.replace("1.8", "2.1").replace("0.50", "0.61")
    assert tables.requoted(quoted, {}) == quoted


def test_the_ratios_that_are_quoted_are_those_that_were_written():
    written = tables.of_aims(found([One(4.0), One(9.0), One(5.0)], [One(2.0), One(3.0), One(2.0)]), [AIM])
    assert tables.ratios(written) == {AIM.name: 2.5}


# --- ratios


def test_a_ratio_is_that_of_one_round_and_its_median_counts():
    values = AIM.values(found([One(4.0), One(30.0), One(6.0)], [One(2.0), One(10.0), One(4.0)]))
    assert values == [2.0, 3.0, 1.5]
    assert not AIM.met(values)
    assert AIM.met([2.0, 2.3, 9.0])


def test_a_round_in_which_one_of_them_failed_has_no_ratio():
    assert AIM.values(found([One(4.0), None, One(6.0)], [None, One(10.0), One(4.0)])) == [1.5]


def test_processor_time_and_seconds_are_better_the_smaller():
    dear = found([One(1.0, cpu_ms=3.0, begin=2.5)], [One(1.0, cpu_ms=2.0)])
    cost, start = Aim(AIM.work, AIM.way, AIM.against, 1.1, "cpu"), Aim(AIM.work, AIM.way, None, 2.0, "begin")
    assert cost.values(dear) == [1.5]
    assert start.values(dear) == [2.5]
    assert not cost.met([1.5])
    assert start.met([2.0])


def test_each_aim_compares_what_its_work_measures():
    measured = {(work.name, way.name) for work in ways.WORKS for way in work.ways}
    for aim in AIMS:
        assert (aim.work, aim.way.name) in measured, aim.name
        assert aim.against is None or (aim.work, aim.against.name) in measured, aim.name
    assert len({aim.name for aim in AIMS}) == len(AIMS)


def test_names_can_be_listed_with_commas():
    assert not [name for work in ways.WORKS for name in (work.name, *(way.name for way in work.ways)) if "," in name]


def test_every_way_is_a_program_that_lies_there():
    for work in ways.WORKS:
        for way in work.ways:
            assert (ROOT / "benchmarks" / "peers" / way.program).is_file()


# --- learning


def test_what_is_fast_and_does_not_learn_is_found():
    losses = {"a": 0.13, "b": 0.10, "stale": 0.25, "slow": 0.5, "none": 2.3}
    assert learned(losses, untrained=2.3) == {"a": True, "b": True, "stale": True, "slow": False, "none": False}


def test_nobody_has_learned_where_all_losses_are_those_of_a_new_model():
    assert learned({"a": 2.3, "b": 2.2}, untrained=2.3) == {"a": False, "b": False}


def test_workers_share_updates_out_in_async_and_make_each_together_in_sync():
    assert [way.groups for way in (ways.ASYNC_2, ways.SYNC, ways.TWO_ALONE, ways.STRATEGY)] == [
        [[0, 1]], [[0], [1]], [[0], [1]], [[0]],
    ]  # fmt: skip


# --- the meter


def test_a_meter_says_how_many_each_worker_did_and_since_when(tmp_path):
    meter = Meter.create(tmp_path / "meter", 2)
    assert meter.mark(1) == (0, 0.0, 0.0)
    worker = Meter(tmp_path / "meter", 1)
    worker.count(2.0)
    _, at, first = meter.mark(1)
    worker.count(1.0)
    assert meter.mark(0).steps == 0
    assert meter.mark(1)[::2] == (2, first)
    assert 0.0 < first == at < meter.mark(1).at
    meter.close(), worker.close()


def test_losses_stand_in_the_order_in_which_all_workers_made_them(tmp_path):
    meter = Meter.create(tmp_path / "meter", 2)
    workers = [Meter(tmp_path / "meter", slot) for slot in range(2)]
    for slot, loss in [(1, 4.0), (0, 3.0), (0, 2.0), (1, 1.0)]:
        workers[slot].count(loss)
    assert meter.losses([0, 1]) == [4.0, 3.0, 2.0, 1.0]
    assert meter.losses([1]) == [4.0, 1.0]
    for one in (meter, *workers):
        one.close()


def test_steps_are_counted_also_when_no_more_losses_are_kept(tmp_path):
    meter = Meter.create(tmp_path / "meter", 1)
    for _ in range(LOSSES + 3):
        meter.count(0.5)
    assert meter.mark(0).steps == LOSSES + 3
    assert len(meter.losses([0])) == LOSSES
    meter.close()
