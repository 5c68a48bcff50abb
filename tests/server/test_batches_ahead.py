"""Workers that prepare a batch while they compute know which one is theirs next, where nobody else could want it."""

from __future__ import annotations

import pytest

from evener import modes
from evener.commands.account import account
from evener.testing import Cluster, Worker, row_recipe
from evener.wire.messages import Join
from evener.worker.exchange.exchange import Computed, Turn
from evener.worker.exchange.in_hand import InHand

ASYNC, SYNC, BOUNDED = modes.Async(), modes.Sync(), modes.Bounded(4)


class Preparing(Worker):
    """Wants one batch besides the one that it computes, as `InHand` does for a data set that is thread-safe."""

    def hello(self, **changes):
        return super().hello(ahead=True, **changes)

    def join(self):
        self.hand = []
        for shard in range(len(self.channels)):
            self.say(shard, Join(self.identity, 2))
        return self.listen()

    def listen(self):
        answer = super().listen()
        if answer is not None:
            self.hand += answer.leases
        return answer

    def push(self, value=None, **changes):
        self.hand.pop(0)
        return super().push(value, want=2, **changes)


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(**options):
        made.append(Cluster(row_recipe(), tmp_path / "run", **{"train_steps": 8} | options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def two(run):
    workers = [Preparing(run, index) for index in range(2)]
    for worker in workers:
        worker.start()
    return workers


@pytest.mark.parametrize("mode", [ASYNC, BOUNDED])
def test_a_worker_has_the_next_batch_in_hand_and_gives_them_in_this_order(mode, cluster):
    run = cluster(mode=mode, train_steps=60)
    one, _ = two(run)
    given = []
    for _ in range(3):
        assert len(one.hand) == 2 and one.turn.lease == one.hand[0]
        given.append(one.turn.lease)
        one.push(1.0)

    assert given == sorted(given) and len(set(given)) == 3


def test_in_lockstep_each_round_is_of_the_same_batches_as_without(cluster):
    run = cluster(mode=SYNC)
    one, other = two(run)
    rounds = []
    while not (one.turn and one.turn.stop):
        rounds.append({one.turn.lease, other.turn.lease})
        assert one.push(1.0) is None
        other.push(1.0)
        one.turn = one.turn or one.listen()

    assert rounds == [{2 * step, 2 * step + 1} for step in range(8)]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (modes.Sync(replicas_to_aggregate=1), {}),
        (modes.Sync(elastic=True), {}),
        (modes.Rennala(gradients_per_update=2), {}),
        (modes.Ringmaster(max_delay=2), {}),
        (modes.Quorum(quorum=1), {}),
        (ASYNC, {"batch_sizes": (10, 10)}),
    ],
)
def test_where_others_could_use_it_or_wait_for_a_rest_a_worker_has_one_batch(mode, options, cluster):
    run = cluster(mode=mode, **options)
    worker = Worker(run, 0)
    worker.hello = lambda **changes: Worker.hello(worker, ahead=True, **changes)
    answer = worker.start()

    assert answer is not None and answer.leases == []


def test_both_batches_of_a_worker_that_is_lost_come_again(cluster):
    run = cluster(mode=ASYNC)
    one, other = two(run)
    one.die()
    run.settle()
    while not other.turn.stop:
        other.push(1.0)
    other.leave()
    run.finish()
    run.close()

    found = account(run.leader.setup.saver._store.directory.parent)
    assert found.clean, str(found)


def test_a_bounded_run_ends_though_one_is_parked_while_the_other_waits_with_a_batch_in_hand(cluster):
    run = cluster(mode=modes.Bounded(0), workers=3, train_steps=3)
    workers = [Preparing(run, index) for index in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(20):
        for worker in workers:
            answer = worker.turn or worker.listen()
            if answer is not None and not answer.stop:
                worker.push(1.0)

    assert run.step == 3


def test_in_lockstep_nobody_takes_ahead_what_a_round_needs_of_those_who_are_away(cluster):
    run = cluster(mode=SYNC, workers=3, train_steps=2, on_nan="skip")
    workers = [Preparing(run, index) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.push(1.0)
    first, *others = workers
    first.turn = first.listen()
    for worker in others:
        worker.die()
    run.settle()
    again = first.push(float("nan"))

    assert again.rejected and len(first.hand) == 1
    others = [Preparing(run, index) for index in (1, 2)]
    assert all(worker.start() is not None for worker in others), "there is a batch for each"
    for worker in [first, *others]:
        worker.push(1.0)
    assert run.step == 2


def test_near_the_end_a_slow_worker_has_nothing_ahead_for_which_all_would_wait(cluster):
    run = cluster(mode=ASYNC, train_steps=100)
    slow, quick = two(run)
    while run.step < 60:  # twenty quick ones in the time of one slow one
        for _ in range(20):
            run.clock.advance(1.0)
            quick.push(1.0)
        slow.push(1.0)

    assert len(slow.hand) == 1, "what is left, the other one does in the time of two of its batches"
    assert len(quick.hand) == 2
    while run.leader.leases.left:
        quick.push(1.0)
    assert len(slow.hand) == 1


class Answering:
    """Servers that give one batch with each answer and name none that is ahead."""

    def __init__(self):
        self.given, self.arrivals, self.want = [], 0, 1

    def start(self):
        return Turn(version=0, lease=0)

    def update(self, computed):
        self.given.append(list(computed.own.leases))
        return Turn(version=len(self.given), lease=len(self.given))


def test_a_worker_that_would_have_one_ahead_takes_what_servers_of_another_mind_give():
    servers = Answering()
    hand = InHand(servers, 1, 1)
    turn = hand.start()
    for _ in range(3):
        assert (turn.batches, list(turn.ahead)) == ([len(servers.given)], [])
        turn = hand.update(Computed(loss=1.0, examples=10, seconds=1.0))

    assert servers.given == [[0], [1], [2]]
