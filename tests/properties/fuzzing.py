"""Mutated frames, many of them, through everything that reads what strangers say: `make fuzz`.

    python tests/properties/fuzzing.py --n 1000000 --seed 1

Three targets: the codec; real servers (a leader and a follower) with an admitted peer that lies and one that was never
admitted; real ports (`fuzz_port`). Each raises AssertionError, naming seed and frame, at the first thing that may not
happen. Memory is bounded by the growth of the process's peak RSS (VmHWM, reset before each target): `CAP`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

sys.path.append(str(Path(__file__).parent))
from mutations import Mutator, valid

from evener.errors import EvenerError, PeerGone, ProtocolError, VersionError
from evener.testing import EVENER, RUN, Cluster, Worker, row_recipe
from evener.wire import codec
from evener.wire.messages import Goodbye, Halt, Hello, Push
from evener.wire.words import Identity

#: Bytes that peak memory may grow by under any flood of frames. One description of a model unpacks to at most 16 MB,
#: is copied once while it does, and becomes at most 100,000 tensors; the rest is the allocator's.
CAP = 128 << 20


def peak() -> int:
    """The greatest RSS of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> int:
    """Begin to measure the peak anew; the RSS now, without what earlier work has freed and the allocator keeps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


# --- the codec


def fuzz_codec(frames: int, seed: int) -> Counter[str]:
    """Decode frames, and the description in each Hello. Only refusals may come of it."""
    rng = Random(f"codec {seed}")
    mutator, corpus = Mutator(rng), a_corpus()
    outcomes: Counter[str] = Counter()
    for number in range(frames):
        frame = mutator.frame(corpus)
        try:
            message = codec.decode(frame)
            outcomes[type(message).__name__] += 1
            codec.encode(message)
            if isinstance(message, Hello):
                codec.unpack_specs(message.specs)
                outcomes["described"] += 1
        except (ProtocolError, VersionError) as refused:
            outcomes["refused"] += 1
            assert len(codec.encode(codec.refusal(refused))) < 128 * 1024
        except BaseException as error:
            raise AssertionError(f"codec, seed {seed}, frame {number}: {error!r} at {frame[:200]!r}") from error
    return outcomes


def a_corpus() -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory, Cluster(row_recipe(), Path(directory)) as cluster:
        return corpus_for(cluster, Identity(1, 1, 1))


def corpus_for(cluster: Cluster, identity: Identity) -> list[bytes]:
    messages = valid(
        identity, run=RUN, evener=EVENER, recipe=cluster.built.fingerprint, layout=cluster.built.layout,
        samples=cluster.samples,
    )  # fmt: skip
    return [codec.encode(message) for message in messages]


# --- servers


class Siege:
    """A leader and a follower, an honest worker, and one that lies beside a stranger that lies.

    After every frame: the servers live, and parameters, step, leases, seats and epochs are as before, unless the liar
    happened to say something that it may say.
    """

    def __init__(self, seed: int, directory: Path) -> None:
        self.rng = Random(f"servers {seed}")
        self.mutator, self.seed, self.directory = Mutator(self.rng), seed, directory
        self.outcomes: Counter[str] = Counter()
        self._runs = 0
        self._start()

    def _start(self) -> None:
        self._runs += 1
        self.cluster = Cluster(
            row_recipe(), self.directory / str(self._runs), ps=2, workers=3, train_steps=10**9, mode="async"
        )
        (self.honest,) = self.cluster.started(0)
        self.sum = 0.0
        self._stranger()
        self._liar()

    def _stranger(self) -> None:
        self.stranger = Worker(self.cluster, 2)
        self.cluster.workers.remove(self.stranger)
        self.cluster.settle()

    def _liar(self) -> None:
        self.liar = Worker(self.cluster, 1)
        self.cluster.workers.remove(self.liar)
        self.liar.start()
        self.liar.fill(0.5)
        self._learn()

    def _learn(self) -> None:
        """What the liar knows: its own identity, and the push that is due. It spoils these."""
        self.corpus = corpus_for(self.cluster, self.liar.identity)
        if self.liar.turn is not None:
            self.corpus += [codec.encode(self.liar.message())] * 8
        self.before = self.state()

    def state(self) -> tuple[Any, ...]:
        lead = self.cluster.leader
        seats = [
            {worker: (seat.epoch, seat.joined) for worker, seat in server.links.seats.items()}
            for server in self.cluster.servers
        ]
        values = [bytes(server.shard.state.parameters.parts[0][:8]) for server in self.cluster.servers]
        return (
            self.cluster.versions(), values, lead.leases.state(), dict(lead.members.epochs), seats,
            lead.course.stopping, list(lead.links.followers),
        )  # fmt: skip

    def frame(self) -> None:
        """One frame to one server, by the liar or by the stranger; then a look at everything."""
        frame = self.mutator.frame(self.corpus)
        lies = self.rng.random() < 0.6
        who, shard = (self.liar if lies else self.stranger), self.rng.randrange(2)
        payload = lies and self.rng.random() < 0.5
        try:
            who.channels[shard].send(frame, payload=payload)
            self.cluster.look(shard)
            self.cluster.settle()
        except PeerGone:  # it was cut off for what it said before
            self.outcomes["cut off"] += 1
            self._again(who)
            return
        except BaseException as error:
            raise AssertionError(f"servers, seed {self.seed}: {error!r} ended ps:{shard} at {frame[:300]!r}") from error
        if self.state() != self.before:
            self._explain(frame, lies)

    def _explain(self, frame: bytes, lies: bool) -> None:
        """Something changed. It may have: a push as it should be, a goodbye, or the end of patience with a liar."""
        message, now = None, self.state()
        with suppress(EvenerError):
            message = codec.decode(frame)
        what = type(message).__name__
        honest = [[seats.get(0) for seats in then[4]] + [then[3][0], then[6]] for then in (self.before, now)]
        told = f"seed {self.seed}: {what} {frame[:300]!r} changed {self.before} to {now}"
        assert honest[0] == honest[1], told
        gone = 1 not in now[4][0] or 1 not in now[4][1]
        if lies and gone:  # cut off, or said goodbye
            self.outcomes["gone"] += 1
            assert now[:2] == self.before[:2], told
            if now[5] == self.before[5]:
                self._again(self.liar)
                return
            # Whoever belongs may say that it has failed, which ends the run: nobody else may.
            assert isinstance(message, Goodbye), told
            assert message.failed, told
            assert message.identity.worker == self.liar.identity.worker, told
            self.outcomes["valid failures"] += 1
            self.cluster.close()
            self._start()
        elif lies and isinstance(message, Push):
            assert self.liar.turn is not None and now[0] == [self.before[0][0] + 1] * 2, told
            turn = self.liar.turn
            right = (self.liar.identity, turn.version, turn.lease)
            assert (message.identity, message.version, message.lease) == right, told
            self.outcomes["valid pushes"] += 1
            self.sum += 0.5
            self._again(self.liar)
        elif lies and isinstance(message, Halt):
            said, mine = message.identity, self.liar.identity
            assert (said.worker, said.epoch) == (mine.worker, mine.epoch), told
            self.outcomes["valid halts"] += 1
            self.cluster.close()
            self._start()
        elif not lies and isinstance(message, Hello):  # all that counts in it was right: anyone who knows it may come
            assert (message.run, message.evener) == (RUN, EVENER), told
            assert now[:3] == self.before[:3], told
            self.outcomes["valid hellos"] += 1
            self._again(self.stranger)
        else:
            raise AssertionError(told)

    def _again(self, who: Worker) -> None:
        """The links of this one are of no more use: it goes and comes back."""
        for channel in who.channels:
            channel.close()
        self.cluster.settle()
        if who is self.liar:
            self._liar()
        else:
            self._stranger()
            self.before = self.state()

    def check(self) -> None:
        """The honest worker beside it pushes, and the parameters are exactly what was pushed."""
        before = self.cluster.step
        released = self.honest.push(1.0)
        assert released is not None and released.version == before + 1, f"seed {self.seed}: the run stands still"
        self.sum += 1.0
        values = {-self.sum}
        assert set(self.cluster.parameters()["row"].tolist()) == values, f"seed {self.seed}: other parameters"
        for who in (self.liar, self.stranger):  # what it was answered is read, or the mailboxes would fill
            for shard in range(2):
                who.heard(shard)
        self.before = self.state()

    def close(self) -> None:
        for who in (self.liar, self.stranger):
            who.die()
        self.cluster.close()


def fuzz_servers(frames: int, seed: int) -> Counter[str]:
    with tempfile.TemporaryDirectory() as directory:
        siege = Siege(seed, Path(directory))
        try:
            for number in range(1, frames + 1):
                siege.frame()
                if number % 200 == 0:
                    siege.check()
            siege.check()
        finally:
            siege.close()
    return siege.outcomes


# --- all of it


def measured(target: Callable[[int, int], Counter[str]], frames: int, seed: int) -> str:
    """Run one target; what it did, in one line. AssertionError when it took more memory than `CAP`."""
    target(min(frames, 500), seed + 1)  # whatever is made once is made now
    before, started = reset_peak(), time.monotonic()
    outcomes = target(frames, seed)
    seconds, grown = time.monotonic() - started, peak() - before
    assert grown < CAP, f"{target.__name__}, seed {seed}: peak memory grew by {grown >> 20} MB, above {CAP >> 20}"
    counts = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
    return (
        f"{target.__name__}: {frames:,} frames in {seconds:.1f} s ({frames / seconds:,.0f}/s), "
        f"peak memory +{grown / 2**20:.1f} MB: {counts}"
    )


def main() -> None:
    from fuzz_port import fuzz_port, fuzz_port_with_keys, fuzz_shared

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help="mutated frames for codec and servers together")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"seed {options.seed}", flush=True)
    started = time.monotonic()
    share = {fuzz_codec: 0.5, fuzz_servers: 0.5, fuzz_port: 0.1, fuzz_port_with_keys: 0.1, fuzz_shared: 0.02}
    for target, part in share.items():
        print(measured(target, max(100, int(options.n * part)), options.seed), flush=True)
    print(f"nothing fell over in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
