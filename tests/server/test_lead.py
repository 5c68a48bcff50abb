"""Shard 0 as workers and the launcher see it: who may come in, what an answer holds, when it ends, what is saved."""

import gc
import math
import re
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from evener import errors
from evener.ledger import path_of
from evener.ledger.lines import Complete, Cut
from evener.ledger.reading import read
from evener.report import Finished, Line, Progress
from evener.server.serve import serve
from evener.state.checkpoint import load
from evener.state.contents import Contents as Checkpointed
from evener.testing import Cluster, Row, row_recipe
from evener.transport.channel import Arrived
from evener.wire import codec
from evener.wire.messages import Follow, Goodbye, Granted, Halt, Held, Join, Lead, Lost, Pull, Refused, Released, Saved
from evener.wire.words import Identity


@pytest.fixture
def cluster(tmp_path):
    """Makes clusters of the `Row` recipe; each is closed at the end."""
    made = []

    def make(recipe=None, *, directory="run", **options):
        made.append(Cluster(recipe or row_recipe(), tmp_path / directory, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def row(cluster):
    """The value that all parameters have."""
    values = set(cluster.parameters()["row"].tolist())
    assert len(values) == 1, f"parameters differ: {values}"
    return values.pop()


# --- one worker, from hello to goodbye


def test_one_worker_from_hello_to_goodbye(cluster):
    run = cluster(train_steps=2, workers=1)
    worker = run.worker(0)

    assert worker.ask(worker.hello()) == [Granted(Identity(worker=0, epoch=1, generation=1))]
    worker.identity = Identity(0, 1, 1)
    assert worker.ask(Join(worker.identity)) == [
        Released(seq=0, version=0, lease=0, chief=True, learning_rate=1.0),
    ]
    worker.turn = Released(seq=0, version=0, lease=0)
    assert worker.push(2.0) == Released(seq=1, version=1, lease=1, chief=True, learning_rate=1.0)
    assert worker.push(3.0) == Released(
        seq=2, version=2, lease=-1, stop="reached step 2", chief=True, learning_rate=1.0
    )
    assert row(run) == -5.0
    assert set(worker.model_views["row"].tolist()) == {-5.0}  # the answer to the push is the model

    worker.ask(Goodbye(worker.identity))
    run.finish()
    (figures,) = run.reported(Finished)
    assert (figures.global_step, figures.first_step, figures.examples, figures.reason) == (2, 0, 20, "reached step 2")


@pytest.mark.parametrize("shards", [1, 2])
def test_speed_is_counted_from_the_first_workers_first_step(cluster, shards):
    run = cluster(train_steps=4, workers=2, ps=shards)
    run.tick(60.0)  # nobody is there
    worker = run.worker(0)
    worker.greet()
    run.tick(30.0)  # it takes its time to join
    worker.join()
    for _ in range(2):
        run.clock.advance(0.5)
        worker.push(0.0)
    run.tick()
    assert (run.reported(Progress)[-1].steps_per_second, run.reported(Progress)[-1].examples_per_second) == (2.0, 20.0)
    run.clock.advance(9.0)
    (late,) = run.started(1)  # a second one changes nothing of what was
    late.push(0.0)
    worker.push(0.0)
    for one in (worker, late):
        one.leave()
    run.finish()

    assert run.reported(Finished)[0].seconds == 10.0


def test_what_one_worker_has_to_say_however_long_can_be_told_to_the_others(cluster):
    run = cluster(workers=2, train_steps=99)
    zero, one = run.started(0, 1)
    zero.ask(Goodbye(zero.identity, "x" * 120_000, failed=True))

    answer = one.push(0.0)
    assert answer.failed and answer.stop.startswith("worker:0 failed: xxx") and len(answer.stop) < 9000


def test_the_learning_rate_of_the_next_update_travels_with_the_release(cluster):
    schedule = partial(LambdaLR, lr_lambda=lambda step: 1 / (1 + step))
    run = cluster(row_recipe(lr_scheduler=lambda made, steps_per_epoch: schedule(made)), train_steps=9)
    (worker,) = run.started(0)

    rates = [worker.turn.learning_rate] + [worker.push(0.0).learning_rate for _ in range(3)]
    assert rates == [1.0, 1 / 2, 1 / 3, 1 / 4]


def test_the_chief_is_the_live_worker_of_lowest_index(cluster):
    run = cluster(workers=3, train_steps=99)
    two, one = run.started(2, 1)
    assert (two.turn.chief, one.turn.chief) == (True, True)  # two was alone when it was released

    assert [two.push(0.0).chief, one.push(0.0).chief] == [False, True]
    one.leave()
    assert two.push(0.0).chief
    (zero,) = run.started(0)
    assert [zero.turn.chief, two.push(0.0).chief] == [True, False]


def test_staleness_is_counted_in_versions(cluster):
    run = cluster(train_steps=99)
    slow, fast = run.started(0, 1)
    for _ in range(3):
        fast.push(0.0)

    assert slow.push(0.0).staleness == 3
    assert fast.push(0.0).staleness == 1


# --- leases and the exact end


@pytest.mark.parametrize("mode", [{"mode": "async"}, {"mode": "bounded", "staleness": 1}], ids=["async", "bounded"])
@pytest.mark.parametrize("steps", [1, 5, 6])
def test_exactly_train_steps_updates_each_of_its_own_lease(cluster, mode, steps):
    run = cluster(**mode, workers=3, train_steps=steps)
    workers = run.started(0, 1, 2)
    leases = []
    while ready := [worker for worker in workers if worker.turn and not worker.turn.stop]:
        leases.append(ready[-1].turn.lease)
        ready[-1].push(1.0)
        for worker in workers:
            worker.turn = worker.turn or worker.listen()

    assert sorted(leases) == list(range(steps))
    assert {worker.turn.stop for worker in workers} == {f"reached step {steps}"}
    assert row(run) == -steps


def test_sync_takes_exactly_train_steps_rounds(cluster):
    run = cluster(mode="sync", workers=2, train_steps=3)
    a, b = run.started(0, 1)
    for round_ in range(3):
        assert [a.turn.lease, b.turn.lease] == [2 * round_, 2 * round_ + 1]
        assert a.push(1.0) is None
        b.push(3.0)
        a.listen()

    assert a.turn.stop == b.turn.stop == "reached step 3"
    assert row(run) == -6.0


def test_a_worker_without_a_lease_gets_that_of_one_that_left(cluster):
    run = cluster(train_steps=2)
    a, b = run.started(0, 1)
    assert a.push(1.0) is None  # lease 0 is applied, 1 is out with b: nothing is left for a

    b.die()
    assert a.listen() == Released(seq=1, version=1, lease=1, chief=True, learning_rate=1.0)
    assert a.push(1.0).stop == "reached step 2"


def test_who_joins_when_all_leases_are_out_waits_for_one_that_returns(cluster):
    run = cluster(train_steps=1)
    (a,) = run.started(0)
    b = run.worker(1)
    assert b.start() is None

    a.die()
    assert b.listen().lease == 0


def test_the_leases_of_a_dead_worker_go_out_first(cluster):
    run = cluster(train_steps=9)
    a, b = run.started(0, 1)
    b.push(1.0)  # leases: 0 with a, 1 applied, 2 with b
    a.die()

    assert b.push(1.0).lease == 0
    assert b.push(1.0).lease == 3


def test_sync_a_stragglers_lease_goes_back_when_the_version_moves_and_its_late_gradient_is_dropped(cluster):
    run = cluster(mode="sync", workers=2, replicas_to_aggregate=1, train_steps=9)
    straggler, fast = run.started(0, 1)
    assert straggler.turn.lease == 0

    assert fast.push(1.0).lease == 0  # at once: nobody waits for the straggler to give it back
    assert fast.push(1.0).lease == 2
    late = straggler.push(100.0)
    assert (late.rejected, late.version, late.dropped) == ("computed at version 0, now 2", 2, 1)
    assert late.lease == 3
    assert row(run) == -2.0


def test_sync_no_lease_is_applied_twice_though_two_workers_compute_it(cluster):
    run = cluster(mode="sync", workers=2, replicas_to_aggregate=1, train_steps=9)
    workers = run.started(0, 1)
    applied = []
    for which in (1, 1, 0, 0, 1, 0, 1, 1, 0, 0):
        lease = workers[which].turn.lease
        if not workers[which].push(1.0).rejected:
            applied.append(lease)

    assert len(applied) == run.step > 5
    assert len(set(applied)) == len(applied)


# --- how it ends


def test_halt_ends_the_run_after_the_updates_in_hand(cluster):
    run = cluster(train_steps=99)
    a, b = run.started(0, 1)
    assert a.ask(Halt(a.identity, "enough")) == []

    assert b.push(5.0).stop == "enough"  # computed in vain: the run had ended
    assert b.turn.rejected == "enough"
    assert a.push(5.0).stop == "enough"
    assert row(run) == 0.0
    for worker in (a, b):
        worker.leave()
    run.finish()
    assert run.reported(Finished)[0].reason == "enough"
    assert run.leader.setup.saver.newest.endswith("step-00000000")


def test_the_final_chief_is_the_lowest_that_waits_not_one_that_hangs(cluster):
    run = cluster(mode="sync", replicas_to_aggregate=2, workers=3, train_steps=1)
    hangs, waits, last = run.started(0, 1, 2)
    assert waits.push(1.0) is None
    last.push(1.0)

    assert (waits.listen().chief, last.turn.chief) == (True, False)
    assert hangs.push(1.0).stop == "reached step 1"  # it wakes: too late for a duty that another has
    assert not hangs.turn.chief


def test_an_interrupted_run_is_evaluated_by_nobody(cluster):
    run = cluster(train_steps=99)
    a, b = run.started(0, 1)
    run.leader.stop("interrupted", complete=False)
    run.leader.stop("reached step 5")  # the first reason stands

    assert [(w.push(0.0).stop, w.turn.chief) for w in (a, b)] == [("interrupted", False)] * 2


def test_the_run_ends_without_a_worker_that_never_says_goodbye(cluster):
    run = cluster(train_steps=1, stall_timeout=3)
    a, _hangs = run.started(0, 1)
    a.push(1.0)
    a.leave()
    run.tick(9.0)
    assert not run.leader.done
    assert run.leader.waiting_for() == "worker:1 to say goodbye"

    run.tick(2.0)
    assert run.leader.done


def test_the_final_chief_has_as_long_for_its_evaluation_as_a_stalled_run(cluster):
    run = cluster(train_steps=1, workers=1, stall_timeout=60)
    (chief,) = run.started(0)
    chief.push(1.0)
    run.tick(50.0)
    assert set(chief.pull("parameters")["row"].tolist()) == {-1.0}
    assert not run.leader.done

    run.tick(11.0)
    assert run.leader.done


@pytest.mark.parametrize("told", [False, True], ids=["killed", "told to leave"])
def test_a_chief_that_dies_in_the_final_evaluation_has_a_successor(cluster, told):
    run = cluster(train_steps=1)
    chief, other = run.started(0, 1)
    chief.push(1.0)
    assert (other.listen().stop, other.turn.chief) == ("reached step 1", False)
    other.leave()
    if told:
        chief.leave("Preempted: worker:0 was told to leave (SIGTERM)")
    else:
        chief.die()
    run.settle()
    run.tick(9.0)
    assert run.leader.waiting_for().startswith("a worker to evaluate the final parameters")
    assert not run.leader.done

    (again,) = run.started(0)
    assert (again.turn.stop, again.turn.chief, again.turn.version) == ("reached step 1", True, 1)
    run.tick(20.0)  # it takes its time
    assert not run.leader.done
    again.leave()
    run.finish()


def test_a_run_whose_chief_died_at_the_end_does_not_wait_for_ever(cluster):
    run = cluster(train_steps=1, workers=1)
    (chief,) = run.started(0)
    chief.push(1.0)
    run.tick(60.0)
    chief.die()
    run.settle()
    run.tick(9.0)
    assert not run.leader.done

    run.tick(2.0)
    assert run.leader.done


# --- workers that are started by hand, and come when a short run is over


def over_without_worker_1(cluster, **options):
    """A run of three workers, of which one has come, trained, and gone."""
    run = cluster(workers=3, train_steps=1, latecomers=60.0, **options)
    (first,) = run.started(0)
    first.push(1.0)
    first.leave()
    for _ in range(5):  # it is saved, by all shards
        run.tick(1.0)
    return run


@pytest.mark.parametrize("shards", [1, 2])
def test_workers_that_come_when_a_short_run_is_over_are_told_so(cluster, shards):
    run = over_without_worker_1(cluster, ps=shards)
    assert saved(run) == [1]
    assert not run.leader.done
    assert run.leader.waiting_for() == "worker:1, worker:2 to come"

    run.tick(20.0)
    for late in (1, 2):
        (worker,) = run.started(late)
        assert (worker.turn.stop, worker.turn.chief, worker.turn.version) == ("reached step 1", False, 1)
        run.tick(5.0)  # it has its time to say goodbye
        assert late in run.leader.links.seats
        worker.leave()
    run.tick()
    assert all(server.done for server in run.servers)


def test_it_says_once_for_whom_it_stays(cluster):
    run = over_without_worker_1(cluster)
    run.tick(1.0)
    told = [line.text for line in run.reported(Line)]
    assert told == [
        "the run is over and saved; worker:1, worker:2 have not come yet, so it stays until 60 s after the first "
        "worker came; Ctrl-C ends it"
    ]


def test_it_does_not_stay_longer_than_it_said(cluster):
    run = over_without_worker_1(cluster)
    run.tick(54.0)
    assert not run.leader.done
    run.tick(2.0)
    assert run.leader.done


def test_a_run_that_lasted_longer_expects_nobody(cluster):
    run = cluster(workers=2, train_steps=1, latecomers=60.0)
    (first,) = run.started(0)
    run.tick(61.0)
    first.push(1.0)
    first.leave()
    run.finish()


@pytest.mark.parametrize("asks", ["stop", "leave"])
def test_a_person_can_end_that(cluster, asks):
    run = over_without_worker_1(cluster)
    run.leader.stop("interrupted", complete=False) if asks == "stop" else run.leader.leave("ps:0 was told to leave")
    run.tick()
    assert run.leader.done


def test_a_worker_that_fails_then_ends_nothing(cluster):
    run = over_without_worker_1(cluster)
    (late,) = run.started(1)
    late.ask(Goodbye(late.identity, "ValueError: of its own", True))
    run.tick()
    assert run.leader.waiting_for() == "worker:2 to come"


def test_a_follower_that_is_lost_then_loses_nothing(cluster):
    run = over_without_worker_1(cluster, ps=2)
    run.servers[1].leader.close()
    run.look(0)
    run.leader.tick()
    assert run.leader.done


@pytest.mark.parametrize("early", [True, False], ids=["interrupted", "failed"])
def test_a_run_that_was_not_completed_expects_nobody(cluster, early):
    run = cluster(workers=2, train_steps=9, latecomers=60.0)
    (first,) = run.started(0)
    if early:
        run.leader.stop("interrupted", complete=False)
        first.push(1.0)
        first.leave()
    else:
        first.ask(Goodbye(first.identity, "ValueError: of its own", True))
    run.finish()


def test_a_run_that_has_nothing_left_to_do_says_so_to_everyone(cluster):
    first = cluster(train_steps=1, workers=1)
    (worker,) = first.started(0)
    worker.push(4.0)
    worker.leave()
    first.finish()
    first.close()

    again = cluster(train_steps=1, workers=1, before=first)
    (worker,) = again.started(0)
    assert worker.turn.stop.startswith("already at step 1 of 1")
    assert (worker.turn.version, worker.turn.chief) == (1, True)
    assert set(worker.model_views["row"].tolist()) == {-4.0}
    worker.leave()
    again.finish()
    assert again.reported(Finished)[0].global_step == 1


def test_a_resumed_run_that_is_stopped_before_anyone_came_has_not_gone_back(cluster):
    first = cluster(train_steps=9, workers=1)
    (worker,) = first.started(0)
    worker.push(4.0)
    worker.ask(Halt(worker.identity, "enough"))
    worker.leave()
    first.finish()
    first.close()

    again = cluster(train_steps=9, workers=1, before=first)
    again.leader.stop("interrupted", complete=False)
    again.finish()
    figures = again.reported(Finished)[0]
    assert (figures.first_step, figures.global_step) == (1, 1)
    assert figures.checkpoint.endswith("step-00000001")


# --- who may come in


def test_a_live_index_is_refused_by_name_and_its_holder_is_not_disturbed(cluster):
    run = cluster(train_steps=99)
    first, second = *run.started(0), run.worker(0)

    error = second.refused(second.hello(host="there", pid=99))
    assert isinstance(error, errors.DuplicateTask)
    assert error.what == "worker:0 is already running at here pid 812."
    assert first.push(1.0).version == 1


def test_who_comes_back_gets_a_new_life_and_the_old_one_is_fenced(cluster):
    run = cluster(train_steps=99)
    (old,) = run.started(0)
    old.die()
    (new,) = run.started(0)
    assert new.identity.epoch == 2

    wakes = run.worker(0)
    wakes.identity = old.identity
    error = wakes.refused(wakes.hello())
    assert isinstance(error, errors.Fenced)
    assert error.what == "worker:0 was replaced by epoch 2; this process has epoch 1; the newer one is at here pid 812."
    assert new.push(1.0).version == 1


def test_a_new_life_is_not_told_what_became_of_the_old_ones_gradient(cluster):
    run = cluster(mode="sync", workers=2, train_steps=99)
    old, _ = run.started(0, 1)
    assert old.push(7.0) is None
    old.die()
    (new,) = run.started(0)

    assert (new.turn.rejected, new.turn.staleness) == ("", 0)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (errors.ClusterMismatch, {"run": "run-2"}, ["ps:0", "'run-1'", "worker:1", "'run-2'"]),
        (errors.VersionError, {"evener": "0.9"}, ["worker:1 runs evener 0.9", "ps:0 runs 0.0-test"]),
        (errors.ModelMismatch, {"recipe": "other 1234"}, ["'other 1234'", "'row "]),
        (errors.ModelMismatch, {"samples": 41}, ["41 training samples", "has 40"]),
    ],
)
def test_who_does_not_belong_is_refused_with_both_values(cluster, kind, changes, named):
    run = cluster(train_steps=99)
    (member,) = run.started(0)
    stranger = run.worker(1)

    error = stranger.refused(stranger.hello(**changes))
    assert type(error) is kind
    assert all(word in error.what for word in named), error.what
    assert member.push(1.0).chief
    assert list(run.leader.links.seats) == [0]


def test_another_model_is_refused_by_the_first_tensor_that_differs(cluster, tmp_path):
    run, other = cluster(), cluster(row_recipe(model=lambda: Row(48)), directory="other")
    theirs = other.built.layout
    stranger = run.worker(0)

    error = stranger.refused(stranger.hello(layout=theirs.fingerprint, specs=codec.pack_specs(theirs.specs)))
    assert isinstance(error, errors.ModelMismatch)
    assert error.what == "'row' is [64] on ps:0, [48] on worker:0"


def test_another_placement_is_refused_with_both_fingerprints(cluster):
    run, other = cluster(), cluster(placement="greedy", directory="other")
    stranger = run.worker(0)

    error = stranger.refused(stranger.hello(layout=other.built.layout.fingerprint))
    assert run.built.layout.fingerprint in error.what
    assert other.built.layout.fingerprint in error.what


def test_a_stranger_cannot_speak_as_a_follower(cluster):
    run = cluster(train_steps=99)
    (member,) = run.started(0)
    stranger = run.worker(1)

    for words in (
        *(Lost(shard, 0, member.identity.epoch) for shard in (0, 1)),  # 0: of no follower, as every worker's link
        *(Held(shard, 0, member.identity.epoch, 1) for shard in (0, 1)),
        *(Saved(shard, 0, {}, b"", "no space") for shard in (0, 1)),
    ):
        assert isinstance(stranger.refused(words), errors.ProtocolError)
    assert member.push(1.0).version == 1


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (errors.ClusterMismatch, {"run": "run-2"}),
        (errors.ModelMismatch, {"layout": "0" * 16}),
        (errors.ProtocolError, {"shard": 2}),
        (errors.ProtocolError, {"shard": 0}),
        (errors.DuplicateTask, {"shard": 1}),
    ],
)
def test_a_follower_that_does_not_belong_is_refused(cluster, kind, changes):
    run = cluster(ps=2)
    stranger = run.worker(0)
    words = msgspec.structs.replace(Follow(1, "run-1", run.built.layout.fingerprint), **changes)

    assert type(stranger.refused(words)) is kind
    assert list(run.leader.links.followers) == [1]


# --- pushes that may not be


def refusal(run, worker, message):
    """The error; and nothing has changed by it."""
    before = (run.step, row(run), list(run.leader.shard.held), run.leader.leases.state())
    error = worker.refused(message, payload=True)
    assert (run.step, row(run), list(run.leader.shard.held), run.leader.leases.state()) == before
    return error


def test_a_push_before_hello_is_refused(cluster):
    run = cluster(train_steps=99)
    stranger = run.worker(0)
    stranger.turn = Released(seq=0, version=0, lease=0)

    error = stranger.refused(stranger.message())  # with tensors the transport itself would close the link
    assert isinstance(error, errors.ProtocolError)
    assert error.what.endswith("speaks as worker:0 without a Hello.")


def test_a_push_before_join_is_refused(cluster):
    run = cluster(train_steps=99)
    (worker,) = [run.worker(0)]
    worker.greet()
    worker.turn = Released(seq=0, version=0, lease=0)

    assert isinstance(refusal(run, worker, worker.message()), errors.ProtocolError)


def test_a_second_join_is_refused(cluster):
    run = cluster(train_steps=99)
    (worker,) = run.started(0)

    assert isinstance(refusal(run, worker, Join(worker.identity)), errors.ProtocolError)
    assert worker.push(1.0).version == 1


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (errors.PushRejected, {"identity": Identity(0, 1, 2)}),  # of another generation
        (errors.ProtocolError, {"identity": Identity(0, 2, 1)}),  # of an epoch that was never granted
        (errors.ProtocolError, {"identity": Identity(1, 1, 1)}),  # of another worker
        (errors.ProtocolError, {"version": 1}),  # from the future
        (errors.ProtocolError, {"lease": 1}),  # of a batch that is not its own
        (errors.ProtocolError, {"lease": -1}),
    ],
)
def test_a_push_of_another_life_or_from_the_future_is_refused(cluster, kind, changes):
    run = cluster(train_steps=99)
    (worker,) = run.started(0)
    worker.fill(7.0)

    assert type(refusal(run, worker, worker.message(**changes))) is kind
    assert worker.push(1.0).version == 1
    assert row(run) == -1.0


def test_a_second_push_while_the_first_waits_is_refused(cluster):
    run = cluster(mode="sync", workers=2, train_steps=99)
    a, b = run.started(0, 1)
    push = a.message()
    a.push(1.0)

    error = refusal(run, a, msgspec.structs.replace(push, seq=2))
    assert isinstance(error, errors.ProtocolError)
    assert "out of turn" in error.what
    assert b.push(3.0).version == 1
    assert row(run) == -2.0


def test_a_push_sent_again_gets_the_same_answer_and_is_applied_once(cluster):
    run = cluster(train_steps=99)
    (worker,) = run.started(0)
    push = worker.message()
    answer = worker.push(4.0)

    assert worker.ask(push, payload=True) == [answer]
    assert row(run) == -4.0
    assert run.step == 1


def test_a_push_sent_again_while_it_waits_is_answered_once(cluster):
    run = cluster(mode="sync", workers=2, train_steps=99)
    a, b = run.started(0, 1)
    push = a.message()
    assert a.push(1.0) is None
    assert a.ask(push, payload=True) == []

    b.push(3.0)
    assert a.listen().seq == 1
    assert row(run) == -2.0


def test_an_old_push_sent_again_is_not_answered(cluster):
    run = cluster(train_steps=99)
    (worker,) = run.started(0)
    push = worker.message()
    worker.push(4.0)
    worker.push(4.0)

    assert worker.ask(push, payload=True) == []
    assert row(run) == -8.0


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_and_names_everything(cluster, poison):
    run = cluster(train_steps=99, save_checkpoint_steps=2)
    a, b = run.started(0, 1)
    a.push(1.0)
    b.views["row"][17] = poison
    told = b.push(loss=0.25)
    assert told.failed
    assert re.fullmatch(
        r"worker:1 pushed the gradient of 'row', which is not finite, at global step 0, "
        r"lease 1 \(samples \d+, .* and 92 more; loss 0\.25\)",
        told.stop,
    )
    a.push(1.0)
    for worker in (a, b):
        worker.leave()
    run.finish()
    assert isinstance(run.leader.ending.failure, errors.NonFinite)
    assert (run.step, row(run)) == (1, -1.0)
    assert saved(run) == [1]  # what was reached before it, nothing of it
    assert set(load(run.leader.setup.saver._store.path(1))[1].parameters["row"].tolist()) == {-1.0}


# --- no silent wait


def test_a_run_in_which_nothing_moves_ends_and_names_what_it_waited_for(cluster):
    run = cluster(mode="sync", workers=2, train_steps=99, stall_timeout=60)
    a, _ = run.started(0, 1)
    a.push(1.0)
    run.tick(59.0)
    assert run.reported(Progress)[-1].waiting_for == (
        "update 1 needs 2 gradients, holds 1 (worker 0), worker 1 is computing"
    )

    with pytest.raises(errors.Stalled) as ended:
        run.tick(2.0)
    assert ended.value.what == (
        "no update for 60 s at step 0: waiting for update 1 needs 2 gradients, holds 1 (worker 0), "
        "worker 1 is computing."
    )


def test_a_run_to_which_nobody_comes_names_all_workers(cluster):
    run = cluster(workers=2, stall_timeout=60)
    assert run.leader.waiting_for() == "worker:0, worker:1 to join"

    with pytest.raises(errors.Stalled, match="waiting for worker:0, worker:1 to join"):
        run.tick(61.0)


def test_every_update_renews_the_time(cluster):
    run = cluster(train_steps=99, stall_timeout=60)
    (worker,) = run.started(0)
    for _ in range(3):
        run.tick(50.0)
        worker.push(1.0)
    run.tick(59.0)


# --- what can be seen


def test_pull_shows_parameters_averages_and_gradients_and_changes_nothing(cluster):
    run = cluster(row_recipe(ema_decay=0.5), mode="sync", workers=2, train_steps=99)
    a, b = run.started(0, 1)
    a.push(1.0)
    b.push(3.0)
    a.listen()

    assert set(b.pull("parameters")["row"].tolist()) == {-2.0}
    assert set(b.pull("gradients")["row"].tolist()) == {2.0}  # the mean of both
    decay = min(0.5, 2 / 11)
    assert b.pull("averages")["row"].tolist() == pytest.approx([-2.0 * (1 - decay)] * 64)
    assert (run.step, row(run)) == (1, -2.0)
    a.push(1.0)
    assert b.push(1.0).version == 2


def test_without_averages_the_parameters_are_shown(cluster):
    run = cluster(train_steps=99)
    (worker,) = run.started(0)
    worker.push(1.0)

    assert set(worker.pull("averages")["row"].tolist()) == {-1.0}
    assert set(worker.pull("gradients")["row"].tolist()) == {1.0}  # its own: nothing was averaged
    assert worker.ask(Pull(worker.identity, "parameters"))[0].version == 1


# --- checkpoints


def saved(run):
    return run.leader.setup.saver._store.steps()


def test_checkpoints_by_steps(cluster):
    run = cluster(train_steps=7, save_checkpoint_steps=3, workers=1)
    (worker,) = run.started(0)
    seen = []
    while not worker.turn.stop:
        worker.push(1.0)
        run.tick()
        seen.append(saved(run))

    assert seen == [[], [], [3], [3], [3], [3, 6], [3, 6, 7]]


def test_checkpoints_by_seconds(cluster):
    run = cluster(train_steps=99, save_checkpoint_secs=60, workers=1, stall_timeout=10_000)
    (worker,) = run.started(0)
    worker.push(1.0)
    run.tick(59.0)
    assert saved(run) == []
    run.tick(1.0)
    run.tick()
    assert saved(run) == [1]
    run.tick(61.0)
    run.tick(61.0)
    assert saved(run) == [1]  # nothing has changed
    worker.push(1.0)
    run.tick()
    assert saved(run) == [1, 2]


def test_at_most_one_checkpoint_is_under_way_and_training_does_not_wait_for_it(cluster):
    run = cluster(train_steps=9, save_checkpoint_steps=1, workers=1)
    (worker,) = run.started(0)
    run.disk.held = True
    for _ in range(4):
        worker.push(1.0)
        run.tick()
    assert len(run.disk.jobs) == 1
    assert saved(run) == []

    run.disk.held = False
    run.disk.work()
    run.tick()
    assert saved(run) == [1]  # what was copied then, not what the parameters are now
    assert load(run.leader.setup.saver._store.path(1))[1].parameters["row"][0] == -1.0
    run.tick()
    assert saved(run) == [1, 4]


def test_the_ledger_says_when_a_checkpoint_is_cut_and_when_it_is_complete(cluster):
    run = cluster(train_steps=9, save_checkpoint_steps=1, workers=1)
    (worker,) = run.started(0)

    def told():
        path = path_of(Path(run.leader.setup.settings.logdir))
        return [line for _, line in read(path) if isinstance(line, Cut | Complete)]

    run.disk.held = True
    worker.push(1.0)
    run.tick()
    assert told() == [Cut(1, 2, [1])]  # lease 1 is out

    run.disk.held = False
    run.disk.work()
    run.tick()
    assert told() == [Cut(1, 2, [1]), Complete(1)]


def test_a_run_to_which_nobody_came_saves_nothing(cluster):
    run = cluster(train_steps=9, save_checkpoint_secs=60)
    run.tick(61.0)
    run.tick()
    run.leader.stop("interrupted", complete=False)
    run.finish()

    assert saved(run) == []


def test_a_checkpoint_holds_leases_seqs_and_counts(cluster):
    run = cluster(mode="async", train_steps=9, save_checkpoint_steps=3)
    a, b = run.started(0, 1)
    a.push(1.0)  # lease 0
    a.push(1.0)  # lease 2
    a.push(1.0)  # lease 3; b still computes 1
    run.tick()

    manifest, _ = load(run.leader.setup.saver._store.path(3))
    assert (manifest.step, manifest.next_lease, manifest.unapplied) == (3, 5, [1, 4])  # 4 is out with a again
    assert manifest.seqs == {"0": (1, 3)}
    assert (manifest.examples, manifest.dropped) == (30, 0)
    assert b.turn.lease == 1


def test_a_resumed_run_counts_on_and_gives_out_what_was_not_applied(cluster):
    first = cluster(train_steps=6, save_checkpoint_steps=3)
    a, b = first.started(0, 1)
    for value in (1.0, 2.0, 4.0):
        a.push(value)
    first.tick()
    b.push(8.0)  # after the checkpoint: lost
    first.close()

    again = cluster(train_steps=6, save_checkpoint_steps=3, before=first)
    assert (again.leader.course.first_step, again.leader.members.seqs) == (3, {0: (1, 3)})
    a, b = again.started(0, 1)
    assert (a.turn.version, a.identity) == (3, Identity(0, epoch=2, generation=2))
    assert row(again) == -7.0
    leases = [a.turn.lease, b.turn.lease]
    while not a.turn.stop:
        a.push(16.0)
        if a.turn is None:  # only b's lease is left
            b.push(16.0)
            a.listen()
        if not a.turn.stop:
            leases.append(a.turn.lease)

    assert leases == [1, 4, 5]
    assert (again.step, row(again)) == (6, -7.0 - 3 * 16.0)


def test_the_checkpoint_that_a_run_goes_on_from_is_let_go_once_it_is_taken_over(cluster):
    """It is as large as the state, and would stay for the whole run."""
    first = cluster(train_steps=6, save_checkpoint_steps=1, ps=2)
    (a,) = first.started(0)
    a.push(1.0)
    first.tick()
    first.close()

    again = cluster(train_steps=6, before=first, ps=2)
    gc.collect()
    assert sum(type(held) is Checkpointed for held in gc.get_objects()) == 2, "one for each ps task"
    again.started(0)
    gc.collect()
    assert not [held for held in gc.get_objects() if type(held) is Checkpointed]


def test_a_push_of_the_generation_before_is_refused(cluster):
    first = cluster(train_steps=6, save_checkpoint_steps=1)
    (a,) = first.started(0)
    a.push(1.0)
    first.tick()
    first.close()

    again = cluster(train_steps=6, before=first)
    (a,) = again.started(0)
    error = refusal(again, a, a.message(identity=msgspec.structs.replace(a.identity, generation=1)))
    assert isinstance(error, errors.PushRejected)
    assert error.what == "worker:0 pushed a gradient of generation 1; the servers are at 2."


def test_a_failed_save_is_told_training_goes_on_and_the_next_one_counts(cluster, monkeypatch):
    run = cluster(train_steps=9, save_checkpoint_steps=2, workers=1)
    (worker,) = run.started(0)
    store = run.leader.setup.saver._store
    with monkeypatch.context() as broken:
        broken.setattr(store, "commit", lambda manifest: (_ for _ in ()).throw(OSError(28, "No space left")))
        worker.push(1.0)
        worker.push(1.0)
        run.tick()
        assert isinstance(run.leader.setup.saver.failure, OSError)
    worker.push(1.0)
    run.tick()
    worker.push(1.0)
    run.tick()

    assert run.leader.setup.saver.failure is None
    assert saved(run)


def test_the_final_checkpoint_that_fails_fails_the_run(cluster, monkeypatch):
    run = cluster(train_steps=1, workers=1)
    (worker,) = run.started(0)
    store = run.leader.setup.saver._store
    monkeypatch.setattr(store, "commit", lambda manifest: (_ for _ in ()).throw(OSError(28, "No space left")))
    worker.push(1.0)
    worker.leave()

    with pytest.raises(errors.CheckpointError, match=r"the final checkpoint was not saved: .*No space left"):
        for _ in range(99):
            run.tick(1.0)


def test_the_final_checkpoint_is_tried_again_while_there_is_time(cluster, monkeypatch):
    run = cluster(train_steps=1, workers=1)
    (worker,) = run.started(0)
    with monkeypatch.context() as broken:
        broken.setattr(
            run.leader.setup.saver._store,
            "commit",
            lambda manifest: (_ for _ in ()).throw(OSError(28, "No space left")),
        )
        worker.push(1.0)
        worker.leave()
        run.tick(1.0)
        assert isinstance(run.leader.setup.saver.failure, OSError)
    run.finish()

    assert saved(run) == [1]


def test_the_final_checkpoint_is_not_tried_again_at_each_tick(cluster, monkeypatch):
    run = cluster(train_steps=1, workers=1)
    (worker,) = run.started(0)
    tries = []

    def commit(manifest):
        tries.append(manifest.step)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(run.leader.setup.saver._store, "commit", commit)
        worker.push(1.0)
        worker.leave()
        for _ in range(30):
            run.tick(0.1)
    run.tick(1.0)
    run.finish()

    assert 2 <= len(tries) <= 5
    assert saved(run) == [1]


def test_a_lost_link_of_a_follower_ends_the_run_by_name(cluster):
    run = cluster(ps=2, train_steps=99)
    run.servers[1].leader.close()

    with pytest.raises(errors.TaskFailed, match="ps:1 is gone"):
        run.look(0)


def test_who_comes_in_the_moment_a_follower_is_lost_is_sent_away_to_come_again(cluster):
    """It would wait for ever else: its arrival was in the batch of news that the lost follower ended."""
    run = cluster(ps=2, train_steps=99)
    run.servers[1].leader.close()
    worker = run.worker(0)
    worker.say(0, worker.hello())

    with pytest.raises(errors.ServerLost):
        run.look(0)
    run.leader.links.close()
    with pytest.raises(errors.PeerGone):
        worker.channels[0].receive(0.0)


def test_when_a_follower_is_lost_all_others_are_told_that_it_was_not_us(cluster):
    run = cluster(ps=3, train_steps=99)
    (worker,) = run.started(0)
    run.servers[1].leader.close()
    with pytest.raises(errors.ServerLost):
        serve(run.leader)

    (told,) = worker.heard()
    assert isinstance(told, Refused) and (told.kind, told.what[:12]) == ("ServerLost", "ps:1 is gone")
    worker.say(2, worker.message(), payload=True)
    with pytest.raises(errors.ServerLost, match="ps:1 is gone"):
        serve(run.servers[2])  # which has something to tell a leader that has hung up
    assert worker.heard(2)[-1] == told


def test_the_followers_are_told_the_generation_and_where_to_begin(cluster):
    run = cluster(ps=2)
    assert run.servers[1].generation == 1
    assert isinstance(Lead(1, 0), Lead)
    assert torch.equal(run.parameters()["row"], torch.zeros(64, dtype=torch.float64))


def lets_go(listener):
    """As a transport between hosts: a payload has memory of its own until its peer is answered."""
    inbox, receive, send = listener.inbox, listener.receive, listener.send
    own = {}

    def arrive():
        events = receive()
        for event in events:
            if isinstance(event, Arrived) and event.payload:
                own[event.peer] = [memoryview(bytearray(view)) for view in inbox(event.peer)]
        return events

    def answer(peer, header, payload=()):
        send(peer, header, payload)
        if payload:
            own[peer] = []

    listener.receive, listener.send, listener.inbox = arrive, answer, lambda peer: own.get(peer, [])


def test_where_payloads_are_let_go_of_the_chief_can_still_see_its_last_gradient_and_the_others_cost_nothing(cluster):
    run = cluster(workers=2, train_steps=99)
    lets_go(run.listeners[0])
    chief, other = run.started(0, 1)
    for number in range(3):
        assert chief.push(1.0 + number).chief
        other.push(7.0)
        assert set(chief.pull("gradients")["row"].tolist()) == {1.0 + number}
    assert [seat.slot is not None for _, seat in sorted(run.leader.links.seats.items())] == [True, False]
    assert row(run) == -(1.0 + 2.0 + 3.0 + 3 * 7.0)
