"""Shard 0 and the others as a user's own training loop sees them."""

import json

import pytest
import torch

from evener import errors
from evener.commands.account import account
from evener.ledger import path_of
from evener.ledger.lines import Skipped, Update
from evener.ledger.reading import read
from evener.report import Finished, Line, Progress
from evener.testing import Cluster, Scripted, row_recipe
from evener.wire.messages import Draw, Goodbye, Join
from evener.wire.words import Identity


@pytest.fixture
def cluster(tmp_path):
    """Makes clusters of a script of 13 batches; each is closed at the end."""
    made = []

    def make(recipe=None, *, directory="run", batches=13, **options):
        everything = {"script": "loop.py", "batch_size": 1, **options}
        made.append(Cluster(recipe or row_recipe(), tmp_path / directory, batches=batches, **everything))
        return made[-1]

    yield make
    for one in made:
        one.close()


def row(cluster):
    values = set(cluster.parameters()["row"].tolist())
    assert len(values) == 1, f"parameters differ: {values}"
    return values.pop()


def updates(cluster):
    """The leases of each update, as the ledger has them."""
    lines = [line for _, line in read(path_of(cluster.leader.rounds.ledger._path.parent))]
    return [[entry[0] for entry in line.entries] for line in lines if isinstance(line, Update)]


def ended(cluster, *workers):
    """All leave their loops; the audit of what the ledger says."""
    logdir = cluster.leader.rounds.ledger._path.parent
    for worker in workers:
        worker.leave()
    cluster.finish()
    (finished,) = cluster.reported(Finished)
    assert finished.reason == "every worker has left its loop"
    found = account(logdir)
    assert found.clean, str(found)
    return found


shards = pytest.mark.parametrize("ps", [1, 2])


# --- leases


@shards
@pytest.mark.parametrize("mode", ["async", "bounded"])
def test_a_worker_has_as_many_in_hand_as_it_wants_and_goes_on_with_none(cluster, mode, ps):
    run = cluster(workers=1, mode=mode, ps=ps, batches=5)
    (worker,) = run.scripted(0, want=3)

    assert worker.hand == [0, 1, 2]
    assert worker.push(1.0).leases == []  # the rest of an epoch is not taken ahead: at most half of what is left
    assert worker.push(1.0, leases=[2]).leases == []
    assert worker.push(1.0).leases == [3]
    release = worker.push(1.0, leases=[])
    assert (release.lease, release.leases, release.version) == (3, [], 4)
    assert worker.draw(2).leases == [4]
    assert worker.push(1.0, leases=[4]).lease == 3


def test_the_first_in_hand_is_named_and_the_ledger_has_each(cluster):
    run = cluster(workers=1, batches=40)
    (worker,) = run.scripted(0, want=3)
    release = worker.push(2.0, leases=[0, 1])
    assert (release.lease, release.leases, release.version) == (2, [3, 4], 1)
    assert updates(run) == [[0, 1]]
    assert row(run) == -2.0


@shards
def test_in_lockstep_round_r_is_of_the_same_leases_however_many_are_in_hand(cluster, ps):
    run = cluster(mode="sync", workers=2, ps=ps, batches=13)
    a, b = run.scripted(0, 1, want=3)
    assert (a.hand, b.hand) == ([0], [1])
    for _ in range(6):
        a.push(1.0)
        b.push(3.0)
        a.listen()
    assert (a.hand, b.hand) == ([12], [])
    assert b.turn.lease == -1 and not b.turn.stop
    assert b.draw(wait=True) is None
    assert run.leader.waiting_for() == "worker:1 has finished epoch 1 and waits for worker:0 to give lease 12 (0 s)"
    assert a.push(5.0).leases[:1] == [13]  # the last round is shorter: the mean of what there is
    assert b.drawn_since().leases[:1] == [14]
    assert (b.drawn.version, run.versions()) == (7, [7] * ps)
    assert row(run) == -6 * 2.0 - 5.0
    a.push(1.0)
    b.push(3.0)
    assert updates(run) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12], [13, 14]]


@shards
@pytest.mark.parametrize("mode", ["async", "bounded"])
def test_who_was_the_last_but_one_of_an_epoch_has_its_parameters_before_the_next(cluster, mode, ps):
    run = cluster(mode=mode, workers=2, ps=ps, batches=2)
    a, b = run.scripted(0, 1)
    assert a.push(1.0).leases == []  # the other batch is b's
    assert b.push(3.0).leases == [2]
    drawn = a.draw(1)  # it is to have what b has given: a worker fetches what is newer than its own
    assert (drawn.leases, drawn.version) == ([3], 2)
    assert a.push(1.0).version == 3


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"leases": [7]}, "names leases"),
        ({"leases": [0, 0]}, "names leases"),
        ({"version": 1}, "out of turn"),
        ({"count": 10}, "out of turn"),
    ],
)
def test_what_is_not_in_hand_cannot_be_named(cluster, changes, complaint):
    run = cluster(workers=1)
    (worker,) = run.scripted(0)
    error = worker.refused(worker.message(**changes), payload=True)
    assert isinstance(error, errors.ProtocolError) and complaint in str(error)


def test_who_waits_neither_pushes_nor_draws(cluster):
    run = cluster(mode="sync", workers=2)
    a, b = run.scripted(0, 1)
    a.push(1.0)
    assert isinstance(a.refused(Draw(a.identity, 1)), errors.ProtocolError)
    assert isinstance(b.refused(Draw(b.identity, 1, unused=[0])), errors.ProtocolError)
    assert isinstance(b.refused(Draw(b.identity, 1, wait=True)), errors.ProtocolError)


def test_a_recipe_does_not_draw(cluster):
    run = cluster(script="", workers=1, train_steps=3, batches=40)
    (worker,) = run.started(0)
    assert isinstance(worker.refused(Draw(worker.identity, 1)), errors.ProtocolError)


@shards
@pytest.mark.parametrize(
    "changes", [{"more": [7]}, {"group": 1}, {"settings": b"[{}]"}, {"script": b"1"}, {"loss": None}, {"spread": True}]
)
def test_a_recipe_pushes_nothing_that_only_scripts_do(cluster, changes, ps):
    run = cluster(script="", workers=1, ps=ps, train_steps=3, batches=40)
    (worker,) = run.started(0)
    for shard in range(ps):
        refused = worker.refused(worker.message(**changes), payload=True, shard=shard)
        assert isinstance(refused, errors.ProtocolError)
    assert run.step == 0


@shards
def test_a_recipe_has_samples(cluster, ps):
    run = cluster(script="", workers=1, ps=ps, train_steps=3, batches=40)
    worker = run.worker(0)
    for shard in range(ps):
        refused = worker.refused(worker.hello(samples=0, identity=Identity(0, shard)), shard=shard)
        assert "no training samples" in str(refused)


@shards
def test_the_hand_of_a_worker_that_dies_goes_to_who_waits_for_a_batch(cluster, ps):
    run = cluster(workers=2, ps=ps, batches=4)
    a, b = run.scripted(0, 1)
    for _ in range(2):
        b.push(1.0)
    assert b.hand == [3] and a.hand == [0]
    b.push(1.0)
    assert b.draw(wait=True) is None
    a.die()
    run.settle()
    assert b.drawn_since().leases == [0]
    assert b.push(1.0).leases == [4]  # the epoch is over
    assert updates(run) == [[1], [2], [3], [0]]


@shards
def test_accumulating_over_three_batches_with_a_rest_of_one(cluster, ps):
    run = cluster(workers=1, ps=ps, batches=7)
    (worker,) = run.scripted(0)
    for value in (1.0, 2.0):
        while len(worker.hand) < 3:
            assert worker.draw(3).leases
        worker.push(value, leases=worker.hand)
    assert worker.hand == [6]
    assert worker.draw(3).leases == []
    assert worker.draw(wait=True, unused=[6]).leases == [7]
    lines = [line for _, line in read(path_of(run.leader.rounds.ledger._path.parent)) if isinstance(line, Skipped)]
    assert lines == [Skipped(6, 2, "its script took no step with it")]
    found = ended(run, worker)
    assert "1 batch given up, with no update: lease 6" in str(found)
    assert (found.updates, found.gradients, found.examples) == (2, 2, 6)


def test_batches_without_numbers_have_no_leases_and_no_deadline(cluster):
    run = cluster(workers=2, mode="sync", batches=0, stall_timeout=30.0)
    a, b = run.scripted(0, 1)
    assert (a.turn.lease, a.turn.leases) == (-1, [])
    assert a.draw(5, wait=True).leases == []
    for _ in range(3):
        a.push(1.0)
        b.push(2.0)
        a.listen()
    run.tick(100.0)
    assert row(run) == -4.5
    assert "3 updates, batches without numbers" in str(ended(run, a, b))


# --- who is waited for


def test_elastic_lockstep_gives_a_late_ones_batch_away_and_takes_nothing_twice(cluster):
    run = cluster(mode="sync", workers=2, replicas_to_aggregate=1, batches=8)
    a, b = run.scripted(0, 1)
    a.push(1.0)  # b is late: its batch goes to a
    assert a.hand == [1]
    a.push(1.0)
    answer = b.push(9.0)
    assert answer.rejected.startswith("computed at version 0")
    assert b.hand == [3]
    assert row(run) == -2.0


def test_what_was_given_away_and_is_pushed_later_is_not_taken(cluster):
    run = cluster(mode="sync", workers=2, replicas_to_aggregate=1, batches=8)
    a, b = run.scripted(0, 1)
    a.push(1.0)
    assert a.hand == [1]
    answer = b.push(9.0, leases=[])  # late, and without its batch, as for a second optimizer
    assert answer.rejected and answer.lease == 1
    b.hand = [1]
    assert b.push(9.0).rejected == "its batch 1 was given to another worker meanwhile"
    assert row(run) == -1.0


@shards
@pytest.mark.parametrize("order", ["a b", "b a", "a, then b comes", "b, then a comes"])
def test_in_lockstep_who_asks_first_for_more_gets_the_same(cluster, order, ps):
    """Loaders with processes ask for several batches when a pass begins, and so does a program that accumulates."""
    run = cluster(mode="sync", workers=2, ps=ps, batches=16)
    if order.endswith("comes"):
        workers = {}
        for index in (0, 1) if order.startswith("a") else (1, 0):
            (workers[index],) = run.scripted(index)
            workers[index].draw(4)
    else:
        workers = dict(enumerate(run.scripted(0, 1)))
        for index in (0, 1) if order.startswith("a") else (1, 0):
            workers[index].draw(4)
    a, b = workers[0], workers[1]
    assert (a.hand, b.hand) == ([0, 2, 4, 6], [1, 3, 5, 7])
    for _ in range(4):
        a.push(1.0)
        b.push(3.0)
        a.listen()
    assert updates(run) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_what_a_worker_was_given_because_another_one_asked_it_hears_with_its_next_answer(cluster):
    run = cluster(mode="sync", workers=2, batches=16)
    a, b = run.scripted(0, 1)
    a.draw(3)
    assert (a.hand, b.hand) == ([0, 2, 4], [1])
    b.push(1.0)
    a.push(3.0, leases=[0, 2, 4])
    b.listen()
    assert b.hand == [3, 5]
    assert updates(run) == [[1, 0, 2, 4]] or updates(run) == [[0, 2, 4, 1]]


def test_who_finishes_its_pass_when_the_chief_has_left_does_not_validate_again(cluster):
    run = cluster(workers=2, batches=2)
    a, b = run.scripted(0, 1)
    assert not b.push(1.0).chief
    assert a.push(1.0).chief
    a.leave()
    assert not b.draw(1).chief
    b.hand = b.hand or b.draw(1, wait=True).leases
    assert b.push(1.0).chief  # it trains on
    assert b.draw(1).chief


def test_who_has_given_its_gradient_gets_no_other_batches_for_that(cluster):
    """b has given its own when a asks; had it not, it would have the same in hand."""
    run = cluster(mode="sync", workers=2, batches=9)
    a, b = run.scripted(0, 1, want=2)
    b.draw(2)
    b.push(1.0)
    a.draw(2)
    a.push(1.0)
    b.listen()
    assert (a.hand, b.hand) == ([2, 4], [3, 5])


def test_nobody_waits_for_a_batch_that_it_was_given(cluster):
    run = cluster(mode="sync", workers=2, batches=16)
    a, b = run.scripted(0, 1)
    a.draw(2)
    assert b.draw(wait=True, unused=[1]).leases == [3]
    b.push(1.0)
    a.push(1.0)
    assert row(run) == -1.0
    a.leave()
    b.leave()
    run.finish()


def test_who_has_left_its_loop_is_not_waited_for_and_who_was_killed_is(cluster):
    run = cluster(mode="sync", workers=3, batches=40)
    a, b, c = run.scripted(0, 1, 2)
    c.leave()
    a.push(1.0)
    b.push(3.0)
    assert row(run) == -2.0
    b.die()
    run.settle()
    a.listen()
    a.push(1.0)
    assert "the loop has ended of worker 2" in run.leader.waiting_for()
    assert row(run) == -2.0
    (b,) = run.scripted(1)
    b.push(1.0)
    assert row(run) == -3.0
    a.listen()
    assert ended(run, a, b).updates == 2


def test_no_deadline_between_two_epochs_and_without_a_batch(cluster):
    run = cluster(workers=2, batches=2, stall_timeout=100.0)
    a, b = run.scripted(0, 1)
    a.push(1.0)
    run.tick(90.0)
    a_waits = a.draw(wait=True)
    assert a_waits is None
    assert b.push(1.0).lease >= 2
    assert a.drawn_since().leases
    run.tick(1000.0)  # both validate
    assert set(run.leader.links.seats) == {0, 1}
    a.push(1.0)
    b.push(1.0)
    a.push(1.0)


def test_a_batch_that_takes_too_long_in_an_epoch_goes_to_who_waits_for_it(cluster):
    run = cluster(workers=2, batches=3, stall_timeout=100.0)
    a, _ = run.scripted(0, 1)
    a.push(1.0)
    a.push(1.0)
    assert a.draw(wait=True) is None
    run.tick(99.0)
    assert a.drawn_since() is None
    run.clock.advance(0.9)
    run.tick(1.0)
    assert a.drawn_since().leases == [1]
    assert set(run.leader.links.seats) == {0}


# --- several optimizers


@shards
def test_two_optimizers_in_lockstep_and_one_that_comes_back_in_the_middle(cluster, ps):
    run = cluster(mode="sync", workers=2, ps=ps, batches=20)
    a, b = run.scripted(0, 1)
    for worker in (a, b):
        worker.push(1.0, group=0)
    a.listen()
    a.push(10.0, group=1, leases=[])
    b.die()
    run.settle()
    (b,) = run.scripted(1)
    b.push(5.0, group=0)  # nobody else is at the first one now
    assert b.turn is not None and b.turn.rejected == "its script is at another optimizer than the others"
    b.push(30.0, group=1, leases=[])
    a.listen()
    assert run.versions() == [2] * ps
    assert row(run) == -1.0 - 20.0
    assert run.leader.course.counted == 1


def test_train_steps_count_updates_of_the_first_optimizer_and_go_on_after_a_resume(cluster):
    run = cluster(workers=1, train_steps=2, batches=9, save_checkpoint_steps=1)
    (worker,) = run.scripted(0)
    worker.push(1.0, script=b'{"epoch":0}')
    worker.push(1.0, group=1, leases=[])
    run.tick()
    run.close()
    run = cluster(workers=1, train_steps=2, batches=9, before=run)
    (worker,) = run.scripted(0)
    assert (run.step, worker.script, worker.hand) == (2, b'{"epoch":0}', [1])
    assert not worker.push(1.0, group=1, leases=[]).stop
    assert worker.push(1.0).stop == "reached step 2"
    assert worker.push(1.0, leases=[]).stop == "reached step 2"  # its script goes on
    assert worker.draw(3, wait=True).stop == "reached step 2"
    assert (run.step, row(run)) == (4, -4.0)
    run.tick(11.0)
    run.finish()
    assert not run.reported(Finished)[0].reason.startswith("worker")


def test_several_optimizers_and_accumulate_are_refused(cluster):
    run = cluster(mode="sync", workers=1, replicas_to_aggregate=3, accumulate=True)
    (worker,) = run.scripted(0)
    assert "several optimizers" in str(worker.refused(worker.message(leases=[0], group=1), payload=True))


# --- settings, and what a script keeps


@shards
def test_settings_count_from_the_update_that_brings_them_whoever_comes_next(cluster, ps):
    def momentum(model):
        return torch.optim.SGD(model.parameters(), lr=torch.tensor(1.0), momentum=0.0)

    run = cluster(row_recipe(optimizer=momentum), workers=2, ps=ps)
    a, b = run.scripted(0, 1)
    a.push(1.0, settings=json.dumps([{"lr": 0.5}]).encode())
    assert row(run) == -0.5
    b.push(1.0)
    assert row(run) == -1.0  # b has said nothing: the chief's program decides, and a is the chief
    b.push(1.0, settings=json.dumps([{"lr": 2.0}]).encode())
    a.push(1.0)
    assert row(run) == -5.0
    for server in run.servers:
        assert isinstance(server.shard.state.optimizer.param_groups[0]["lr"], torch.Tensor)


def test_tuples_stay_tuples(cluster):
    run = cluster(row_recipe(optimizer=lambda model: torch.optim.Adam(model.parameters())), workers=1)
    (worker,) = run.scripted(0)
    worker.push(1.0, settings=b'[{"lr":0.25,"betas":[0.5,0.75],"amsgrad":false,"foreach":null}]')
    group = run.leader.shard.state.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.25, (0.5, 0.75))


@pytest.mark.parametrize(
    "settings",
    [b"[]", b"[{}, {}]", b'[{"speed": 1}]', b'[{"params": []}]', b'[{"lr": "fast"}]', b'[{"lr": true}]', b"{", b"\xff",
     b'[{"lr": 1e999}]', b'[{"nesterov": 1}]', b'[{"lr": [1]}]'],
)  # fmt: skip
@shards
def test_settings_that_do_not_fit_are_refused_by_each_shard(cluster, settings, ps):
    run = cluster(workers=1, ps=ps)
    (worker,) = run.scripted(0)
    for shard in range(ps):
        push = worker.message(leases=[0], settings=settings)
        error = worker.refused(push, payload=True, shard=shard)
        assert isinstance(error, errors.ProtocolError) and "worker:0 set what the optimizer has not" in str(error)


@shards
def test_what_the_chief_keeps_is_told_to_new_lives_and_where_it_says_so_to_all(cluster, ps):
    run = cluster(workers=3, ps=ps)
    a, b = run.scripted(0, 1)
    a.push(1.0, script=b'{"epoch":1}')
    b.push(1.0, script=b'{"epoch":7}')  # not the chief
    assert b.script == b""
    (c,) = run.scripted(2)
    assert c.script == b'{"epoch":1}'
    a.push(1.0, script=b'{"epoch":2}', spread=True)
    assert b.draw(2).script == b'{"epoch":2}'
    assert c.push(1.0).script == b'{"epoch":2}'
    assert c.push(1.0).script == b""
    assert a.script == b""


@pytest.mark.parametrize("script", [b"{", b"\xff", b"[" * 80 + b"]" * 80, b'"' + b"x" * 70_000 + b'"'])
def test_what_no_checkpoint_could_keep_is_refused(cluster, script):
    run = cluster(workers=1)
    (worker,) = run.scripted(0)
    assert isinstance(worker.refused(worker.message(script=script), payload=True), errors.ProtocolError)
    assert worker.push(1.0, leases=[0]).version == 1


# --- the end, and what is told


@shards
def test_the_run_is_over_when_all_have_left_their_loops(cluster, ps):
    run = cluster(workers=2, ps=ps, batches=4)
    a, b = run.scripted(0, 1)
    for worker in (a, b, a, b):
        worker.push(1.0)
    a.leave()
    run.tick()
    assert not run.leader.course.stopping
    found = ended(run, b)
    assert (found.epochs, found.broken, found.updates) == (1, (), 4)
    assert run.leader.rounds.chief.final in (None, -1)


def test_a_worker_that_failed_has_not_left_its_loop(cluster):
    run = cluster(workers=2)
    a, b = run.scripted(0, 1)
    b.leave()
    a.leave("Preempted: the machine is taken")
    run.tick()
    assert not run.leader.course.stopping
    (a,) = run.scripted(0)
    a.ask(Goodbye(a.identity, "ValueError: no", failed=True))
    assert run.leader.course.failed


def test_a_loss_that_is_not_known_is_told_as_such(cluster):
    run = cluster(workers=1, batches=13, spike=2.0)
    (worker,) = run.scripted(0)
    for _ in range(30):
        worker.push(1.0)
    run.tick(1.0)
    assert str(run.reported(Progress)[-1].loss) == "nan"
    assert run.reported(Progress)[-1].train_steps == 0
    worker.push(0.0, loss=3.0)
    run.tick(1.0)
    assert run.reported(Progress)[-1].loss == 3.0


def test_a_bad_gradient_of_a_script_is_told_by_epoch_and_batch(cluster):
    run = cluster(workers=1, batches=4, on_nan="skip")
    (worker,) = run.scripted(0)
    for _ in range(5):
        worker.push(1.0)
    assert worker.push(float("nan")).lease == 5
    assert worker.push(float("nan")).lease == 6
    lines = [line.text for line in run.reported(Line) if "pushed" in line.text]
    assert "at global step 5, lease 5 (epoch 2, batch 2 of 4)" in lines[0]
    worker.push(1.0, leases=[6])
    worker.push(1.0)
    assert worker.hand[0] >= 8  # the epoch has not grown
    assert ended(run, worker).skipped == ((5, 6),)


def test_joining_twice_or_a_strangers_number_of_batches_is_refused(cluster):
    run = cluster(workers=2)
    (a,) = run.scripted(0)
    assert isinstance(a.refused(Join(a.identity)), errors.ProtocolError)
    b = Scripted(run, 1)
    assert "12 batches" in str(b.refused(b.hello(samples=12)))


# --- workers that come and go


def test_an_elastic_run_is_over_when_enough_loops_have_ended_though_one_worker_never_came_back(cluster):
    run = cluster(workers="2..3", mode="async")
    a, b, c = run.scripted(0, 1, 2)
    c.die()
    run.settle()
    a.leave()
    assert not run.leader.course.stopping
    b.leave()
    assert run.leader.course.stopping == "every worker has left its loop"


def test_the_last_one_is_waited_for_if_it_was_lost_before_its_loop_ended(cluster):
    run = cluster(workers="1..2", mode="async")
    a, b = run.scripted(0, 1)
    a.leave()
    b.die()
    run.settle()
    assert not run.leader.course.stopping
