"""What a worker is busy with is told once it lasts, by a thread that the occupation itself cannot hold up."""

import threading

from evener.report import Status
from evener.session.watch import Watch


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def watch():
    clock, reports = Clock(), []
    return Watch("worker:1", reports.append, clock), clock, reports


def test_what_is_quick_is_not_told():
    watched, clock, reports = watch()
    watched.busy("its data: the batch of lease 12", 2.0)
    clock.now += 1.9
    watched.look()
    assert reports == []


def test_what_lasts_is_told_with_its_seconds():
    watched, clock, reports = watch()
    watched.busy("its data: the batch of lease 12", 2.0)
    for seconds in (2.0, 1.0):
        clock.now += seconds
        watched.look()
    assert reports == [
        Status("worker:1", "waiting", waiting_for=f"its data: the batch of lease 12 ({n} s)") for n in (2, 3)
    ]


def test_nothing_is_told_of_a_worker_that_is_idle():
    watched, clock, reports = watch()
    watched.busy("its gradient of lease 12", 10.0)
    watched.idle()
    clock.now += 60.0
    watched.look()
    assert reports == []


def test_the_log_has_one_line_for_an_occupation_however_long_it_lasts(caplog):
    watched, clock, _ = watch()
    for what in ("its data: the batch of lease 12", "its hook Evaluate in end"):
        watched.busy(what, 2.0)
        for _ in range(3):
            clock.now += 2.0
            watched.look()
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        "worker:1 waits for its data: the batch of lease 12",
        "worker:1 waits for its hook Evaluate in end",
    ]


def test_the_log_has_another_line_when_it_was_idle_meanwhile_and_none_for_a_quick_one(caplog):
    watched, clock, _ = watch()

    def data(seconds):
        watched.busy("its data", 2.0)
        clock.now += seconds
        watched.look()

    for seconds in (2.0, 1.0, 2.0):
        data(seconds)
    assert len(caplog.messages) == 1
    watched.idle()
    watched.look()
    data(2.0)
    assert len(caplog.messages) == 2


def test_its_thread_looks_by_itself_and_ends_with_the_session():
    told = threading.Event()
    watched = Watch("worker:1", lambda report: told.set(), Clock())
    watched.busy("its data: the batch of lease 12", 0.0)
    watched.start()
    assert told.wait(60.0)
    watched.stop()
    for thread in threading.enumerate():
        if thread.name == "watch":
            thread.join(60.0)
            assert not thread.is_alive()
