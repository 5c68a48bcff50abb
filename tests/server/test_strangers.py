"""Who does not belong gets nothing, changes nothing, costs little and is logged once: at the server itself.

`test_lead` and `test_follow` say which messages are refused; here it is what a refusal leaves behind. What the sockets
below keep out is in `tests/transport`.
"""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from evener import errors, transport
from evener.errors import PeerGone
from evener.server import links
from evener.server.serve import serve
from evener.testing import Cluster, Worker, row_recipe
from evener.transport.channel import MAX_HEADER, Memory, Ranges
from evener.wire import codec
from evener.wire.layout import Spec
from evener.wire.messages import Follow, Granted, Halt, Hello, Join, Refused
from evener.wire.words import Identity

DEEP = codec.encode(Join(Identity(0, 1, 1)))[:5] + b"\x93\xa4Join\x93\x00\x01\x01" + b"\x91" * 100_000
LONG = codec.PREFIX + b"\x91\xdb" + (MAX_HEADER - 20).to_bytes(4, "big") + b"\0" * (MAX_HEADER - 20)


@pytest.fixture
def run(tmp_path: Path) -> Cluster:
    with Cluster(row_recipe(), tmp_path, workers=3, train_steps=99) as cluster:
        yield cluster


def everything(run: Cluster) -> tuple[object, ...]:
    """All that a stranger must not move."""
    lead = run.leader
    return (
        run.step, bytes(lead.shard.state.parameters.parts[0]), lead.leases.state(), dict(lead.members.epochs),
        dict(lead.members.seqs), dict(run.epochs), lead.course.train_steps, lead.course.stopping, set(lead.links.seats),
        list(lead.shard.held), list(lead.links.followers),
    )  # fmt: skip


def says(run: Cluster, worker: Worker, header: bytes) -> list[object]:
    """Put bytes into the leader's mailbox; what it answers."""
    worker.channels[0].send(header)
    run.settle()
    return worker.heard()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "header",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"evnr\x02\x90", DEEP, LONG, codec.PREFIX + b"\xdd\xff\xff\xff\xff"],
    ids=["nothing", "HTTP", "another protocol", "very deep", "a long name", "a long list"],
)
def test_bytes_that_are_no_message_are_refused_and_leave_nothing(run: Cluster, header: bytes) -> None:
    (member,) = run.started(0)
    stranger, before = run.worker(1), everything(run)

    (answer,) = says(run, stranger, header)
    assert isinstance(answer, Refused) and answer.kind in ("ProtocolError", "VersionError")
    assert len(codec.encode(answer)) < 2000
    assert everything(run) == before
    assert member.push(1.0).version == 1


CHANGES: dict[str, Callable[[Hello], Hello]] = {
    "another run": lambda hello: msgspec.structs.replace(hello, run="run-2"),
    "another evener": lambda hello: msgspec.structs.replace(hello, evener="0.9"),
    "another recipe": lambda hello: msgspec.structs.replace(hello, recipe="other"),
    "another layout": lambda hello: msgspec.structs.replace(hello, layout="0" * 16),
    "other data": lambda hello: msgspec.structs.replace(hello, samples=41),
    "an index that the run has not": lambda hello: msgspec.structs.replace(hello, identity=Identity(3)),
    "an epoch never granted": lambda hello: msgspec.structs.replace(hello, identity=Identity(1, 5)),
    "an index that is alive": lambda hello: msgspec.structs.replace(hello, identity=Identity(0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_hello_that_is_refused_leaves_nothing(run: Cluster, change: Callable[[Hello], Hello]) -> None:
    """Not even an epoch: it would be written to the disk, and fence whoever comes back under that index."""
    (member,) = run.started(0)
    stranger, before = run.worker(1), everything(run)

    stranger.refused(change(stranger.hello()))
    assert everything(run) == before
    assert member.push(1.0).version == 1


def test_an_index_that_the_run_has_not_is_refused_with_both_numbers(run: Cluster) -> None:
    stranger = run.worker(7)
    error = stranger.refused(stranger.hello())
    assert isinstance(error, errors.ClusterMismatch)
    assert error.what == "worker:7 asked to join, but this run has 3 workers (0..2)."


@pytest.mark.parametrize("sizes", [(256,), (512, 8), (), (2**40,)])
def test_payloads_of_other_sizes_are_refused_and_the_first_who_offers_them_begins_no_run(
    run: Cluster, sizes: tuple[int, ...]
) -> None:
    """float32 where the run has float64, one tensor more, none, and a terabyte that nobody allocates."""
    memory = Memory(0)
    stranger = run.worker(1)
    ranges = Ranges(memory, tuple((0, 0) for _ in sizes))
    channel = transport.connect(run.address(0), ranges, ranges)
    channel.outbox = [memoryview(bytearray(min(nbytes, 1 << 16))) for nbytes in sizes]
    stranger.channels[0] = channel
    before = (*everything(run)[:3], *everything(run)[4:])  # the number of an epoch that nobody was told may be skipped

    error = stranger.refused(stranger.hello())
    assert isinstance(error, errors.ProtocolError) and "offers payloads of" in error.what
    assert (*everything(run)[:3], *everything(run)[4:]) == before
    assert run.leader.course.train_steps is None, "a stranger's data decides nothing"
    with pytest.raises(errors.ProtocolError):
        run.listeners[0].inbox(1)


def test_one_link_is_one_task(run: Cluster) -> None:
    (member,) = run.started(0)
    before = everything(run)
    for words in (
        member.hello(identity=Identity(1)),
        member.hello(),
        Follow(1, "run-1", run.built.layout.fingerprint),
    ):
        assert "says who it is again" in member.refused(words).what
    assert everything(run) == before
    assert member.push(1.0).version == 1


def test_a_push_without_a_gradient_is_refused_and_what_came_before_is_not_taken_for_one(run: Cluster) -> None:
    (member,) = run.started(0)
    assert member.push(1.0).version == 1
    before = everything(run)
    assert "a push without a gradient" in member.refused(member.message()).what
    assert everything(run) == before
    assert member.push(1.0).version == 2


def test_a_stranger_is_logged_once_and_cut_off_when_it_does_not_listen(
    run: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    (member,) = run.started(0)
    stranger, before = run.worker(1), everything(run)
    answers = []
    with pytest.raises(PeerGone):
        for _ in range(1000):
            answers += says(run, stranger, b"GET / HTTP/1.1\r\n\r\n")
    assert len(answers) == links.MAX_REFUSALS
    assert len(warnings(caplog)) == 1 and "does not begin an evener message" in warnings(caplog)[0]
    assert len(warnings(caplog)[0]) < 500
    assert everything(run) == before
    assert member.push(1.0).version == 1


def test_a_thousand_strangers_are_a_few_lines_in_the_log(run: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    empty = Ranges(Memory(0), ())
    for number in range(1000):
        channel = transport.connect(run.address(0), empty, empty)
        channel.send(b"stranger %d" % number)
        run.settle()
        channel.close()
    run.settle()
    assert 1 <= len(warnings(caplog)) <= 11
    assert not run.leader.links._links


def test_an_admitted_worker_that_speaks_nonsense_has_left_when_patience_ends(run: Cluster) -> None:
    bad, good = run.started(1, 0)
    with pytest.raises(PeerGone):
        for _ in range(100):
            says(run, bad, codec.PREFIX)
    assert set(run.leader.links.seats) == {0}
    assert good.turn is not None and good.push(1.0).lease == 0, "the lease of the one that was cut off goes out next"


def test_a_description_of_three_million_tensors_costs_what_it_unpacks_to_and_no_more(run: Cluster) -> None:
    count = 3_000_000
    bomb = codec.zlib.compress(b"\xdd" + count.to_bytes(4, "big") + b"\x94\xa0\x90\xa0\xc2" * count, 9)
    assert len(bomb) < MAX_HEADER, "it fits into one header"
    stranger = run.worker(1)
    tracemalloc.start()
    try:
        error = stranger.refused(stranger.hello(layout="0" * 16, specs=bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, errors.ProtocolError) and "description cannot be read" in error.what
    assert peak < 48 << 20


def test_a_refusal_that_quotes_long_names_still_fits_into_an_answer(run: Cluster) -> None:
    long = [*run.built.layout.specs, Spec("\N{GRINNING FACE}" * 4096, (2**63,) * 64, "float64", True)]
    stranger = run.worker(1)
    error = stranger.refused(stranger.hello(layout="0" * 16, specs=codec.pack_specs(long)))
    assert isinstance(error, errors.ModelMismatch) and "that ps:0 lacks" in error.what
    assert (
        len(codec.encode(codec.refusal(errors.ProtocolError("\N{GRINNING FACE}" * 10**6, why="\0" * 10**6))))
        < MAX_HEADER
    )


def test_words_that_everyone_would_be_told_are_short(run: Cluster) -> None:
    (member,) = run.started(0)
    error = member.refused(Halt(member.identity, "x" * 10_000))
    assert isinstance(error, errors.ProtocolError) and not run.leader.course.stopping


def test_a_server_that_fails_tells_its_workers_and_counts_that_as_nobodys_fault(
    run: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    (member,) = run.started(0)
    run.leader.tick = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        serve(run.leader)
    (answer,) = member.heard()
    assert isinstance(answer, Refused) and answer.kind == "TaskFailed"
    assert not [text for text in warnings(caplog) if "refused" in text]


def test_who_was_refused_may_come_again_as_it_should(run: Cluster) -> None:
    """The link of a worker that said one wrong thing is not burnt."""
    worker = run.worker(1)
    worker.refused(Join(worker.identity))
    (granted,) = worker.ask(worker.hello())
    assert isinstance(granted, Granted) and granted.identity.epoch == 1


# --- what was said before, said again


@pytest.mark.parametrize("when", ["while its worker lives", "after it left", "in the next run"])
def test_a_session_that_is_played_again_moves_nothing(run: Cluster, tmp_path: Path, when: str) -> None:
    (member,) = run.started(0)
    identity = member.identity
    said = [member.hello(identity=Identity(0)), Join(identity), member.message()]
    assert member.push(1.0).version == 1
    said.append(member.message())
    assert member.push(1.0).version == 2
    if when == "after it left":
        member.leave()
    elif when == "in the next run":
        said[0] = msgspec.structs.replace(said[0], run="the run before")
    before = everything(run)[:3]

    echo = run.worker(0)
    echo.fill(9.0)
    for message in said:
        with suppress(PeerGone):
            echo.say(0, message, payload=not isinstance(message, Hello | Join) and when == "after it left")
        run.settle()
    kinds = [answer.kind if isinstance(answer, Refused) else type(answer).__name__ for answer in echo.heard()]
    first = {
        "while its worker lives": "DuplicateTask",
        "after it left": "Granted",
        "in the next run": "ClusterMismatch",
    }
    assert kinds == [first[when], *["ProtocolError"] * 3]
    assert everything(run)[:3] == before
    if when != "after it left":
        assert member.push(1.0).version == 3
