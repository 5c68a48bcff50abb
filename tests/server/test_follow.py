"""Several shards, one decision: every update is the mean of the same whole gradients everywhere, whoever dies when.

Each gradient is poisoned: push number k, in a run's order of sending, is 2**k in every element. With plain descent at
step 1 the parameters are the sum of what was applied, so any mixture of gradients in one update shows in the bits.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from evener import errors
from evener.report import Finished, Status
from evener.server.follow import Follower
from evener.server.shard import Shard
from evener.state.checkpoint import load
from evener.testing import Cluster, Row, Worker, row_recipe
from evener.wire.messages import Goodbye, Granted, Halt, Join, Lost, Pull, Pulled, Push, Released, TooBig
from evener.wire.words import Identity

MODES = {
    "async": {"mode": "async"},
    "bounded": {"mode": "bounded", "staleness": 1},
    "lockstep": {"mode": "sync"},
    "backup": {"mode": "sync", "replicas_to_aggregate": 2},
    "accumulate": {"mode": "sync", "replicas_to_aggregate": 4, "accumulate": True},
    "elastic": {"mode": "sync", "elastic": True},
    "rennala": {"mode": "rennala", "gradients_per_update": 4},
    "ringmaster": {"mode": "ringmaster", "max_delay": 2},
    "softsync": {"mode": "softsync", "gradients_per_update": 3},
    "quorum": {"mode": "quorum", "quorum": 2, "max_delay": 2},
    "quorum with grace": {"mode": "quorum", "quorum": 1, "linger": 0.5},
    "sizes": {"mode": "sync", "batch_sizes": (6, 3, 2)},
    "sizes in async": {"mode": "async", "batch_sizes": (6, 3, 2)},
    "sizes in bounded": {"mode": "bounded", "staleness": 1, "batch_sizes": (6, 3, 2)},
    "by speed": {"mode": "sync", "batch_by_speed": True, "batch_size": 5},
}


class Recorder(Shard):
    """Remembers which pushes each of its updates averaged, and what the parameters were after it."""

    def __init__(self, state, **options):
        super().__init__(state, **options)
        self.updates = []

    def apply(self, handles, factor=None):
        keys = {gradient.push.lease: gradient.key for gradient in (self.held[handle] for handle in handles)}
        pushes = super().apply(handles, factor)
        values = set(self.state.parameters.views[0].tolist())
        self.updates.append(([keys[push.lease] for push in pushes], pushes, values))
        return pushes


class Life:
    """One life of a worker that does what `Servers` does, one message at a time."""

    def __init__(self, cluster: Cluster, index: int, numbers: Iterator[int]) -> None:
        self.worker = Worker(cluster, index)
        self.numbers = numbers
        self.answers: list[Released] = []
        self.over = self.dead = False
        self._story = self._live()

    def go_on(self) -> None:
        """Say the next thing, or look whether what it waits for has come."""
        if not self.over and next(self._story, None) is None:
            self.over = True

    def _live(self) -> Iterator[bool]:
        worker, shards = self.worker, range(len(self.worker.channels))
        for shard in shards:
            worker.say(shard, worker.hello())
            while not (answers := worker.heard(shard)):
                yield True
            (granted,) = answers
            assert isinstance(granted, Granted), granted
            worker.identity = granted.identity
        for shard in shards:
            worker.say(shard, Join(worker.identity))
            yield True
        while not (yield from self._released()).stop:
            number = next(self.numbers)
            worker.pace = float(1 + worker.index)
            while worker.turn.count > 4 and number % 3 == 0:  # too much for its memory
                worker.say(0, TooBig(worker.identity, worker.turn.lease, worker.turn.count))
                yield from self._released(0)
            if worker.turn.stop:
                break
            worker.fill(2.0 ** (number % 50))
            worker.seq += 1
            push = worker.message(seq=worker.seq)
            for shard in reversed(shards):
                worker.say(shard, push, payload=True)
                yield True
        yield from self._evaluated()
        for shard in shards:
            with suppress(errors.PeerGone):  # a follower may have heard of it from the leader
                worker.say(shard, Goodbye(worker.identity))
            yield True
        worker.die()

    def _evaluated(self) -> Iterator[bool]:
        """As a chief does at the end. The answer to each question comes next, nothing before it."""
        for shard in range(len(self.worker.channels)):
            self.worker.say(shard, Pull(self.worker.identity, "parameters"))
            while not (answers := self.worker.heard(shard)):
                yield True
            assert answers == [Pulled("parameters", self.worker.turn.version)], answers

    def _released(self, seq: int | None = None) -> Iterator[bool]:
        """Every shard's release: one each, the same, with the same parameters everywhere."""
        releases = []
        for shard in range(len(self.worker.channels)):
            while not (answers := self.worker.heard(shard)):
                yield True
            assert len(answers) == 1, f"more than one answer: {answers}"
            releases += answers
        assert all(release == releases[0] for release in releases), f"shards answered differently: {releases}"
        assert len(set(self.worker.model_views["row"].tolist())) == 1, "a model of two versions"
        self.worker.turn = releases[0]
        assert self.worker.turn.seq == (self.worker.seq if seq is None else seq)
        self.answers.append(releases[0])
        return releases[0]


class Story:
    """A run in which each choice moves one party by one step; `check` compares the shards."""

    def __init__(self, directory: Path, *, ps: int, follower: type[Follower], **options: object) -> None:
        everything = {"workers": 3, "train_steps": 12, "save_checkpoint_steps": 3, "keep": 99} | options
        recipe = row_recipe(model=lambda: Row(16 * ps + 32), samples=1000)
        self.cluster = Cluster(recipe, directory, ps=ps, follower=follower, shard=Recorder, **everything)
        self.numbers = count()
        self.lives: list[Life] = []
        self.now: dict[int, Life | None] = dict.fromkeys(range(self.cluster.settings.workers))

    def play(self, choices: bytes) -> None:
        """Moves: a worker goes on, a server looks at its mail, a follower hears its leader, a worker dies."""
        workers, shards = len(self.now), len(self.cluster.servers)
        for choice in choices:
            kind, which = divmod(choice, 32)
            if kind <= 3:
                self._go_on(which % workers)
            elif kind <= 5:
                self._look(which % shards)
            elif kind == 6:
                self._hear(1 + which % (shards - 1))
            elif which < 8:
                self._die(which % workers, Random(which).sample(range(shards), shards))
            else:
                self.cluster.tick() if which < 12 else self._look(which % shards)

    def finish(self) -> None:
        """Everybody goes on, in turn, until the run is over; who died comes back."""
        for _ in range(2000):
            if all(server.done for server in self.cluster.servers):
                return
            self.cluster.clock.advance(0.1)  # a chief that died is not waited for for ever
            for worker in self.now:
                self._go_on(worker)
            for shard in range(len(self.cluster.servers)):
                self._look(shard)
            for server in self.cluster.servers:
                if not server.done:
                    server.tick()
        raise AssertionError(f"no end at {self.cluster.versions()}: {self.cluster.leader.waiting_for()}")

    def _go_on(self, index: int) -> None:
        life = self.now[index]
        if life is None and not self.cluster.leader.course.stopping:
            life = self.now[index] = Life(self.cluster, index, self.numbers)
            self.lives.append(life)
        if life is not None:
            life.go_on()

    def _die(self, index: int, order: list[int]) -> None:
        life, self.now[index] = self.now[index], None
        if life is not None:
            life.dead = True
            life.worker.die(order)

    def _look(self, shard: int) -> None:
        if not self.cluster.servers[shard].done:
            self.cluster.look(shard)

    def _hear(self, shard: int) -> None:
        follower = self.cluster.servers[shard]
        if not follower.done:
            follower.hear()

    def check(self) -> None:
        shards = [server.shard for server in self.cluster.servers]
        steps = self.cluster.settings.train_steps
        assert self.cluster.versions() == [steps] * len(shards)
        for step, updates in enumerate(zip(*(shard.updates for shard in shards), strict=True), start=1):
            averaged = {tuple(keys) for keys, _, _ in updates}
            assert len(averaged) == 1, f"update {step} averaged other gradients: {averaged}"
            values = set.union(*(values for _, _, values in updates))
            assert len(values) == 1, f"after update {step} the parameters differ: {values}"
        self._check_account(shards[0])
        self._check_checkpoints(shards[0])
        for server in self.cluster.servers[1:]:
            assert len(server.shard.held) <= len(self.now), "gradients of dead workers are kept"

    def _check_account(self, shard: Recorder) -> None:
        """Each push and each lease once; what a worker was told of its push is what happened to it."""
        applied = [key for keys, _, _ in shard.updates for key in keys]
        assert len(set(applied)) == len(applied), "a push was applied twice"
        leases = [push.lease for _, pushes, _ in shard.updates for push in pushes]
        assert len(set(leases)) == len(leases), "a lease was applied twice"
        if self.cluster.settings.by_samples:
            self._check_samples([pushes for _, pushes, _ in shard.updates])
        elif self.cluster.settings.mode.name != "sync":
            assert sorted(leases) == list(range(len(leases)))
        for life in self.lives:
            worker, epoch = life.worker.identity.worker, life.worker.identity.epoch
            for answer in (answer for answer in life.answers if answer.seq):
                was_applied = (worker, epoch, answer.seq) in applied
                if answer.rejected:
                    assert not was_applied, f"applied, and called dropped: {answer}"
                elif not answer.stop and not life.dead:  # accumulating, it may be released and die before the update
                    assert was_applied, f"neither applied nor called dropped: {answer}"

    def _check_samples(self, updates: list[list[Push]]) -> None:
        """Each once; in lockstep an update is of the same samples whoever lived."""
        samples = [[n for push in pushes for n in range(push.lease, push.lease + push.count)] for pushes in updates]
        flat = [number for numbers in samples for number in numbers]
        assert len(set(flat)) == len(flat), "a sample was applied twice"
        if self.cluster.settings.mode.name == "sync":
            total = self.cluster.settings.plan.total
            assert samples == [list(range(step * total, (step + 1) * total)) for step in range(len(samples))]

    def _check_checkpoints(self, shard: Recorder) -> None:
        directory = Path(self.cluster.settings.logdir) / "checkpoints"
        steps = [int(path.parent.name.removeprefix("step-")) for path in directory.glob("step-*/manifest.json")]
        assert self.cluster.settings.train_steps in steps
        for step in steps:
            _, contents = load(directory / f"step-{step:08d}")
            values = shard.updates[step - 1][2] if step else {0.0}
            assert set(contents.parameters["row"].tolist()) == values, f"the checkpoint of step {step} is mixed"


def tell(choices: bytes, *, ps: int, follower: type[Follower] = Follower, **options: object) -> Story:
    with tempfile.TemporaryDirectory() as directory:
        story = Story(Path(directory), ps=ps, follower=follower, **options)
        with story.cluster:
            story.play(choices)
            story.finish()
            story.check()
            return story


@pytest.mark.parametrize("ps", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, database=None)
@given(choices=st.binary(min_size=100, max_size=300))
def test_every_update_averages_the_same_whole_gradients_on_every_shard(mode, ps, choices):
    tell(choices, ps=ps, **MODES[mode])


def test_the_stories_reach_deaths_drops_and_returns():
    """Else the test above could hold because nothing ever happens."""
    stories = [tell(Random(seed).randbytes(300), ps=2, **MODES["backup"]) for seed in range(10)]
    lives = [life for story in stories for life in story.lives]

    assert max(life.worker.identity.epoch for life in lives) > 2
    assert sum(answer.rejected != "" and not answer.stop for life in lives for answer in life.answers) > 5
    assert sum(life.worker.seq > len(life.answers) - 1 for life in lives if life.answers) > 5  # died while pushing


# --- planted bugs: the property must see them


class AppliesOnArrival(Follower):
    """As if each shard were asked alone: TensorFlow's asynchronous ps."""

    def _push(self, seat, push):
        if push.seq != seat.awaits:
            self.shard.apply([self.shard.hold(push, self.links.gradient(seat))])
            self._holds(seat, push.seq)

    def _follow(self, decided):
        step, self.shard.state.step = self.shard.state.step, decided.version
        super()._follow(msgspec.structs.replace(decided, apply=[], drop=[]))
        self.shard.state.step = step


class AveragesWhatIsHere(Follower):
    """As many gradients as the leader says, but those that came first: TensorFlow's accumulators (SEMANTICS S8)."""

    def _follow(self, decided):
        here = sorted(self._keys, key=self._keys.__getitem__)[: len(decided.apply)]
        for wanted, taken in zip(decided.apply, here, strict=True):
            self._keys[wanted], self._keys[taken] = self._keys[taken], self._keys[wanted]
        super()._follow(decided)


class SavesLater(Follower):
    """Writes its part of a checkpoint at the next update, under the name of the version that was asked for."""

    asked = None

    def _save(self):
        self.asked = self.shard.state.step
        if self.asked == self.settings.train_steps:
            self._save_as_asked()

    def _follow(self, decided):
        super()._follow(decided)
        if self.asked is not None and decided.apply:
            self._save_as_asked()

    def _save_as_asked(self):
        now, self.shard.state.step, self.asked = self.shard.state.step, self.asked, None
        super()._save()
        self.shard.state.step = now


@pytest.mark.parametrize("mutant", [AppliesOnArrival, AveragesWhatIsHere, SavesLater])
def test_a_planted_bug_is_seen(mutant):
    with pytest.raises(AssertionError) as seen:
        for seed in range(20):
            tell(Random(seed).randbytes(200), ps=2, follower=mutant, **MODES["backup"])

    # By the comparison of this file, not by an assert inside the follower.
    assert any(Path(entry.path) == Path(__file__) and entry.name.startswith(("_check", "check", "_released"))
               for entry in seen.traceback)  # fmt: skip


# --- in the order of events


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(**options):
        made.append(Cluster(row_recipe(), tmp_path / "run", shard=Recorder, **({"ps": 2, "train_steps": 99} | options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_push_counts_only_when_every_shard_holds_it(cluster):
    run = cluster(ps=3)
    (worker,) = run.started(0)
    push = worker.message()
    worker.fill(1.0)
    for shard in (2, 0):
        worker.say(shard, push, payload=True)
        run.settle()
        assert run.versions() == [0, 0, 0]
    assert run.leader.waiting_for() == "1 gradient is not yet on ps:1"

    worker.say(1, push, payload=True)
    run.settle()
    assert run.versions() == [1, 1, 1]


def test_a_worker_that_dies_between_two_shards_leaves_nothing(cluster):
    run = cluster()
    dying, other = run.started(0, 1)
    dying.fill(100.0)
    dying.say(1, dying.message(), payload=True)
    run.look(1)
    dying.die()
    run.settle()

    assert [len(server.shard.held) for server in run.servers] == [0, 0]
    assert other.push(1.0).lease == 0  # and its batch goes out again
    assert set(run.parameters()["row"].tolist()) == {-1.0}


def test_a_gradient_that_the_leader_never_heard_of_is_not_kept(cluster):
    run = cluster()
    dying, _ = run.started(0, 1)
    dying.say(1, dying.message(), payload=True)
    dying.die()
    run.look(0)  # knows that it is gone before it knows what ps:1 holds
    run.settle()

    assert [len(server.shard.held) for server in run.servers] == [0, 0]
    assert run.servers[1]._keys == {}
    assert run.leader.whole.waiting_for() == ""


def test_a_worker_whose_link_to_one_shard_breaks_has_left_on_all(cluster):
    run = cluster()
    cut, other = run.started(0, 1)
    cut.channels[1].close()
    run.settle()

    assert [list(server.links.seats) for server in run.servers] == [[1], [1]]
    with pytest.raises(errors.PeerGone):
        cut.channels[0].receive(0.0)
    assert other.push(1.0).chief


def test_the_end_waits_for_a_request_that_is_on_its_way(cluster):
    """Else its worker is answered twice, and takes the second answer for that to its next question."""
    run = cluster(train_steps=1)
    (pushing,), joining = run.started(0), run.worker(1)
    joining.greet()
    joining.say(0, Join(joining.identity))
    run.look(0)
    assert pushing.push(1.0).stop == "reached step 1"
    assert joining.heard(0) == []

    joining.say(1, Join(joining.identity))
    assert joining.listen().stop == "reached step 1"
    assert joining.heard(0) == joining.heard(1) == []


def test_a_push_on_its_way_when_the_run_ends_is_dropped_and_answered_once(cluster):
    run = cluster()
    a, b = run.started(0, 1)
    a.fill(100.0)
    a.say(0, a.message(), payload=True)
    run.settle()
    b.ask(Halt(b.identity, "enough"))
    assert a.heard(0) == a.heard(1) == []

    a.say(1, a.message(), payload=True)
    assert a.listen().rejected == "enough"
    assert set(run.parameters()["row"].tolist()) == {0.0}


def test_a_push_sent_again_to_a_follower_is_answered_again_and_applied_once(cluster):
    run = cluster()
    (worker,) = run.started(0)
    push = worker.message()
    answer = worker.push(1.0)

    assert worker.ask(push, payload=True, shard=1) == [answer]
    assert worker.push(1.0).version == 2
    assert worker.ask(push, payload=True, shard=1) == []  # older than the last: nobody waits for it
    assert set(run.parameters()["row"].tolist()) == {-2.0}
    assert run.leader.whole.waiting_for() == ""


def test_a_push_sent_again_while_it_waits_changes_nothing(cluster):
    run = cluster(mode="sync")
    a, b = run.started(0, 1)
    push = a.message()
    assert a.push(1.0) is None
    assert a.ask(push, payload=True, shard=1) == []

    b.push(3.0)
    assert a.listen().version == 1
    assert set(run.parameters()["row"].tolist()) == {-2.0}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (errors.PushRejected, {"identity": Identity(0, 1, 9)}),
        (errors.ProtocolError, {"identity": Identity(0, 2, 1)}),
        (errors.ProtocolError, {"identity": Identity(1, 1, 1)}),
        (errors.ProtocolError, {"seq": 2}),
        (errors.ProtocolError, {"seq": 2, "lease": 7}),
        (errors.ProtocolError, {"seq": 2, "version": 1}),
    ],
)
def test_a_follower_refuses_a_push_of_another_life_or_out_of_turn(cluster, kind, changes):
    run = cluster(mode="sync")
    a, b = run.started(0, 1)
    push = a.message()
    a.push(1.0)

    assert type(a.refused(msgspec.structs.replace(push, **changes), payload=True, shard=1)) is kind
    b.push(3.0)
    assert a.listen().version == 1
    assert set(run.parameters()["row"].tolist()) == {-2.0}


def test_a_follower_knows_nobody_whom_the_leader_did_not_admit(cluster):
    run = cluster()
    stranger = run.worker(0)
    assert "only ps:0 grants them" in stranger.refused(stranger.hello(), shard=1).what
    stranger.identity = Identity(0, 1, 1)
    stranger.turn = Released(seq=0, version=0, lease=0)
    for words in (Join(stranger.identity), stranger.message()):
        assert "without a Hello" in stranger.refused(words, shard=1).what
    assert "to a following ps" in stranger.refused(Halt(stranger.identity, "stop"), shard=1).what


def test_a_follower_fences_an_older_life_and_forgets_it_when_the_newer_comes(cluster):
    run = cluster()
    (old,) = run.started(0)
    old.channels[0].close()
    run.look(0)  # ps:1 has not heard that the old life is over
    new = run.worker(0)
    (granted,) = new.ask(new.hello())
    new.identity = granted.identity
    assert isinstance(new.ask(new.hello(), shard=1)[0], Granted)

    wakes = run.worker(0)
    wakes.identity = old.identity
    assert isinstance(wakes.refused(wakes.hello(), shard=1), errors.Fenced)


def test_a_second_join_and_a_push_before_the_first_are_refused_by_followers_too(cluster):
    run = cluster()
    (member,) = run.started(0)
    assert "joined twice" in member.refused(Join(member.identity), shard=1).what
    hasty = run.worker(1)
    hasty.greet()
    hasty.turn = Released(seq=0, version=0, lease=0)
    assert "out of turn" in hasty.refused(hasty.message(), payload=True, shard=1).what
    assert member.push(1.0).version == 1


def test_a_gradient_that_is_not_finite_on_a_follower_ends_the_run_at_the_leader_who_saves_it(cluster):
    run = cluster()
    (worker,) = run.started(0)
    worker.views["row"][-1] = math.nan
    told = worker.push()
    assert told.failed
    assert re.match(
        r"worker:0 pushed the gradient of 'row\[32:64\]', which is not finite, .*step 0, lease 0", told.stop
    )
    worker.leave()
    with pytest.raises(errors.TaskFailed, match="which is not finite"):
        run.finish()
    assert isinstance(run.leader.ending.failure, errors.NonFinite)
    assert run.versions() == [0, 0]


def test_a_follower_without_its_leader_says_so(cluster):
    run = cluster()
    run.leader.links.close()

    with pytest.raises(errors.TaskFailed, match="ps:0 is gone"):
        run.look(1)


def test_a_leader_that_takes_no_messages_is_lost_though_its_link_is_there(cluster, monkeypatch):
    run = cluster()
    run.started(0)

    def send(header):
        raise errors.PeerGone("ps:0 has not read its messages for 30 s.")

    monkeypatch.setattr(run.servers[1].leader, "send", send)
    with pytest.raises(errors.ServerLost, match="ps:0 is gone") as lost:
        run.servers[1]._tell(Lost(1, 0, 1, "it left"))
    assert "could not reach it" in lost.value.why


def test_the_end_of_the_run_is_heard_even_by_a_follower_that_has_something_to_tell(cluster):
    run = cluster(train_steps=1)
    (worker,) = run.started(0)
    worker.push(1.0)
    for shard in (0, 1):
        worker.say(shard, Goodbye(worker.identity))
    run.settle()
    for _ in range(10):
        run.leader.tick()
        if run.leader.done:
            break
        run.servers[1].tick()
        run.settle()
    run.leader.close()
    run.leader.links.close()
    assert run.leader.done and not run.servers[1].done
    run.servers[1]._tell(Lost(1, 0, 1, "it left"))
    assert run.servers[1].done


def test_pull_shows_the_same_update_on_all_shards(cluster):
    run = cluster(mode="sync")
    a, b = run.started(0, 1)
    a.push(1.0)
    b.push(3.0)
    a.listen()

    assert set(a.pull("gradients")["row"].tolist()) == {2.0}
    assert set(a.pull("parameters")["row"].tolist()) == {-2.0}


def test_a_follower_reports_where_it_stands(cluster):
    run = cluster()
    (worker,) = run.started(0)
    worker.push(1.0)
    run.tick(0.3)

    assert run.reported(Status)[-1] == Status("ps:1", "serving", 1)


def test_a_shard_that_cannot_save_spoils_the_checkpoint_not_the_run(cluster, monkeypatch):
    run = cluster(save_checkpoint_steps=1)
    (worker,) = run.started(0)
    with monkeypatch.context() as broken:
        broken.setattr(run.servers[1]._store, "write_shard", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        worker.push(1.0)
        run.tick()
        run.tick()
    assert "ps:1 could not save: [Errno 28] No space" in str(run.leader.setup.saver.failure)

    assert worker.push(1.0).version == 2
    run.tick()
    run.tick()
    assert run.leader.setup.saver.newest.endswith("step-00000002")


@pytest.mark.parametrize("ps", [1, 3])
def test_a_checkpoint_of_two_shards_goes_on_with_another_number(cluster, tmp_path, ps):
    first = cluster(ps=2, train_steps=4, save_checkpoint_steps=2)
    a, b = first.started(0, 1)
    for worker in (a, b):
        worker.push(1.0)
    first.tick()
    first.tick()
    first.close()

    with Cluster(row_recipe(), tmp_path / "run", before=first, ps=ps, train_steps=4) as again:
        (worker,) = again.started(0)
        assert (worker.turn.version, set(worker.model_views["row"].tolist())) == (2, {-2.0})
        worker.push(1.0)
        assert worker.push(1.0).stop
        worker.leave()
        again.finish()
        assert again.versions() == [4] * ps
        assert set(again.parameters()["row"].tolist()) == {-4.0}
        assert again.reported(Finished)[0].first_step == 2
