"""How a ps task finds the one that leads: as long as it takes, aloud, and no longer than it may."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from evener import errors
from evener.report import Status
from evener.settings import Settings
from evener.task import follower
from evener.task.follower import LeaderLine
from evener.wire import codec
from evener.wire.messages import Follow, Granted, Lead, Refused
from evener.wire.words import Identity

NOBODY = errors.Unavailable("no answer.", why="nobody listens there.")
LEAD = Lead(3, 40)
REFUSED = Refused("ModelMismatch", "another network", "", "")
DUPLICATE = Refused("DuplicateTask", "ps:1 follows already", "", "")


class Leader:
    """ps:0 as a list of what happens at each attempt: an error, or what it answers (None: nothing for a second)."""

    def __init__(self, monkeypatch, *attempts, stop_after=10_000.0, **options):
        self.attempts, self.now, self.said, self.waits, self.closed = list(attempts), 100.0, [], [], 0
        self.addresses = iter(range(10_000))
        self.dialled = []
        monkeypatch.setattr(follower, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._pass))
        monkeypatch.setattr(follower, "Dialer", lambda *_: self._dial)
        settings = Settings(ps=2, stall_timeout=30.0, heartbeat_timeout=10.0, **options)
        self.line = LeaderLine(
            1, settings, run="run", address=lambda: f"tcp://a:{next(self.addresses)}",
            stop_asked=lambda: "interrupted" if self.now > 100 + stop_after else "", report=self._hear,
        )  # fmt: skip

    def _pass(self, seconds):
        self.now += seconds

    def _hear(self, report):
        assert isinstance(report, Status)
        self.waits.append(report.waiting_for)

    def _dial(self, shard, address, outbox, inbox, timeout):
        self.dialled.append((shard, address))
        self.answers = self.attempts.pop(0) if len(self.attempts) > 1 else self.attempts[0]
        if isinstance(self.answers, errors.EvenerError):
            self._pass(timeout)
            raise self.answers
        self.answers = list(self.answers)
        return self

    def send(self, header):
        self.said.append(codec.decode(header))

    def receive(self, timeout):
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            self._pass(timeout)
            return None
        if isinstance(answer, errors.EvenerError):
            raise answer
        return codec.encode(answer)

    def close(self):
        self.closed += 1


@pytest.fixture
def leader(monkeypatch):
    return lambda *attempts, **options: Leader(monkeypatch, *attempts, **options)


def test_it_says_whom_it_follows_and_is_told_where_to_begin(leader):
    meets = leader([LEAD])
    assert meets.line.open("layout") == (meets, LEAD)
    assert meets.said == [Follow(1, "run", "layout")]
    assert (meets.waits, meets.closed) == ([], 0)


def test_it_asks_for_the_address_at_each_attempt_waits_aloud_and_hangs_up_what_broke(leader):
    meets = leader(NOBODY, NOBODY, [errors.PeerGone("it left.")], [None, None, LEAD])
    assert meets.line.open("layout")[1] == LEAD
    assert meets.dialled == [(0, f"tcp://a:{attempt}") for attempt in range(4)]
    assert meets.waits == [
        "ps:0 at tcp://a:1: nobody listens there. (2 s of 30 s)",
        "ps:0 at tcp://a:2: it left. (2 s of 30 s)",
        "ps:0 to answer (3 s of 30 s)",
        "ps:0 to answer (4 s of 30 s)",
    ]
    assert meets.closed == 1


@pytest.mark.parametrize("attempt", [NOBODY, [None] * 100], ids=["absent", "silent"])
def test_it_gives_up_at_the_stall_timeout_and_when_it_is_told_to(leader, attempt):
    with pytest.raises(errors.Unavailable, match=r"ps:1 has waited 3[01] s for ps:0"):
        leader(attempt).line.open("layout")
    with pytest.raises(errors.TaskFailed, match=r"ps:1 was stopped while it waited for ps:0 .*: interrupted"):
        leader(attempt, stop_after=5.0).line.open("layout")


def test_a_refusal_and_an_answer_to_another_question_end_it_at_once(leader):
    with pytest.raises(errors.ModelMismatch, match="another network"):
        leader([REFUSED]).line.open("layout")
    with pytest.raises(errors.ProtocolError, match="answered a Follow with Granted"):
        leader([Granted(Identity(0, 1, 1))]).line.open("layout")


def test_ps_0_may_believe_in_its_old_link_for_as_long_as_heartbeats_take_to_end_it(leader):
    meets = leader(*[[DUPLICATE]] * 20, [LEAD])
    assert meets.line.open("layout")[1] == LEAD
    assert meets.closed == 20
    with pytest.raises(errors.DuplicateTask, match="follows already"):
        leader([DUPLICATE]).line.open("layout")
