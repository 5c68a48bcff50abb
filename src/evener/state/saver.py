"""When a checkpoint is written: by seconds or by steps, one at a time, in the background, the newest K kept."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from evener import errors
from evener.devices.process import give_back
from evener.policy.leases import LeaseState
from evener.policy.stretches import StretchState
from evener.settings import Settings
from evener.state.atomic import FileRecord
from evener.state.checkpoint import Manifest, Store
from evener.state.contents import Contents
from evener.state.state import State
from evener.state.values import plain

log = logging.getLogger(__name__)

#: How a disk says that it is full, in the words of another task's error too.
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSchedule:
    """Save every so many seconds, every so many steps, or both."""

    every_seconds: float | None = 60.0
    every_steps: int | None = None
    keep: int = 5


def manifest_of(  # noqa: PLR0913 - what a checkpoint says besides tensors, each once
    contents: Contents,
    state: State,
    *,
    book: LeaseState | StretchState,
    seqs: Mapping[int, tuple[int, int]],
    examples: int,
    dropped: int,
    settings: Settings,
    samples: int,
    evener: str,
    script: str = "",
    counted: int = 0,
) -> Manifest:
    """The manifest of a copied state; its files are filled in when they are written."""
    layout = state.parameters.layout
    manifest = Manifest(
        step=contents.step, shards=layout.shards, recipe=settings.recipe,
        options=plain(settings.recipe_options), files={},
        shapes={spec.name: list(spec.shape) for spec in layout.specs}, parts=layout.parts,
        values={"0": contents.values},
        batch_size=1 if settings.script else settings.batch_size, samples=samples, seed=settings.seed,
        next_lease=0, unapplied=[],
        buffers=sorted({spec.name for spec in layout.specs if not spec.trained} | state.frozen.keys()),
        seqs={str(worker): seq for worker, seq in seqs.items()}, examples=examples, dropped=dropped, evener=evener,
        script=script, counted=counted,
    )  # fmt: skip
    return manifest.with_book(book)


def begin(state: State, restored: tuple[Manifest, Contents] | None, settings: Settings, samples: int) -> list[str]:
    """Let the owner of a run's state go on from its checkpoint, or begin.

    Returns:
        A sentence for whatever is otherwise than when the checkpoint was written.

    Raises:
        CheckpointError, ConfigError: see `State.begin`; the schedule waits for validations that do not come.
    """
    contents = restored[1] if restored else None
    told = state.begin(settings.steps_per_epoch(samples), contents, hyperparameters=settings.hyperparameters)
    if state.schedule is not None:
        state.schedule.check_driven(state.recipe.validates_every(settings, samples))
    return told + (_other_samples(restored[0], settings, samples) if restored else [])


def _other_samples(manifest: Manifest, settings: Settings, samples: int) -> list[str]:
    """What makes the leases of a checkpoint other samples than they were."""
    facts = [
        ("batch size", manifest.batch_size, 1 if settings.script else settings.batch_size, 0),
        ("seed", manifest.seed, settings.seed, -1),
        ("number of batches" if settings.script else "number of training samples", manifest.samples, samples, 0),
    ]
    return [
        f"the {name} was {before} and is {now}: some samples come twice or not at all"
        for name, before, now, unknown in facts
        if before not in (unknown, now) and not (name == "batch size" and settings.by_samples)
    ]


class Saver:
    """Writes checkpoints of all shards; the caller copies the state between two updates, a thread does the rest.

    A failed save is told, once until one works again, and training goes on (RELIABILITY P11). Where the disk is full
    and as many checkpoints are there as are kept, the oldest makes room, which the save would have deleted anyway; the
    newest never does. Only the final save of a run raises.
    """

    #: Who writes the other shards.
    others = "ps"

    def __init__(
        self,
        store: Store,
        schedule: SaveSchedule,
        *,
        shards: int,
        clock: Callable[[], float],
        tell: Callable[[str], None] = log.error,
    ) -> None:
        self._store = store
        self._schedule = schedule
        self._shards = shards
        self._clock = clock
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._own: Future[dict[str, FileRecord]] | None = None
        self._manifest: Manifest | None = None
        self._files: dict[int, dict[str, FileRecord]] = {}
        self._error: BaseException | None = None
        self._last_time = clock()
        self._last_step = -1  # when a save was last tried
        self._saved_step = -1  # and the last that is saved, or is being saved
        self._told = ""  # why saves fail, as it was told
        #: Why the last save failed; None after one that worked.
        self.failure: BaseException | None = None
        #: Whether a checkpoint was deleted since, so that another try may fit.
        self.made_room = False
        #: The newest committed checkpoint's directory; empty before the first.
        self.newest = ""

    @property
    def busy(self) -> bool:
        return self._manifest is not None

    def resumed(self, step: int, path: str) -> None:
        """The run continues from this checkpoint: it need not be written again."""
        self._last_step = self._saved_step = step
        self.newest = path

    def due(self, step: int) -> bool:
        """Is it time to save this step? Never while a save is under way, never the same step twice."""
        if self.busy or step == self._last_step:
            return False
        every = self._schedule.every_steps
        if every is not None and step // every > max(self._last_step, 0) // every:
            return True
        seconds = self._schedule.every_seconds
        return seconds is not None and self._clock() - self._last_time >= seconds

    def saved(self, step: int) -> bool:
        return step == self._saved_step

    def start(self, contents: Contents, manifest: Manifest) -> None:
        """Begin to write shard 0 and collect the others; `manifest` still lacks its files."""
        assert not self.busy, "one save at a time"
        self._manifest = manifest
        self._last_step = self._saved_step = contents.step
        self._last_time = self._clock()
        self._own = self._thread.submit(self._store.write_shard, contents, 0)

    def add(self, shard: int, files: dict[str, FileRecord], values: bytes, error: str) -> None:
        """Another shard's files and values (JSON) of the save under way, or why there are none."""
        if self._manifest is None:
            return
        self._files[shard] = files
        try:
            theirs = msgspec.json.decode(values) if values else {}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
            theirs, error = {}, error or f"its values cannot be read: {failure}"
        everything = self._manifest.values | {str(shard): theirs}
        self._manifest = msgspec.structs.replace(self._manifest, values=everything)
        if error:
            self._error = errors.CheckpointError(f"{self.others}:{shard} could not save: {error}")

    def poll(self) -> str:
        """The directory of a checkpoint that was completed since the last call; empty if none was."""
        if self._own is None or self._manifest is None or not self._own.done():
            return ""
        if len(self._files) < self._shards - 1:
            return ""
        manifest, own, files = self._manifest, self._own, self._files
        self._manifest, self._own, self._files = None, None, {}
        give_back()  # the copy that was written
        try:
            everything = own.result()  # if all failed, the first is the cause that was seen first-hand
            if self._error is not None:
                raise self._error
            for more in files.values():
                everything |= more
            self.newest = str(self._store.commit(msgspec.structs.replace(manifest, files=everything)))
        except (OSError, errors.EvenerError) as error:
            self._error = None
            self._failed(manifest.step, error)
            return ""
        self.failure, self.made_room = None, False
        if self._told:
            self._told = ""
            self._tell(f"checkpoints can be saved again: {self.newest} is the newest")
        try:
            self._store.keep_newest(self._schedule.keep, upto=manifest.step)
        except OSError as error:
            log.warning("old checkpoints in %s could not be deleted: %s", self._store.directory, error)
        return self.newest

    def _failed(self, step: int, error: Exception) -> None:
        self._saved_step = -1  # not `_last_step`: the next try is when the next save is due, not at each step
        self._store.discard(step)
        self.failure, self.made_room = error, False
        if self._told != (why := _cause(error)):
            self._told = why
            kept = f"{self.newest} is the newest" if self.newest else "there is none yet"
            self._tell(f"the checkpoint of step {step} was not saved: {error}; {kept}; training goes on")
        else:
            log.warning("the checkpoint of step %d was not saved: %s", step, error)
        if any(text in str(error) for text in FULL):
            self._make_room(step)

    def _make_room(self, step: int) -> None:
        """Delete the oldest checkpoint now, if the next one that is saved would have it deleted then."""
        steps = [older for older in self._store.steps() if older < step]
        if len(steps) < max(2, self._schedule.keep):
            return
        try:
            self._store.forget(steps[0])
        except OSError as error:
            log.warning("the checkpoint of step %d could not be deleted: %s", steps[0], error)
            return
        self.made_room = True
        self._tell(f"the checkpoint of step {steps[0]}, the oldest, is deleted: the next one needs its room")

    def read_newest(self) -> tuple[Manifest, Contents] | None:
        """The newest whole checkpoint."""
        return self._store.newest(self._tell)

    def wait_own(self, timeout: float) -> None:
        """Wait until this shard's files are written; `poll` then completes the save."""
        if self._own is not None:
            self._own.exception(timeout)

    def close(self) -> None:
        """Complete the save under way, also when the run ends by an error: its state was whole when it was copied."""
        self._thread.shutdown(wait=True)
        self.poll()
        self._store.close()


def _cause(error: Exception) -> str:
    """Why a save failed, whatever its step."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


class NoSaver:
    """Of a tower whose state another one saves."""

    failure: BaseException | None = None
    made_room = False
    newest = ""

    def due(self, _step: int) -> bool:
        return False

    def saved(self, _step: int) -> bool:
        return True

    def start(self, contents: Contents, manifest: Manifest) -> None:
        raise AssertionError("it is never due")

    def poll(self) -> str:
        return ""

    def read_newest(self) -> None:
        return None

    def wait_own(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass
