"""Towers in processes of their own, over `torch.distributed`: Gloo between CPUs, NCCL between GPUs.

Everything that waits does so in slices of a second: it says for whom, sees signals, and gives up at the stall timeout.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed import Work

from evener import errors
from evener.devices.machine import processor
from evener.report import Line, Reporter, Status
from evener.worker.allreduce.doorbell import Doorbell
from evener.worker.allreduce.shared_sum import MOST, SharedSum

log = logging.getLogger(__name__)

#: Seconds between two looks at whether one waits in vain.
SLICE = timedelta(seconds=1.0)
#: Seconds that a question about the others may take.
ANSWER = 0.7
#: Seconds that survivors give each other to say that they live.
ROLL_CALL = 0.5


class ProcessGroup:
    """A `Group` of processes.

    Args:
        store: where they meet.
        device: where what is summed lies. NCCL carries what lies on GPUs, unless `shared`: towers share a GPU.
        one_machine: all towers are on it: sums on CPUs go through memory that they share (`SharedSum`), not by Gloo.
        start: seconds to wait for the others to start: their imports may be slow.
        patience: seconds to wait for the others from then on, the stall timeout.
        lost: a reason when somebody else knows that a tower is gone; empty otherwise.
    """

    def __init__(  # noqa: PLR0913 - a place among others, and whom to tell
        self,
        store: Store,
        *,
        rank: int,
        size: int,
        device: torch.device,
        shared: bool,
        one_machine: bool = False,
        start: float,
        patience: float,
        report: Reporter,
        clock: Callable[[], float],
        lost: Callable[[], str],
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._patience, self._report, self._clock, self._lost = store, patience, report, clock, lost
        self._near = one_machine and device.type == "cpu" and 1 < size <= MOST
        self._memory: SharedSum | None = None
        self._bell: Doorbell | None = None
        self._calls = 0
        self._awaited: list[int] = []
        self._silent = [0] if rank else []  # whom a store that does not answer means
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:gloo" if shared or not dist.is_nccl_available() else "cpu:gloo,cuda:nccl"
        self._nccl = backend.endswith("nccl")
        try:
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=start),
                device_id=device if self._nccl else None,
            )  # fmt: skip
            # NCCL's own watchdog ends the process: we speak first.
            timeout = timedelta(seconds=patience + (30.0 if self._nccl else 0.0))
            dist.distributed_c10d._set_pg_timeout(timeout)
            world = dist.group.WORLD
            assert world is not None
            self._group: dist.ProcessGroup = world
        except RuntimeError as error:
            raise errors.Unavailable(
                f"worker:{rank} has not met the other {size - 1} towers: {_short(error)}",
                why=f"all {size} must have started within {start:g} s.",
                fix="look at the logs of the others.",
            ) from error

    def sum(self, flats: Sequence[Tensor], what: str, meanwhile: Callable[[], None]) -> None:
        if self._near and (self._memory is None or not self._memory.fits(flats)):
            self._come_near(flats, what)
        if self._near:
            self._sum_in_memory(flats, what, meanwhile)
            return
        works = [self._begin(partial(dist.all_reduce, flat, group=self._group, async_op=True), what) for flat in flats]
        meanwhile()
        for work, flat in zip(works, flats, strict=True):  # every handle is kept until it is done
            self._wait(work, what, flat)

    def _come_near(self, flats: Sequence[Tensor], what: str) -> None:
        """All towers come here at the same update, and either all succeed or none."""
        gather, since = partial(self._gather, what=what), self._clock()
        try:
            if self._bell is None:
                self._bell = Doorbell(self.rank, gather, partial(self._look, what, since), self._clock)
            self._memory = SharedSum(flats, self.rank, gather, self._bell, free=processor().free)
        except OSError as error:
            self._leave()
            self._near = False
            log.warning("gradients travel by Gloo: %s", error)
            if self.rank == 0:
                self._report(Line("worker:0", f"warning: gradients travel by Gloo, which is slower: {error}"))

    def _sum_in_memory(self, flats: Sequence[Tensor], what: str, meanwhile: Callable[[], None]) -> None:
        memory, bell = self._memory, self._bell
        assert memory is not None
        assert bell is not None
        self._awaited = []
        for number in range(memory.rounds):
            memory.give(flats, number)
            bell.ring()
            if number == 0:
                meanwhile()
            self._meet(bell, what)
            memory.take(flats, number)

    def _meet(self, bell: Doorbell, what: str) -> None:
        """Wait until all have rung."""
        since = self._clock()
        told = False
        try:
            while not bell.wait(SLICE.total_seconds()):
                self._look(what, since, bell.missing())
                told = True
        except errors.PeerGone as gone:
            raise self._gone(what, gone.why, bell.gone()) from None
        if told:
            self._report(Status(f"worker:{self.rank}", "training"))

    def hide(self) -> None:
        dist.distributed_c10d._update_default_pg(None)

    def gather(self, text: str) -> list[str]:
        return self._gather(text, "a word")

    def _gather(self, text: str, what: str) -> list[str]:
        data = text.encode()
        everybody = partial(dist.all_gather, group=self._group, async_op=True)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        mine = torch.tensor([len(data)])
        self._wait(self._begin(partial(everybody, sizes, mine), what), what, mine)
        longest = max(1, *(int(size) for size in sizes))
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        padded = _tensor_of(data.ljust(longest, b"\0"))
        self._wait(self._begin(partial(everybody, found, padded), what), what, padded)
        return [bytes(part[: int(size)].tolist()).decode() for part, size in zip(found, sizes, strict=True)]

    def share(self, data: bytes) -> bytes:
        what, of_first = "the state to begin with", partial(dist.broadcast, src=0, group=self._group, async_op=True)
        size = torch.tensor([len(data)])
        self._wait(self._begin(partial(of_first, size), what), what, size)
        if not int(size):
            return b""
        body = _tensor_of(data) if self.rank == 0 else torch.zeros(int(size), dtype=torch.uint8)
        self._wait(self._begin(partial(of_first, body), what), what, body)
        return data if self.rank == 0 else body.numpy().tobytes()

    def close(self, *, failed: bool = False) -> None:
        self._leave()
        with contextlib.suppress(RuntimeError, ValueError):  # it may be closed already
            if failed and self._nccl:
                dist.distributed_c10d._abort_process_group(self._group)
            else:
                dist.destroy_process_group(self._group)

    def _leave(self) -> None:
        if self._bell is not None:
            self._bell.close()
        self._memory = self._bell = None

    # --- waiting

    def _begin(self, collective: Callable[[], Work | None], what: str) -> Work:
        self._calls += 1
        self._awaited = []
        try:
            work = collective()
        except RuntimeError as error:
            raise self._broken(what, error) from error
        assert work is not None
        return work

    def _wait(self, work: Work, what: str, flat: Tensor) -> None:
        if self._nccl and flat.device.type == "cuda":
            self._wait_for_gpu(work, what)
            return
        since = self._clock()
        told = False
        while True:
            try:
                work.wait(SLICE)
                break
            except RuntimeError as error:
                if work.is_completed():
                    raise self._broken(what, error) from error
            self._look(what, since, self._absent(f"waits/{self._calls}"))
            told = True
        if told:
            self._report(Status(f"worker:{self.rank}", "training"))

    def _wait_for_gpu(self, work: Work, what: str) -> None:
        """NCCL's `wait` lets only the stream wait, and a peer's death is not seen: this process looks itself."""
        work.wait()
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        since = last = self._clock()
        while not done.query():  # type: ignore[no-untyped-call]
            time.sleep(0.0)  # an update takes less than a scheduler's tick, so no longer nap
            if (now := self._clock()) - last >= SLICE.total_seconds():
                last = now
                self._look(what, since, self._absent(f"waits/{self._calls}"))

    def _look(self, what: str, since: float, found: list[int] | None) -> None:
        """Each second of a wait. `found`: who has not come; None if nobody knows."""
        waited = self._clock() - since
        # Worker:0 holds the store: once it has given up, what was known before is what there is.
        self._awaited = found if found is not None else self._awaited or self._silent
        if reason := self._lost():
            raise self._gone(what, reason)
        if waited > self._patience:
            raise self._in_vain(what, waited)
        waiting = f"{self._whom()} at {what} ({waited:.0f} s)"
        self._report(Status(f"worker:{self.rank}", "waiting", waiting_for=waiting))

    def _broken(self, what: str, error: RuntimeError) -> errors.EvenerError:
        """Whoever still answers is not the one that is missing."""
        if re.search("timed? ?out", str(error), re.IGNORECASE):
            # Gloo's own clock, as long as ours. Whoever else gave up at this moment is leaving: no roll call, then.
            return self._in_vain(what, self._patience)
        self._absent("lost")
        time.sleep(ROLL_CALL)
        found = self._absent("lost")
        return self._gone(what, _short(error), self._silent if found is None else found)

    def _in_vain(self, what: str, waited: float) -> errors.Unavailable:
        return errors.Unavailable(
            f"worker:{self.rank} has waited {waited:.0f} s for {self._whom()} at {what}.",
            why=f"the stall timeout is {self._patience:g} s.",
            fix=f"look at the log of {self._whom()}, or give a longer --stall-timeout.",
        )

    def _whom(self) -> str:
        return _names(self._awaited) or f"the other {self.size - 1} towers"

    def _gone(self, what: str, why: str, absent: Sequence[int] = ()) -> errors.PeerGone:
        whom = _names(absent) or "another tower"
        return errors.PeerGone(
            f"{whom} is gone while worker:{self.rank} waited for {_names(self._awaited) or 'it'} at {what}.",
            why=why,
            fix=f"look at the log of {whom}.",
        )

    def _absent(self, key: str) -> list[int] | None:
        """The towers that have not said this; None when the store, which lives in worker:0, does not answer.

        The question is asked by a thread, for a store whose process is stopped keeps one waiting for ever.
        """
        found: list[list[int]] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                self._store.set(f"{key}/{self.rank}", "1")
                found.append([rank for rank in range(self.size) if not self._store.check([f"{key}/{rank}"])])

        asking = threading.Thread(target=ask, name="roll call", daemon=True)
        asking.start()
        asking.join(ANSWER)
        return found[0] if found else None


def _names(ranks: Sequence[int]) -> str:
    return ", ".join(f"worker:{rank}" for rank in ranks)


def _short(error: BaseException) -> str:
    """The first sentence, without the place in Gloo's sources."""
    line = next(iter(str(error).splitlines()), "").strip()
    return line.rpartition("] ")[2].partition(". ")[0] if line.startswith("[/") else line


def _tensor_of(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
