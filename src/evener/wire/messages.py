"""What tasks say to each other.

Every request carries who asks, in which life, of which server generation (RELIABILITY S4). A worker's first request
is `Hello` (epoch 0 asks for a new life), then `Join` to every shard, then one `Push` a step. The answer to `Join` and
to `Push` is a `Released`, whose payload is the shard's parameters: the push is the pull.
Shard 0 leads; the other shards tell it what they hold and do what it decides, in its order.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from evener.wire.standing import Dismiss, Ping, Pong, Relay, Reserve, Reserved, TaskEnded
from evener.wire.words import Count, Identity, Index, Lease, Message, Script, Several, Want, Word

PROTOCOL = 3


# --- worker -> server


class Hello(Message, frozen=True):
    """A new link. Everything that must agree between two tasks is in it."""

    identity: Identity
    run: Word  # random, from the launcher: two runs on one host never mix
    evener: Word
    recipe: Word
    layout: Word  # fingerprint
    specs: bytes  # zlib(msgpack([name, shape, dtype, trained], ...)): names the difference when the fingerprint differs
    samples: Count  # of training data; the schedule counts epochs with it. 0: a script whose batches have no numbers
    host: Word
    pid: Count
    process: Word = ""  # random, of this process alone: pids come again
    sources: Word = ""  # the files of its recipe, with digests
    batch: Word = ""  # its first samples, in a few words
    batches: bool = False  # `samples` are the batches of a recipe's DataLoader, one a lease
    ahead: bool = False  # it can prepare its next batch while it computes, so it is to know which


class Join(Message, frozen=True):
    """Ready for the first parameters."""

    identity: Identity
    want: Want = 1  # leases in hand


class Push(Message, frozen=True):
    """One gradient; the payload is the shard's slice of it.

    It may be of several batches (`lease` and `more`), or of none that has a number (`lease` -1), as for the second of
    two optimizers of a script that learn from one batch.
    """

    identity: Identity
    seq: Count  # counts this life's pushes from 1: a resend carries the same number and is never applied twice
    version: Count  # of the parameters it was computed on
    lease: Lease
    loss: float | None  # None: not known
    examples: Annotated[int, Meta(ge=0, lt=2**31)]
    unused: Annotated[bytes, Meta(max_length=1 << 20)] = b""  # `Layout.mask` of parameters whose gradient is None
    more: Several = field(default_factory=list)  # further leases of this gradient
    want: Want = 1  # leases in hand, once this one is answered
    group: Index = 0  # which of the script's optimizers it is for
    settings: Annotated[bytes, Meta(max_length=1 << 20)] = b""  # JSON: that optimizer's groups, where they changed
    script: Script = b""  # what the script keeps, where it changed; from the chief
    spread: bool = False  # `script` is for the other workers too, at once
    count: Count = 0  # `lease` is the first of so many samples; 0: it is the number of a batch
    seconds: float = 0.0  # of computing it, without any waiting for others
    finite: bool = False  # its worker has looked, and no number of it is NaN or infinite; False: look


class Draw(Message, frozen=True):
    """More batches, without a gradient: to accumulate over, to prepare, for the next epoch. The answer is `Drawn`."""

    identity: Identity
    want: Want  # leases in hand
    wait: bool = False  # nothing is in hand: answer when there is something, be it of the next epoch
    unused: Several = field(default_factory=list)  # leases in hand that no update will use


class TooBig(Message, frozen=True):
    """The memory of this worker has no room for so many samples at once. The answer is a `Released` with fewer."""

    identity: Identity
    lease: Lease
    count: Count


class Pull(Message, frozen=True):
    """Show me tensors, change nothing. The answer is `Pulled`."""

    identity: Identity
    what: Word  # "parameters", "averages" (EMA), "gradients" (of the last update, averaged)


class Goodbye(Message, frozen=True):
    """This worker ends; an empty reason is a normal end."""

    identity: Identity
    reason: str = ""
    failed: bool = False  # by an error of its own, which would meet the next worker too: the run ends
    script: Script = b""  # what its program keeps at its end; from the chief


class Halt(Message, frozen=True):
    """A hook of this worker ends the whole run."""

    identity: Identity
    reason: Annotated[str, Meta(max_length=8192)]  # every worker is told
    complete: bool = True  # False: it was cut short, so nobody evaluates


class Judged(Message, frozen=True):
    """What a validation of this worker, the chief, has found: for a schedule that is driven by it."""

    identity: Identity
    figures: Annotated[dict[Word, float], Meta(max_length=4096)]


# --- server -> worker


class Granted(Message, frozen=True):
    """Welcome: your life's number, the servers' generation."""

    identity: Identity


class Released(Message, frozen=True):
    """Compute again: the payload is the parameters of `version`, `lease` names the batch."""

    seq: int  # of the push it answers; 0 answers `Join`
    version: int
    lease: int  # -1: none, look at `stop`
    stop: str = ""  # why the run ends, when it does
    chief: bool = False
    rejected: str = ""  # why the push was dropped, when it was
    staleness: int = 0  # of the push
    dropped: int = 0  # gradients dropped so far, of all workers
    learning_rate: float = 0.0
    failed: bool = False  # `stop` is another task's failure
    leases: list[int] = field(
        default_factory=list
    )  # those that came into its hand now, where there may be several; `lease` is the first in hand
    script: bytes = b""  # what the script keeps: at the beginning of a life, and what the chief has spread
    count: int = 0  # `lease` is the first of so many samples; 0: it is the number of a batch


class Drawn(Message, frozen=True):
    """Answer to `Draw`. Who has waited looks at the newest parameters first (`Pull`): at least those of `version`."""

    leases: list[int]
    version: int
    stop: str = ""
    chief: bool = False
    failed: bool = False
    script: bytes = b""  # as in `Released`
    count: int = 0  # as there


class Pulled(Message, frozen=True):
    """Answer to `Pull`; the payload is what was asked for."""

    what: str
    version: int


class Refused(Message, frozen=True):
    """Answer to anything that may not be; `kind` is the name of an `EvenerError`."""

    kind: str
    what: str
    why: str
    fix: str


# --- between servers


class Follow(Message, frozen=True):
    """A follower's first words to the leader."""

    shard: Index
    run: Word
    layout: Word


class Lead(Message, frozen=True):
    """The leader's answer: its generation, and the version to start at."""

    generation: int
    version: int


class Held(Message, frozen=True):
    """A follower holds this push (seq 0: this `Join`); the leader decides over it once every shard holds it."""

    shard: Index
    worker: Index
    epoch: Count
    seq: Count
    #: Where gradients are clipped by norm: the inner products of this one's part on the shard with itself and with
    #: others that are held there.
    products: list[tuple[int, int, int, float]] = field(
        default_factory=list
    )  # worker, epoch, seq of the other, and the number
    bad: Word = ""  # a tensor of it that is not finite


class Lost(Message, frozen=True):
    """A follower's link to this worker broke."""

    shard: Index
    worker: Index
    epoch: Count
    reason: Word = ""


Key = tuple[int, int, int]  # worker, epoch, seq


class Decided(Message, frozen=True):
    """What the leader has decided, to be done in this order: apply, drop, release."""

    version: int  # after it
    apply: list[Key]  # in the order in which they are summed
    drop: list[Key]
    release: list[tuple[int, int, Released]]  # worker, epoch, answer
    gone: list[tuple[int, int]] = field(default_factory=list)  # worker, epoch: forget its link
    judged: dict[str, float] = field(default_factory=dict)  # what a validation has found: before `apply`
    factor: float | None = None  # what clipping by norm multiplies the mean by; None: it is not clipped so


class Leaving(Message, frozen=True):
    """A follower was told to leave: let all shards be saved first, so that nothing is taken back."""

    shard: Index
    reason: Word = ""


class Save(Message, frozen=True):
    """Write your shard of the checkpoint of this version, now."""

    version: int


class Saved(Message, frozen=True):
    """A follower's files of a checkpoint, or why there are none."""

    shard: Index
    version: Count
    files: dict[str, tuple[int, str]]  # name -> nbytes, sha256
    values: bytes = b""  # JSON: its `Contents.values`
    error: str = ""


class RunOver(Message, frozen=True):
    """The run is over; followers close."""

    reason: str
    failed: bool = False


AnyMessage = (
    Hello | Join | Push | Draw | Drawn | TooBig | Pull | Goodbye | Halt | Judged | Granted | Released | Pulled
    | Refused | Follow | Lead | Held | Lost | Leaving | Decided | Save | Saved | RunOver
    | Ping | Pong | Reserve | Reserved | Relay | Dismiss | TaskEnded
)  # fmt: skip
