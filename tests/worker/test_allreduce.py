"""Towers hold the same state, average their gradients, and begin, stop and fail together."""

import math

import pytest
import torch
from torch import nn
from towers_in_one_process import Meeting, Member, named, run, state_of, towers

from evener import errors
from evener.commands.account import account
from evener.data.dataset import Data, Tensors
from evener.ledger.lines import Update, parse
from evener.recipes.recipe import Recipe
from evener.report import Finished, Progress
from evener.session.hooks import Hook, StopAtStep
from evener.state.checkpoint import Store
from evener.state.tensors import Slot, specs_of
from evener.testing import one_process, row_recipe, same_bits
from evener.wire.layout import Layout
from evener.worker.allreduce.allreduce import AllReduce, Travelling, agree
from evener.worker.compute import towers as compute
from evener.worker.exchange.exchange import Computed


def net():
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 2))


def recipe(**parts):
    inputs, target = torch.randn(43, 5, generator=torch.Generator().manual_seed(1)), torch.arange(43) % 2
    data = Data(Tensors(inputs, target))
    everything = {
        "model": net, "data": lambda: data, "ema_decay": 0.9,
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        "lr_scheduler": lambda made, _: torch.optim.lr_scheduler.ExponentialLR(made, 0.9),
    } | parts  # fmt: skip
    return Recipe(**everything)


class At(Hook):
    """Do something after a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def after_step(self, session, result):
        if result.global_step == self.step:
            self.do(session)


class Leases(Hook):
    def __init__(self):
        self.seen = []

    def after_step(self, session, result):
        self.seen.append(result.lease)


# --- equal


def test_towers_stay_equal_bit_for_bit_and_end_at_the_same_step(tmp_path):
    sessions = towers(recipe(), tmp_path, 3, batch_size=4, train_steps=20)

    assert run(sessions) == ["reached step 20"] * 3
    for what in ("parameters", "averages"):
        assert same_bits(named(sessions[0], what), named(sessions[1], what))
        assert same_bits(named(sessions[0], what), named(sessions[2], what))
    assert [state_of(session).step for session in sessions] == [20] * 3


def test_each_tower_has_its_own_samples_and_together_they_read_what_one_process_reads(tmp_path):
    seen = [Leases(), Leases()]
    sessions = towers(recipe(), tmp_path / "two", 2, hooks=lambda rank: [seen[rank]], batch_size=5, train_steps=4)
    run(sessions)
    one, _, _ = one_process(recipe(), tmp_path / "one", batch_size=10, train_steps=4)

    assert [hook.seen for hook in seen] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    for step in range(4):
        halves = [sessions[rank].batches.batch(2 * step + rank)[0] for rank in range(2)]
        assert torch.equal(torch.cat(halves), one.batches.batch(step)[0])
    one.exchange.close("not run")


def test_an_epoch_that_the_batches_do_not_divide_ends_for_nobody(tmp_path):
    """Batches reach over the end of an epoch: all are whole, so no tower ever waits for one that has none left."""
    sessions = towers(recipe(), tmp_path, 3, batch_size=5, epochs=3)

    assert run(sessions) == ["reached step 9"] * 3  # ceil(3 * 43 / 15)
    assert all(len(session.batches.batch(lease)[1]) == 5 for session in sessions for lease in range(27))


def test_buffers_are_those_of_the_last_lease(tmp_path):
    """As in sync with ps tasks: what BatchNorm saw of the other batches is not kept."""
    sessions = towers(recipe(ema_decay=None), tmp_path, 2, batch_size=8, train_steps=1)
    mine = [session.towers.model[1].running_mean for session in sessions]
    expected = nn.BatchNorm1d(6)
    first = net()
    first.load_state_dict(sessions[0].towers.model.state_dict())
    expected(first[0](sessions[1].batches.batch(1)[0]))
    run(sessions)

    for session in sessions:
        torch.testing.assert_close(session.towers.model[1].running_mean, expected.running_mean)
        assert int(session.towers.model[1].num_batches_tracked) == 1
    assert torch.equal(*mine)


# --- what travels


def test_a_model_of_one_dtype_travels_in_one_piece_with_the_numbers_about_it():
    layout = Layout(specs_of(nn.Linear(3, 2)))
    travelling = Travelling.of(layout)

    (flat,) = travelling.flats
    assert flat.dtype == torch.float32
    assert flat.data_ptr() == travelling.head.data_ptr()
    assert travelling.block.data_ptr() == flat.data_ptr() + travelling.head.nbytes


@pytest.mark.parametrize(
    ("model", "dtypes"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), ["float32", "uint8"]),
        (nn.Linear(3, 2).double(), ["float64"]),
        (nn.Linear(3, 2).to(torch.bfloat16), ["float32", "bfloat16"]),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()), ["float32", "float64"]),
    ],
    ids=["with counters", "double", "half", "mixed"],
)
def test_other_dtypes_travel_beside_it(model, dtypes):
    layout = Layout(specs_of(model))
    travelling = Travelling.of(layout)
    slot = Slot(layout, 0, [travelling.block[at : at + n] for at, n in layout.ranges(0)])
    for index, flat in enumerate(slot.flats):
        flat.fill_(index + 1)
    travelling.head[0] = 7

    assert [str(flat.dtype)[6:] for flat in travelling.flats] == dtypes
    assert float(travelling.head[0]) == 7 and all(bool((flat == i + 1).all()) for i, flat in enumerate(slot.flats))
    assert sum(flat.numel() * flat.element_size() for flat in travelling.flats) == travelling.head.nbytes + sum(
        flat.numel() * flat.element_size() for flat in slot.flats
    )


def test_one_update_is_one_collective(tmp_path):
    sessions = towers(row_recipe(), tmp_path, 2, batch_size=4, train_steps=10)
    run(sessions)
    assert sessions[0].exchange._group.meeting.collectives == 10


# --- together


def test_whoever_stops_stops_all_at_the_same_step(tmp_path):
    stop = At(3, lambda session: session.stop("enough"))
    sessions = towers(recipe(), tmp_path, 3, hooks=lambda rank: [stop] * (rank == 1), batch_size=4, train_steps=99)

    assert run(sessions) == ["enough"] * 3
    assert [session.turn.version for session in sessions] == [4] * 3  # the update under way is applied
    assert [session.turn.chief for session in sessions] == [True, False, False]


def test_an_interrupted_run_is_evaluated_by_nobody_and_saved(tmp_path):
    stop = At(3, lambda session: session.stop("interrupted", complete=False))
    sessions = towers(recipe(), tmp_path, 2, hooks=lambda rank: [stop] * (rank == 1), batch_size=4, train_steps=99)

    assert run(sessions) == ["interrupted"] * 2
    assert not sessions[0].turn.chief
    assert Store(tmp_path / "checkpoints", writable=False).newest()[0].step == 4


def test_of_two_reasons_to_stop_the_first_is_told_and_either_may_cut_it_short(tmp_path):
    def stop(session):
        session.stop("enough")
        session.stop("interrupted", complete=False)

    hooks = [At(3, stop)]
    sessions = towers(recipe(), tmp_path, 2, hooks=lambda rank: hooks * (rank == 1), batch_size=4, train_steps=99)

    assert run(sessions) == ["enough"] * 2
    assert not sessions[0].turn.chief


def test_somebody_outside_may_stop_them(tmp_path):
    sessions = towers(recipe(), tmp_path, 2, batch_size=4, train_steps=99)
    asked = iter(["", "", "interrupted", "interrupted"])
    sessions[0].exchange._stop_asked = lambda: next(asked)

    assert run(sessions) == ["interrupted"] * 2
    assert [session.turn.version for session in sessions] == [3, 3]
    assert not sessions[0].turn.chief  # it was cut short, so nobody evaluates


def test_a_finished_run_is_not_trained_further(tmp_path):
    run(towers(recipe(), tmp_path, 2, batch_size=4, train_steps=6))
    longer = towers(recipe(), tmp_path, 2, hooks=lambda rank: [StopAtStep(6)], batch_size=4, train_steps=99)
    assert run(longer) == ["already at step 6 of 6"] * 2
    assert [state_of(session).step for session in longer] == [6, 6]

    again = towers(recipe(), tmp_path, 2, batch_size=4, train_steps=6)
    assert run(again) == ["already at step 6 of 6: nothing to do"] * 2
    assert again[0].exchange._group.meeting.collectives == 0


@pytest.mark.parametrize("apart", [True, False], ids=["apart from the sum", "where it is summed"])
def test_a_gradient_that_is_not_finite_is_applied_by_nobody_and_named_by_all(tmp_path, monkeypatch, apart):
    """Where it is summed nothing is left of it afterwards, as in a large model."""
    monkeypatch.setattr(compute, "LARGE", 1)
    data = Data(Tensors(torch.tensor([1.0, 1.0, 1.0, math.inf]), torch.zeros(4)))
    options = {"batch_size": 1, "train_steps": 9, "save_checkpoint_steps": 99}
    sessions = towers(row_recipe(data=lambda: data), tmp_path, 2, apart=apart, **options)
    ends = run(sessions)

    assert {type(end) for end in ends} == {errors.NonFinite}
    bad = next(lease for lease in range(4) if math.isinf(float(sessions[0].batches.batch(lease)[0])))
    assert f"gradient of 'row' of worker:{bad % 2} is not finite, at global step {bad // 2}" in str(ends[0])
    assert [state_of(session).step for session in sessions] == [bad // 2] * 2
    assert all(bool(torch.isfinite(state_of(session).parameters.flats[0]).all()) for session in sessions)


def test_when_one_is_gone_the_others_say_so_and_what_they_have_is_saved(tmp_path):
    def die(session):
        raise SystemExit("killed")

    sessions = towers(recipe(), tmp_path, 3, hooks=lambda rank: [At(5, die)] * (rank == 2), batch_size=4, train_steps=9)
    ends = run(sessions)

    assert [type(end) for end in ends] == [errors.PeerGone, errors.PeerGone, SystemExit]
    assert Store(tmp_path / "checkpoints", writable=False).newest()[0].step == 5
    assert [session.exchange._group.closed for session in sessions] == [True] * 3


# --- kept


def test_tower_0_alone_reports_and_writes_the_ledger_which_is_clean(tmp_path):
    reports = []
    run(towers(recipe(), tmp_path, 3, reports=reports, batch_size=4, train_steps=7, save_checkpoint_steps=3))

    (finished,) = (report for report in reports if isinstance(report, Finished))
    assert (finished.global_step, finished.examples) == (7, 7 * 12)
    assert any(isinstance(report, Progress) for report in reports)
    lines = [parse(line) for line in (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)]
    updates = [line.entries for line in lines if isinstance(line, Update)]
    assert updates[1] == [(3, 0, 0, 2), (4, 1, 0, 2), (5, 2, 0, 2)]
    found = account(tmp_path)
    assert found.clean and (found.updates, found.gradients, found.examples) == (7, 21, 84), str(found)


def test_the_loss_that_is_told_is_the_mean_over_the_towers(tmp_path):
    def loss(scores, _target):
        return 0.0 * scores.sum() + 3.0

    reports = []
    run(towers(recipe(loss=loss), tmp_path, 3, reports=reports, batch_size=4, train_steps=2))

    assert {report.loss for report in reports if isinstance(report, Progress)} == {3.0}
    assert [report.train_loss for report in reports if isinstance(report, Finished)] == [3.0]


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path):
    options = {"batch_size": 4, "save_checkpoint_steps": 5}
    whole = towers(recipe(), tmp_path / "whole", 2, train_steps=12, **options)
    run(whole)
    run(towers(recipe(), tmp_path / "parts", 2, train_steps=5, **options))
    parts = towers(recipe(), tmp_path / "parts", 2, train_steps=12, **options)
    run(parts)

    for rank in range(2):
        assert same_bits(named(parts[rank]), named(whole[rank]))
        assert same_bits(named(parts[rank], "averages"), named(whole[rank], "averages"))
    assert account(tmp_path / "parts").clean


def test_a_run_goes_on_with_another_number_of_towers_and_every_lease_is_applied_once(tmp_path):
    for count, steps in ((2, 5), (3, 9), (1, 15), (2, 20)):
        made = (
            [one_process(recipe(), tmp_path, batch_size=4, train_steps=steps)[0]]
            if count == 1
            else towers(recipe(), tmp_path, count, batch_size=4, train_steps=steps)
        )
        made[0].run() if count == 1 else run(made)

    found = account(tmp_path)
    assert found.clean and (found.step, found.gradients) == (20, 2 * 5 + 3 * 4 + 6 + 2 * 5), str(found)
    assert list(found.unapplied) == []


def test_leases_that_a_cluster_left_unapplied_come_first(tmp_path):
    (session, *_) = one_process(recipe(), tmp_path, batch_size=4, train_steps=1)
    session.run()
    local = one_process(recipe(), tmp_path / "other", batch_size=4, train_steps=9)[0].exchange
    local._towers = local.book._update = 2
    local.book._unapplied, local.book._next = [3, 5, 8], 11

    assert local.leases == [3, 5]
    local.update(Computed(loss=1.0, examples=8, seconds=0.1))
    assert local.leases == [8, 11]
    local.update(Computed(loss=1.0, examples=8, seconds=0.1))
    assert (local.leases, list(local.book.state().unapplied)) == ([12, 13], [])
    local.close("not run")


# --- agreement


def test_towers_that_would_not_train_the_same_are_refused_by_name():
    class Says:
        def __init__(self, *texts):
            self.texts = texts

        def gather(self, text):
            return list(self.texts)

    same = '{"seed": 1, "batch size": 10}'
    agree(Says(same, same), {})
    with pytest.raises(errors.ModelMismatch, match="worker:2 has seed 4, worker:0 has 1"):
        agree(Says(same, same, '{"seed": 4, "batch size": 10}'), {})


def test_the_exchange_closes_its_group_also_when_the_replica_fails_to_close():
    class Broken:
        def close(self, reason):
            raise errors.CheckpointError("the final checkpoint was not saved")

    member = Member(Meeting(1), 0)
    layout = Layout(specs_of(nn.Linear(1, 1)))
    travelling = Travelling.of(layout)
    exchange = AllReduce(Broken(), Slot(layout, 0), travelling, member, suspect=str)
    with pytest.raises(errors.CheckpointError):
        exchange.close()
    assert member.closed is False
