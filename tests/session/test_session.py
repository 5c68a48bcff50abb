"""The one loop: moments in their order, one end for everybody, and an account of who failed."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from evener import errors
from evener.data.dataset import Augmented, Data
from evener.report import Finished
from evener.server.shard import Shard
from evener.session.hooks import Hook, StopOnNaN

sys.path.append(str(Path(__file__).parents[1] / "server"))
from tasks_in_one_process import Tasks

from evener.testing import Clock, Cluster, one_process, row_recipe

MOMENTS = ("begin", "after_create", "before_step", "before_update", "after_step", "end", "close")


def noted(name, notes, *, raises=None, error=None):
    """A hook that notes its moments, and raises at one of them."""

    def at(moment):
        def note(self, session, *details):
            notes.append(f"{moment} {name}")
            if moment == raises:
                raise error or ValueError("oh no")

        return note

    return type(name, (Hook,), {moment: at(moment) for moment in MOMENTS})()


def alone(tmp_path, hooks, **options):
    return one_process(row_recipe(), tmp_path, hooks, **({"batch_size": 10, "train_steps": 2} | options))


def test_every_moment_in_its_order_close_in_reverse(tmp_path):
    notes = []
    session, *_ = alone(tmp_path, [noted("A", notes), noted("B", notes)])

    assert session.run() == "reached step 2"
    step = ["before_step A", "before_step B", "before_update A", "before_update B", "after_step A", "after_step B"]
    assert notes == [
        "begin A", "begin B", "after_create A", "after_create B", *step, *step, "end A", "end B", "close B", "close A",
    ]  # fmt: skip


def test_the_gradient_is_there_before_the_update_and_the_model_after_it(tmp_path):
    seen = []

    class Look(Hook):
        def before_update(self, session, loss):
            model = session.towers.model
            seen.append((loss, float(model.row.detach().sum()), float(session.towers.copy_of_gradients()["row"][0])))

        def after_step(self, session, result):
            after = float(session.towers.model.row.detach().sum())
            seen.append((result.global_step, result.local_step, result.lease, after))

    session, *_ = alone(tmp_path, [Look()], train_steps=1)
    session.run()
    mean = float(session.batches.batch(0)[0].mean())

    assert seen == [(0.0, 0.0, pytest.approx(mean)), (1, 1, 0, pytest.approx(-64 * mean))]


@pytest.mark.parametrize("moment", MOMENTS[:-1])
def test_a_hooks_error_ends_the_run_and_is_named_and_every_hook_is_closed(tmp_path, moment):
    notes = []
    session, _, reports = alone(tmp_path, [noted("A", notes), noted("Bad", notes, raises=moment), noted("C", notes)])

    with pytest.raises(errors.SessionError) as ended:
        session.run()
    assert ended.value.what == f"hook Bad failed in {moment}: ValueError: oh no"
    assert "of worker:0" in ended.value.why
    assert isinstance(ended.value.__cause__, ValueError)
    assert notes[-4:] == [f"{moment} Bad", "close C", "close Bad", "close A"]
    assert not [report for report in reports if isinstance(report, Finished)]


def test_a_hook_that_fails_in_close_keeps_no_other_from_it(tmp_path, caplog):
    notes = []
    session, _, reports = alone(tmp_path, [noted("A", notes), noted("Bad", notes, raises="close")])

    assert session.run() == "reached step 2"
    assert notes[-2:] == ["close Bad", "close A"]
    assert "hook Bad failed in close" in caplog.text
    assert [report for report in reports if isinstance(report, Finished)]


def test_an_error_of_ours_in_a_hook_stays_what_it_is(tmp_path):
    notes = []
    session, *_ = alone(tmp_path, [noted("Bad", notes, raises="after_step", error=errors.InputError("no such file"))])

    with pytest.raises(errors.InputError, match="no such file"):
        session.run()
    assert notes[-1] == "close Bad"


def test_an_error_of_the_users_own_code_is_raised_as_it_is_and_all_is_closed(tmp_path):
    notes = []
    recipe = row_recipe(loss=lambda output, target: 1 / 0)
    session, *_ = one_process(recipe, tmp_path, [noted("A", notes)], batch_size=10, train_steps=2)

    with pytest.raises(ZeroDivisionError):
        session.run()
    assert notes == ["begin A", "after_create A", "before_step A", "close A"]


def test_ctrl_c_is_no_failure_of_a_hook(tmp_path):
    notes = []
    session, *_ = alone(tmp_path, [noted("A", notes, raises="before_step", error=KeyboardInterrupt())])

    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert notes[-1] == "close A"


def test_the_first_error_is_told_not_what_follows_from_it(tmp_path):
    session, *_ = alone(tmp_path, [noted("Bad", [], raises="end")])
    closed = []

    def close(reason=""):
        closed.append(reason)
        raise errors.PeerGone("ps:0 is gone")

    session.exchange.close = close
    with pytest.raises(errors.SessionError, match="hook Bad failed in end"):
        session.run()
    assert closed == ["SessionError: hook Bad failed in end: ValueError: oh no"]


def test_a_session_runs_once(tmp_path):
    session, *_ = alone(tmp_path, [])
    session.run()

    with pytest.raises(errors.SessionError, match="this session has ended"):
        session.run()


@pytest.mark.parametrize(
    ("moment", "steps"),
    [("begin", 0), ("after_create", 0), ("before_step", 0), ("before_update", 1), ("after_step", 1)],
)
def test_a_hook_may_stop_the_run_at_any_moment(tmp_path, moment, steps):
    class Stop(Hook):
        pass

    setattr(Stop, moment, lambda self, session, *details: session.stop("enough"))
    session, *_ = alone(tmp_path, [Stop()])

    assert session.run() == "enough"
    assert session.exchange._state.step == session.local_step == steps


def test_a_run_with_nothing_left_takes_no_step_but_ends_in_order(tmp_path):
    alone(tmp_path, [])[0].run()
    notes = []
    session, *_ = alone(tmp_path, [noted("A", notes)])

    assert session.run().startswith("already at step 2 of 2")
    assert notes == ["begin A", "after_create A", "end A", "close A"]


def test_seconds_of_a_step_are_those_of_computing(tmp_path):
    seconds = []

    class Slow(Hook):
        def __init__(self, moment):
            setattr(self, moment, lambda session, *details: clock.advance(2.0))

    class Note(Hook):
        def after_step(self, session, result):
            seconds.append(result.seconds)

    clock = Clock()
    session, *_ = one_process(
        row_recipe(), tmp_path, [Slow("before_step"), Slow("before_update"), Slow("after_step"), Note()],
        clock=clock, batch_size=10, train_steps=1,
    )  # fmt: skip
    session.run()
    assert seconds == [2.0]  # hooks before the update are part of it, the wait for others is not


# --- a whole cluster: real servers, real exchanges, real sessions, one thread each


def cluster_of(tmp_path, **options):
    return Cluster(row_recipe(), tmp_path, **({"batch_size": 10, "train_steps": 30} | options))


@pytest.mark.parametrize("mode", ["async", "sync", "bounded"])
@pytest.mark.parametrize("ps", [1, 2])
def test_a_whole_cluster_of_sessions_takes_exactly_its_steps(tmp_path, mode, ps):
    cluster = cluster_of(tmp_path, mode=mode, ps=ps, workers=2)
    tasks = Tasks(cluster, [[], []])

    ended = tasks.run()
    assert ended == {"worker:0": "reached step 30", "worker:1": "reached step 30"} | {
        f"ps:{index}": None for index in range(ps)
    }
    assert cluster.versions() == [30] * ps
    assert sum(session.turn.chief for session in tasks.sessions) == 1


@pytest.mark.parametrize("moment", ["begin", "after_create", "after_step"])
def test_stop_from_a_hook_of_one_worker_ends_the_whole_cluster(tmp_path, moment):
    class Stop(Hook):
        pass

    setattr(Stop, moment, lambda self, session, *details: session.stop("seen enough"))
    cluster = cluster_of(tmp_path, workers=2, train_steps=10**6)

    assert Tasks(cluster, [[], [Stop()]]).run() == {"worker:0": "seen enough", "worker:1": "seen enough", "ps:0": None}
    assert cluster.reported(Finished)[0].reason == "seen enough"


def test_a_worker_whose_hook_fails_ends_the_run_and_the_others_say_because_of_whom(tmp_path):
    cluster = cluster_of(tmp_path, ps=2, workers=2)
    ended = Tasks(cluster, [[], [noted("Bad", [], raises="after_step")]]).run()

    assert isinstance(ended["worker:1"], errors.SessionError)
    for other in ("worker:0", "ps:1"):
        assert isinstance(ended[other], errors.TaskFailed)
        assert ended[other].what.startswith(
            "the run ended: worker:1 failed: SessionError: hook Bad failed in after_step"
        )
    assert cluster.leader.course.failed
    assert cluster.step < 30


def test_a_loss_that_is_not_a_number_reaches_no_server(tmp_path):
    recipe = row_recipe(loss=lambda output, target: output.mean() * float("nan"))
    cluster = Cluster(recipe, tmp_path, batch_size=10, workers=2, train_steps=2)
    tasks = Tasks(cluster, [[StopOnNaN()], []])
    tasks.sessions[1].towers.recipe = row_recipe()  # the other worker computes as it should

    ended = tasks.run()
    assert isinstance(ended["worker:0"], errors.NonFinite)
    assert isinstance(ended["worker:1"], errors.TaskFailed)
    assert all(value == value for value in cluster.parameters()["row"].tolist())


def test_the_memory_of_a_worker_holds_the_model_of_its_turn(tmp_path):
    cluster = cluster_of(tmp_path, mode="sync", ps=2, workers=2, train_steps=5)
    tasks = Tasks(cluster, [[], []])
    tasks.run()

    left, right = (session.towers.model.row for session in tasks.sessions)
    assert left.tolist() == right.tolist() == cluster.parameters()["row"].tolist()


class Versions(Hook):
    """Notes on which parameters each gradient was computed, and what was told of the one before."""

    def __init__(self):
        self.on, self.told = [], []

    def before_update(self, session, loss):
        self.on.append((session.turn.version, float(session.towers.model.row.detach()[0])))

    def after_step(self, session, result):
        self.told.append((result.global_step, result.lease, result.staleness, result.rejected))


@pytest.mark.parametrize("ps", [1, 2])
def test_with_two_gradients_in_flight_each_is_computed_on_parameters_of_one_version(tmp_path, ps):
    values = {0: 0.0}  # version -> what all numbers of the parameters are

    class Noting(Shard):
        def apply(self, handles, factor=None):
            pushes = super().apply(handles, factor)
            values[self.state.step] = float(self.state.parameters.views[0].reshape(-1)[0])
            return pushes

    cluster = cluster_of(tmp_path, mode="async", in_flight=2, ps=ps, workers=1, train_steps=12, shard=Noting)
    versions = Versions()
    tasks = Tasks(cluster, [[versions]])
    ended = tasks.run()

    assert ended["worker:0"] == "reached step 12"
    assert versions.on == [(version, values[version]) for version, _ in versions.on]
    assert [version for version, _ in versions.on[:2]] in ([0, 0], [0, 1])
    assert all(at - 1 <= version <= at for at, (version, _) in enumerate(versions.on))
    assert [lease for _, lease, _, _ in versions.told] == list(range(12))
    assert all(staleness <= 1 and not rejected for _, _, staleness, rejected in versions.told)
    assert tasks.sessions[0].towers.model.row.tolist() == cluster.parameters()["row"].tolist()


class Flight:
    """One process's exchange, as one whose answers may come while a gradient is computed."""

    def __init__(self, exchange, clock):
        self._exchange, self._clock, self.calls = exchange, clock, []

    def __getattr__(self, name):
        return getattr(self._exchange, name)

    def newest(self, turn):
        self.calls.append("newest")
        return turn

    def free(self):
        self.calls.append("free")
        self._clock.advance(5.0)

    def update(self, computed):
        self.calls.append(("update", computed.seconds))
        return self._exchange.update(computed)


def test_a_step_asks_for_the_newest_answer_first_and_waits_for_the_last_one_before_it_writes(tmp_path):
    session, clock, _ = alone(tmp_path, [])
    flight = Flight(session.exchange, clock)
    session.exchange = session._flies = flight
    session.run()

    assert flight.calls == ["newest", "free", ("update", 0.0)] * 2, "a wait for servers is no time of computing"


class Noted(Augmented):
    """Samples that note who asked for them, and may fail."""

    def __init__(self, *, bad=-1):
        numbers = torch.arange(40.0)
        super().__init__(numbers, torch.zeros(40), augment=lambda x, u: x + u[:, 0], numbers=1)
        self.made, self.bad = [], bad

    def random_batch(self, indices, uniform):
        self.made.append(threading.current_thread().name)
        if len(self.made) == self.bad:
            raise ValueError("a bad sample")
        return super().random_batch(indices, uniform)


def prefetchers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_the_next_batch_is_prepared_while_this_one_computes_and_none_past_the_end(tmp_path):
    data = Noted()
    session, *_ = one_process(row_recipe(data=lambda: Data(data)), tmp_path, train_steps=5, batch_size=10)
    session.run()

    assert data.made == ["MainThread"] + ["prefetch"] * 4
    assert prefetchers() == []


def test_the_parameters_are_the_same_without_the_thread(tmp_path):
    def trained(directory, thread_safe):
        data = Noted()
        data.thread_safe = thread_safe
        session, *_ = one_process(row_recipe(data=lambda: Data(data)), directory, train_steps=9, batch_size=7)
        session.run()
        return session.towers.model.row.detach().clone()

    assert torch.equal(trained(tmp_path / "a", True), trained(tmp_path / "b", False))


def test_a_bad_batch_ends_the_run_in_its_own_step_and_the_thread_with_it(tmp_path):
    data = Noted(bad=3)
    steps = []

    class Count(Hook):
        def after_step(self, session, result):
            steps.append(result.global_step)

    session, *_ = one_process(row_recipe(data=lambda: Data(data)), tmp_path, [Count()], train_steps=5, batch_size=10)
    with pytest.raises(ValueError, match="a bad sample"):
        session.run()
    assert steps == [1, 2]
    assert prefetchers() == []
