"""A worker's links to its servers: nothing is waited for in silence, and every failure says whose it is."""

import math
import threading
import time

import pytest
import torch
from torch import nn

from evener import errors, transport
from evener.data.dataset import Data, Tensors
from evener.recipes.recipe import Recipe
from evener.report import Line, Status
from evener.server.serve import serve
from evener.state.tensors import whole_views
from evener.testing import EVENER, RUN, Clock, Cluster, row_recipe
from evener.transport.channel import MAX_HEADER, Memory
from evener.wire import codec
from evener.wire.layout import Layout, Spec
from evener.wire.messages import Goodbye, Granted, Halt, Hello, Join, Pull, Pulled, Push, Refused, Released
from evener.wire.words import Identity
from evener.worker.exchange.exchange import Computed
from evener.worker.exchange.server_links import ServerLinks
from evener.worker.exchange.servers import Servers

SILENT = None
GONE = errors.PeerGone("the link broke.")


class Script:
    """The link to one server that answers what a test wrote down; silence costs the time that was asked for."""

    def __init__(self, shard, clock, said):
        self.shard, self.clock, self.said = shard, clock, said
        self.answers = []
        self.closed = self.broken = False

    def send(self, header, *, payload=False):
        if self.broken:
            raise GONE
        self.said.append((self.shard, codec.decode(header), payload))

    def receive(self, timeout):
        answer = self.answers.pop(0) if self.answers else SILENT
        if isinstance(answer, errors.PeerGone):
            raise answer
        if answer is SILENT:
            self.clock.advance(timeout)
            return None
        return codec.encode(answer)

    def close(self):
        self.closed = True


class World:
    """A worker with two scripted servers. A link that is opened when none is left finds nobody."""

    def __init__(self, shards=2):
        self.clock, self.reports, self.said = Clock(), [], []
        self.links = [Script(shard, self.clock, self.said) for shard in range(shards)]
        self.free = list(self.links)
        self.addresses, self.dialled = [f"memory:{shard}" for shard in range(shards)], []
        layout = Layout([Spec("row", (64,), "float32", True)], shards=shards)
        hello = Hello(Identity(3), RUN, EVENER, "row", layout.fingerprint, b"", 40, "here", 812)
        self.gradients = Memory(layout.nbytes)
        self.row = whole_views(layout, self.gradients.view)["row"]
        links = ServerLinks(
            "worker:3", lambda: self.addresses, layout,
            gradients=self.gradients, parameters=Memory(layout.nbytes),
            connect=self.dial, report=self.reports.append, clock=self.clock, patience=30.0,
        )  # fmt: skip
        self.exchange = Servers(links, hello, sleep=self.clock.advance)

    def started(self, **release):
        for link in self.links:
            link.answers += [Granted(Identity(3, 5, 2)), Released(seq=0, version=7, lease=21, **release)]
        return self.exchange.start()

    def dial(self, shard, address, outbox, inbox, timeout):
        self.dialled.append(shard)
        if not self.free or (link := self.free.pop(0)) is None:
            self.clock.advance(timeout)
            raise errors.Unavailable(f"{address} has not answered.", why="nobody listens there.", fix="start it")
        return link

    def told(self):
        return [report.waiting_for for report in self.reports]


@pytest.fixture
def world():
    return World()


def update(world):
    return world.exchange.update(Computed(loss=0.5, examples=10, seconds=0.1))


def test_the_life_that_the_leader_grants_is_told_to_the_others(world):
    turn = world.started(chief=True, learning_rate=0.25)

    assert (turn.version, turn.lease, turn.chief, turn.learning_rate) == (7, 21, True, 0.25)
    assert [(shard, type(message), message.identity) for shard, message, _ in world.said] == [
        (0, Hello, Identity(3)),
        (1, Hello, Identity(3, 5, 2)),
        (0, Join, Identity(3, 5, 2)),
        (1, Join, Identity(3, 5, 2)),
    ]


def test_a_push_goes_to_every_shard_the_leader_last_and_says_what_it_was_computed_on(world):
    world.started()
    for link in world.links:
        link.answers.append(
            Released(seq=1, version=9, lease=30, rejected="computed at version 7, now 9", staleness=2, dropped=4)
        )
    turn = update(world)

    push = Push(Identity(3, 5, 2), seq=1, version=7, lease=21, loss=0.5, examples=10, finite=True)
    assert world.said[-2:] == [(1, push, True), (0, push, True)]
    assert (turn.version, turn.lease, turn.rejected, turn.staleness, turn.dropped) == (
        9, 30, "computed at version 7, now 9", 2, 4,
    )  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_of_a_gradient_that_is_not_finite_servers_are_to_say_where(world, value):
    world.started()
    world.row[63] = value
    for link in world.links:
        link.answers.append(Released(seq=1, version=7, lease=21, rejected="not finite"))
    update(world)
    assert [message.finite for _, message, _ in world.said[-2:]] == [False, False]


def test_two_shards_at_two_versions_are_an_error(world):
    world.started()
    world.links[0].answers.append(Released(seq=1, version=9, lease=30))
    world.links[1].answers.append(Released(seq=1, version=8, lease=30))

    with pytest.raises(errors.ProtocolError, match="ps:0 is at version 9, ps:1 at 8"):
        update(world)


def test_a_wait_is_told_after_a_second_and_then_every_second(world):
    world.started()
    world.links[1].answers += [SILENT, SILENT, SILENT, Released(seq=1, version=8, lease=22)]
    world.links[0].answers.append(Released(seq=1, version=8, lease=22))
    update(world)

    what = "ps:1 to release worker:3 after global step 7"
    assert world.reports == [
        *(Status("worker:3", "waiting", waiting_for=f"{what} ({seconds} s)") for seconds in (1, 2, 3)),
        Status("worker:3", "training"),
    ]


def test_no_wait_no_word(world):
    world.started()
    assert world.reports == []


def test_patience_ends_and_names_whom_it_waited_for(world):
    world.started()

    with pytest.raises(errors.Unavailable) as ended:
        update(world)
    assert ended.value.what == "worker:3 has waited 31 s for ps:0 to release worker:3 after global step 7."
    assert ended.value.fix == "look at the log of ps:0."


def test_the_hello_too_is_waited_for_aloud(world):
    with pytest.raises(errors.Unavailable, match="for ps:0 to admit worker:3"):
        world.exchange.start()
    assert world.told()[0] == "ps:0 to admit worker:3 (1 s)"


# --- links that break


def again(world, *, epoch, generation, version, shards=2):
    """New links on which the servers take the worker in once more."""
    links = [Script(shard, world.clock, world.said) for shard in range(shards)]
    for link in links:
        link.answers += [Granted(Identity(3, epoch, generation)), Released(seq=0, version=version, lease=40)]
    world.free += links
    return links


@pytest.mark.parametrize("shard", [0, 1])
def test_a_worker_whose_link_breaks_comes_back_as_a_new_life_and_sends_nothing_again(world, shard):
    world.started()
    for link in world.links:
        link.answers.append(GONE if link.shard == shard else Released(seq=1, version=8, lease=22))
    again(world, epoch=6, generation=3, version=4)
    said = len(world.said)
    turn = update(world)

    assert (turn.version, turn.lease) == (4, 40)
    assert turn.rejected == "a link broke while it was on its way"
    assert all(link.closed for link in world.links)
    assert [(at, type(message), message.identity) for at, message, _ in world.said[said + 2 :]] == [
        (0, Hello, Identity(3, 5, 2)),
        (1, Hello, Identity(3, 6, 3)),
        (0, Join, Identity(3, 6, 3)),
        (1, Join, Identity(3, 6, 3)),
    ]
    line = next(report.text for report in world.reports if isinstance(report, Line))
    assert line.startswith(f"ps:{shard} (memory:{shard}) is gone while worker:3 waited for ps:{shard} to release")


def test_the_first_push_of_a_new_life_is_numbered_on_and_names_the_new_version(world):
    world.started()
    world.links[1].broken = True
    for link in again(world, epoch=6, generation=3, version=4):
        link.answers.append(Released(seq=2, version=5, lease=41))
    update(world)
    update(world)

    assert world.said[-1][1] == Push(Identity(3, 6, 3), seq=2, version=4, lease=40, loss=0.5, examples=10, finite=True)


def test_a_server_that_does_not_come_back_is_named_when_patience_ends(world):
    world.started()
    world.links[1].broken = True

    with pytest.raises(errors.Unavailable) as ended:
        update(world)
    assert ended.value.what.startswith("worker:3 has waited 31 s for ps:0 to listen at memory:0: nobody listens there")
    assert ended.value.fix == "start it"


def test_a_shard_that_lives_in_an_older_generation_is_asked_again(world):
    for link in world.links:
        link.answers.append(Granted(Identity(3, 5, 2 - link.shard)))
    for _ in range(14):
        for link in again(world, epoch=5, generation=2, version=6):
            link.answers[0] = Granted(Identity(3, 5, 2 - link.shard))
    again(world, epoch=6, generation=2, version=7)

    assert world.exchange.start().version == 7
    told = world.told()
    assert told[0].startswith("ps:1 to hear of the generation that ps:0 has begun (1 s of 30 s)")
    assert len(told) == 4 + 1, "of 15 tries in 1.4 s, those after the first second; then that it trains"


def test_no_server_hears_of_a_worker_before_all_of_them_listen(world):
    """Else each try would be a new life for those that are there. Links that are open stay open."""
    (first,) = world.free = world.free[:1]
    with pytest.raises(errors.Unavailable):
        world.exchange.start()
    assert (world.dialled[:4], world.said) == ([0, 1, 1, 1], [])
    world.exchange.close("ps:1 did not come")
    assert first.closed and world.said == []


def test_a_shard_that_has_moved_meanwhile_is_dialled_where_it_is_now(world):
    first, second = world.links
    third = Script(0, world.clock, world.said)
    for link in (third, second):
        link.answers += [Granted(Identity(3, 5, 2)), Released(seq=0, version=7, lease=40)]
    world.free = [first, None, third, second]

    def moved(seconds):
        world.clock.advance(seconds)
        world.addresses = ["memory:7", "memory:1"]

    world.exchange._sleep = moved
    assert world.exchange.start().version == 7
    assert world.dialled == [0, 1, 0, 1]
    assert first.closed and not third.closed


def test_who_never_admitted_us_hears_no_goodbye(world):
    world.links[0].answers.append(Granted(Identity(3, 5, 2)))
    world.links[1].answers.append(Refused("ModelMismatch", "another network", "", ""))
    with pytest.raises(errors.ModelMismatch):
        world.exchange.start()
    world.exchange.close("ModelMismatch: another network")
    assert [(shard, type(message)) for shard, message, _ in world.said] == [(0, Hello), (1, Hello), (0, Goodbye)]


@pytest.mark.parametrize("busy", ["waiting", "pushing"])
def test_a_server_that_lost_another_one_is_not_taken_for_the_lost_one(world, busy):
    world.started()
    world.links[0].answers += [Refused("ServerLost", "ps:1 is gone (pid 7: killed).", "", ""), GONE]
    world.links[0].broken = busy == "pushing"
    again(world, epoch=6, generation=3, version=4)
    assert update(world).version == 4

    line = next(report.text for report in world.reports if isinstance(report, Line))
    assert line == (
        "ps:1 is gone (pid 7: killed): ps:0 goes back to the newest checkpoint; it links up again by itself"
    )


def test_a_link_that_breaks_while_something_is_shown_costs_the_gradient_of_that_step(world):
    world.started()
    world.links[1].answers.append(GONE)
    world.links[0].answers.append(Pulled("averages", 7))
    for link in again(world, epoch=6, generation=3, version=4):
        link.answers.append(Pulled("averages", 4))
    assert world.exchange.show("averages") == 4

    said = len(world.said)
    assert update(world).lease == 40
    assert len(world.said) == said
    assert world.exchange.returned() is None


def test_a_halt_reaches_the_leader_after_its_link_broke(world):
    world.started()
    world.links[0].broken = True
    again(world, epoch=6, generation=3, version=4)
    world.exchange.stop("enough")

    assert world.said[-1] == (0, Halt(Identity(3, 6, 3), "enough", complete=True), False)


def test_a_halt_is_said_until_the_leader_has_it(world):
    """A ps task that is lost in each of two generations."""
    world.started()
    world.links[0].broken = True
    link = again(world, epoch=6, generation=3, version=4)[0]
    deliver = link.send

    def send(header, *, payload=False):
        link.broken = isinstance(codec.decode(header), Halt)
        deliver(header, payload=payload)

    link.send = send
    again(world, epoch=7, generation=4, version=2)
    world.exchange.stop("enough")

    assert world.said[-1] == (0, Halt(Identity(3, 7, 4), "enough", complete=True), False)


def test_why_a_server_closed_the_link_is_told_rather_than_that_it_did(world):
    """Its last words are still in the mail when the next push cannot be sent."""
    world.started()
    world.links[1].broken = True
    world.links[1].answers += [Refused("TaskFailed", "the run ended because a ps task failed: no space", "", ""), GONE]

    with pytest.raises(errors.TaskFailed, match="no space"):
        update(world)


def test_of_a_servers_last_words_the_first_are_the_cause(world):
    world.started()
    world.links[1].broken = True
    world.links[1].answers += [Refused("NonFinite", "a loss is not finite", "", ""), Refused("Fenced", "later", "", "")]

    with pytest.raises(errors.NonFinite):
        update(world)


@pytest.mark.parametrize("kind", ["DuplicateTask", "Fenced", "ModelMismatch", "ClusterMismatch", "TaskFailed"])
def test_a_refusal_is_raised_as_what_it_is(world, kind):
    world.links[0].answers.append(Refused(kind, "what", "why", "fix"))

    with pytest.raises(getattr(errors, kind)) as refused:
        world.exchange.start()
    assert type(refused.value) is getattr(errors, kind)
    assert (refused.value.what, refused.value.why, refused.value.fix) == ("what", "why", "fix")


def test_a_refusal_of_an_unknown_kind_is_a_protocol_error(world):
    world.links[0].answers.append(Refused("SystemExit", "what", "", ""))

    with pytest.raises(errors.ProtocolError, match="what"):
        world.exchange.start()


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ([Pulled("parameters", 0)], "answered a Hello with Pulled"),
        ([Granted(Identity(3, 5, 2)), Granted(Identity(3, 5, 2))], "answered a Push with Granted"),
    ],
)
def test_an_answer_to_another_question_is_an_error(answers, what):
    world = World(shards=1)
    world.links[0].answers += answers

    with pytest.raises(errors.ProtocolError, match=what):
        world.exchange.start()


def test_show_asks_every_shard_and_keeps_the_version_of_the_lease(world):
    world.started()
    world.links[0].answers.append(Pulled("averages", 11))
    world.links[1].answers.append(Pulled("averages", 10))
    assert world.exchange.show("averages") == 10
    assert [message for _, message, _ in world.said[-2:]] == [Pull(Identity(3, 5, 2), "averages")] * 2

    for link in world.links:
        link.answers.append(Released(seq=1, version=12, lease=22))
    update(world)
    assert world.said[-1][1].version == 7


def test_show_refuses_another_answer(world):
    world.started()
    world.links[0].answers.append(Released(seq=1, version=8, lease=22))
    world.links[1].answers.append(Pulled("averages", 8))

    with pytest.raises(errors.ProtocolError, match="ps:0 answered a Pull with Release"):
        world.exchange.show("averages")


def test_stop_asks_the_leader_alone(world):
    world.started()
    assert world.exchange.stop("enough", complete=False) is None
    assert world.said[-1] == (0, Halt(Identity(3, 5, 2), "enough", complete=False), False)


def test_an_error_with_a_long_message_is_told_and_not_lost(world):
    world.started()
    world.exchange.close("x" * 200_000)

    goodbye = world.said[-1][1]
    assert goodbye.failed and goodbye.reason.startswith("xxx") and len(codec.encode(goodbye)) < MAX_HEADER


def test_close_says_goodbye_to_all_that_are_there(world):
    world.started()
    world.links[0].broken = True
    world.exchange.close("it raised")
    world.exchange.close()

    assert world.said[-1] == (1, Goodbye(Identity(3, 5, 2), "it raised", failed=True), False)
    assert all(link.closed for link in world.links)


# --- with real servers, in threads


class Serving:
    """The servers of a cluster in threads, until the run is over; what they raise is raised at the end."""

    def __init__(self, cluster):
        self.errors = []
        self.threads = [threading.Thread(target=self._serve, args=(server,)) for server in cluster.servers]
        for server in cluster.servers:  # the clock of a cluster stands still: nobody would see time pass
            assert not server.done

    def _serve(self, server):
        try:
            serve(server)
        except Exception as error:
            self.errors.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        for thread in self.threads:
            thread.join(60.0)
            assert not thread.is_alive(), "a server did not end"


def in_memory(shard, address, outbox, inbox, timeout):
    return transport.connect(address, outbox, inbox, timeout=timeout)


def connected(cluster, index):
    """The exchange of one worker, and its memory as tensors."""
    built, layout = cluster.built, cluster.built.layout
    gradients, parameters = Memory(layout.nbytes), Memory(layout.nbytes)
    hello = Hello(
        Identity(index), RUN, EVENER, built.fingerprint, layout.fingerprint, codec.pack_specs(layout.specs),
        cluster.samples, "here", 812,
    )  # fmt: skip
    links = ServerLinks(
        f"worker:{hello.identity.worker}", lambda: [listener.address for listener in cluster.listeners], layout,
        gradients=gradients, parameters=parameters, connect=in_memory, report=lambda report: None, clock=Clock(),
        patience=30.0,
    )  # fmt: skip
    exchange = Servers(links, hello, sleep=time.sleep)
    return exchange, whole_views(layout, gradients.view), whole_views(layout, parameters.view)


@pytest.mark.parametrize("ps", [1, 3])
def test_a_whole_run_with_real_servers(tmp_path, ps):
    cluster = Cluster(row_recipe(ema_decay=0.5), tmp_path, ps=ps, workers=1, train_steps=3)
    with Serving(cluster) as serving:
        exchange, gradient, parameter = connected(cluster, 0)
        turn = exchange.start()
        while not turn.stop:
            gradient["row"].fill_(2.0 ** (turn.lease or 0))
            turn = exchange.update(Computed(loss=0.5, examples=10, seconds=0.1))
        assert set(parameter["row"].tolist()) == {-7.0}
        assert exchange.show("averages") == 3
        assert -7.0 < float(parameter["row"][0]) < 0.0
        assert exchange.show("parameters") == 3
        assert set(parameter["row"].tolist()) == {-7.0}
        exchange.close()

    assert serving.errors == []
    assert turn.stop == "reached step 3"


def test_a_server_that_fails_tells_its_workers_why(tmp_path):
    cluster = Cluster(row_recipe(), tmp_path, ps=1, workers=1, train_steps=3)
    with Serving(cluster) as serving:
        exchange, gradient, _ = connected(cluster, 0)
        exchange.start()
        gradient["row"].fill_(float("nan"))
        turn = exchange.update(Computed(loss=0.5, examples=10, seconds=0.1))
        assert turn.failed
        assert turn.stop.startswith("worker:0 pushed the gradient of 'row', which is not finite")
        exchange.close("failed")

    assert isinstance(cluster.leader.ending.failure, errors.NonFinite)
    assert serving.errors == []


def test_batchnorm_statistics_travel_through_the_servers(tmp_path):
    inputs = torch.randn(40, 5)
    data = Data(Tensors(inputs, torch.arange(40) % 2))
    recipe = Recipe(
        model=lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)), data=lambda: data,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), ema_decay=0.9,
    )  # fmt: skip
    cluster = Cluster(recipe, tmp_path, ps=2, workers=1, train_steps=2)
    with Serving(cluster):
        exchange, gradient, parameter = connected(cluster, 0)
        turn = exchange.start()
        while not turn.stop:
            gradient["1.running_mean"].fill_(3.0)
            gradient["1.num_batches_tracked"].fill_(turn.lease + 1)
            turn = exchange.update(Computed(loss=0.5, examples=10, seconds=0.1))
        for what in ("parameters", "averages"):
            exchange.show(what)
            assert set(parameter["1.running_mean"].tolist()) == {3.0}
            assert int(parameter["1.num_batches_tracked"]) == 2
        exchange.close()


def test_a_server_that_does_not_listen_yet_is_waited_for_aloud_and_named_when_patience_ends(world):
    world.free.clear()
    with pytest.raises(errors.Unavailable) as ended:
        world.exchange.start()
    what = "ps:0 to listen at memory:0: nobody listens there"
    assert ended.value.what == f"worker:3 has waited 31 s for {what}."
    assert ended.value.fix == "start it"
    assert world.told()[:2] == [f"{what} (2 s of 30 s)", f"{what} (4 s of 30 s)"]
