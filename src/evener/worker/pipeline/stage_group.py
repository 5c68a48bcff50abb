"""The stages of one pipeline, and what they tell each other besides activations: over Gloo, on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from evener.errors import PeerGone, Unavailable

#: Between two orders stage 0 may evaluate, save or wait for data as long as one process may; its death is seen at once.
BETWEEN_ORDERS = timedelta(days=30)


class Ask(IntEnum):
    """What stage 0 asks of the others. Each does as it is told, in this order of sending."""

    CONTINUE = 0  # from the checkpoint of this step, -1: from the start
    COMPUTE = 1  # this lease
    APPLY = 2  # the gradient of the last lease
    SHOW = 3  # send what number of WHAT
    SAVE = 4  # your part of the checkpoint of this step
    END = 5
    JUDGE = 6  # take a step of a schedule that a validation drives: the bits of its figure


#: What may be shown: `Exchange.show`.
WHAT = ("parameters", "averages", "gradients")


class StageGroup:
    """This process among the stages. All calls raise PeerGone when a peer's process ended, Unavailable when none came.

    Args:
        store: where they meet.
        patience: seconds to wait for another stage's activations, the stall timeout.
    """

    def __init__(self, store: Store, *, stage: int, stages: int, patience: float) -> None:
        self.stage, self.stages, self._patience = stage, stages, patience
        self.broken = self._prompt = False
        with self.guarded("all stages to start"):
            store.set(f"here/{stage}", "")  # imports take one longer than another: only then the clock begins
            store.wait([f"here/{other}" for other in range(stages)])
            dist.init_process_group(
                "gloo", store=store, rank=stage, world_size=stages, timeout=timedelta(seconds=patience)
            )
            self._orders = dist.new_group(backend="gloo", timeout=BETWEEN_ORDERS)

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Gloo's errors become ours; those of a user's model pass through."""
        try:
            yield
        except RuntimeError as error:
            told = str(error.__cause__ or error)
            if "gloo/" not in told and "imed out" not in told and not isinstance(error, dist.DistError):
                raise
            self.broken = True
            me = f"worker:{self.stage}"
            if "imed out" in told:
                raise Unavailable(
                    f"{me} has waited {self._patience:g} s for {what}.",
                    why="another stage is stopped, or computes for longer than that.",
                    fix="look at the logs of the other stages, or give a longer --stall-timeout.",
                ) from error
            raise PeerGone(
                f"another stage is gone while {me} waited for {what}.", why=told.splitlines()[0].rpartition("] ")[2]
            ) from error

    def give(self, ask: Ask, number: int = 0) -> None:
        """Stage 0 orders. From the second on the others take each at once, or are stopped."""
        others = ", ".join(f"worker:{stage}" for stage in range(1, self.stages))
        with self.guarded(f"{others} to take the order {ask.name}"):
            dist.broadcast(torch.tensor([int(ask), number]), 0, group=self._orders)
        if ask is not Ask.CONTINUE and not self._prompt:  # after CONTINUE they first read a checkpoint
            self._prompt = True
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._patience), self._orders)

    def take(self) -> tuple[Ask, int]:
        """The other stages wait for an order."""
        words = torch.zeros(2, dtype=torch.int64)
        with self.guarded("an order of worker:0"):
            dist.broadcast(words, 0, group=self._orders)
        return Ask(int(words[0])), int(words[1])

    def total(self, numbers: Sequence[float], *, starting: bool = False) -> list[float]:
        """Sums over all stages, on each of them. `starting`: the others may still be at work on their start."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        with self.guarded("the sum of what the stages found"):
            dist.all_reduce(sums, group=self._orders if starting else None)
        return [float(value) for value in sums]

    def send(self, flats: Sequence[Tensor]) -> None:
        """To stage 0, of any dtypes."""
        with self.guarded("worker:0 to take its tensors"):
            for flat in flats:
                if flat.numel():
                    dist.send(flat.view(torch.uint8), 0)

    def receive(self, flats: Sequence[Tensor], stage: int) -> None:
        """What that stage sends, the same sizes."""
        with self.guarded(f"the tensors of worker:{stage}"):
            for flat in flats:
                if flat.numel():
                    dist.recv(flat.view(torch.uint8), stage)

    def send_text(self, data: bytes) -> None:
        with self.guarded("worker:0 to take a text"):
            dist.send(torch.tensor([len(data)]), 0)
            dist.send(torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8), 0)

    def receive_text(self, stage: int) -> bytes:
        size = torch.zeros(1, dtype=torch.int64)
        with self.guarded(f"a text of worker:{stage}"):
            dist.recv(size, stage)
            body = torch.zeros(max(1, int(size)), dtype=torch.uint8)
            dist.recv(body, stage)
        return bytes(body.numpy().tobytes()[: int(size)])

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            if dist.is_initialized():
                dist.destroy_process_group()
