"""Every exchange keeps the contract of exchanges: one process, towers, and ps tasks."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("server", "worker")]
from tasks_in_one_process import Tasks
from towers_in_one_process import towers

from evener.server.serve import serve
from evener.testing import Cluster, one_process
from evener.testing.contracts.exchanges import Bench, ExchangeContract, recipe
from evener.worker.exchange.in_hand import InHand


def bench_of(session, exchange=None) -> Bench:
    made = session.towers
    return Bench(exchange or session.exchange, made.model, dict(zip(made.names, made._gradients, strict=True)))


class TestAlone(ExchangeContract):
    @contextmanager
    def made(self, directory, **options):
        session, *_ = one_process(recipe(), directory, **options)
        session.exchange.ahead = 2
        yield bench_of(session)
        session.exchange.close("the test is over")


class TestAloneWithSeveralBatches(TestAlone):
    batches = 3

    def made(self, directory, **options):
        return super().made(directory, batches_per_step=3, **options)


class Both:
    """The exchanges of two towers, of which the second does what the first does."""

    def __init__(self, sessions):
        self.one, self.other = (session.exchange for session in sessions)
        self._sessions, self._meeting = sessions, sessions[0].exchange._group.meeting

    def __getattr__(self, name):
        return getattr(self.one, name)

    def start(self):
        self.other.start()
        return self.one.start()

    def update(self, computed):
        mine, theirs = (session.towers._gradients for session in self._sessions)
        for here, there in zip(mine, theirs, strict=True):
            there.copy_(here)
        ended = []

        def follow():
            with self._meeting.baton:
                try:
                    ended.append(self.other.update(computed))
                    assert not ended[0].chief
                except Exception as error:
                    ended.append(error)

        other = threading.Thread(target=follow)
        other.start()
        try:
            return self.one.update(computed)
        finally:
            self._meeting.baton.release()
            other.join(60.0)
            self._meeting.baton.acquire()
            assert len(ended) == 1, f"the other tower hangs, or is wrong: {ended}"

    def close(self, reason=""):
        self.other.close(reason)
        self.one.close(reason)


class TestTowers(ExchangeContract):
    @contextmanager
    def made(self, directory, **options):
        sessions = towers(recipe(), directory, 2, **options)
        both = Both(sessions)
        with both._meeting.baton:
            yield bench_of(sessions[0], both)
            both.close("the test is over")

    def test_each_batch_comes_once_and_in_order_and_those_that_were_announced_come(self, tmp_path):
        """Between them; this is tower 0, which has every other."""
        with self.made(tmp_path, train_steps=6) as bench:
            turns = [bench.exchange.start()]
            while not turns[-1].stop:
                turns.append(bench.update(0.0))

            assert [turn.lease for turn in turns] == [0, 2, 4, 6, 8, 10, -1]


class ByServers(ExchangeContract):
    ps = 1
    mode = "async"

    @contextmanager
    def made(self, directory, **options):
        everything = {"ps": self.ps, "workers": 1, "mode": self.mode} | options
        with Cluster(recipe(), directory, **everything) as cluster:
            (session,) = Tasks(cluster, [[]]).sessions
            stop = []
            asked = lambda: next(iter(stop), "")  # noqa: E731 - a reason, once there is one
            threads = [threading.Thread(target=partial(self.serve, server, asked)) for server in cluster.servers]
            for thread in threads:
                thread.start()
            try:
                bench = bench_of(session, self.exchange(session))
                yield bench
                bench.exchange.close("the test is over")
            finally:
                stop.append("the test is over")
                for thread in threads:
                    for _ in range(600):  # who has failed gives others time to leave, which passes here
                        if thread.is_alive():
                            cluster.clock.advance(1.0)
                            thread.join(0.1)
                    assert not thread.is_alive(), "a server did not end"

    def exchange(self, session):
        return session.exchange

    def serve(self, server, asked):
        try:
            serve(server, asked)
        except Exception as error:
            self.failed = error  # of a gradient that is not finite, which the worker was told of


class TestOneServer(ByServers):
    """It is `Servers`."""


class TestThreeServersInSync(ByServers):
    ps, mode = 3, "sync"


class TestInHand(ByServers):
    batches = 2

    def made(self, directory, **options):
        return super().made(directory, batches_per_step=2, **options)

    def exchange(self, session):
        """One that knows what comes next, as it is good for loaders."""
        return InHand(session.exchange._servers, 2, ahead=3)
