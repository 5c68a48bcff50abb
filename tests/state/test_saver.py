"""The saver: when a checkpoint is written, and what a failed one leaves (RELIABILITY P11)."""

import errno
import logging
import os
from pathlib import Path

import msgspec
import pytest
from training import Net, recipe_of, shards_of, train

from evener.errors import CheckpointError
from evener.policy.leases import LeaseState
from evener.settings import Settings
from evener.state import atomic
from evener.state.checkpoint import Store, load
from evener.state.saver import Saver, SaveSchedule, manifest_of

RECIPE = recipe_of(model=Net)
SETTINGS = Settings(recipe="net", recipe_options={"hidden": 3})


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Run:
    """A run that saves: what the owner of the global step does, in one process."""

    def __init__(self, directory: Path, shards: int = 1, **schedule):
        self.clock = Clock()
        self.store = Store(directory)
        self.states = shards_of(RECIPE, shards)
        self.saver = Saver(self.store, SaveSchedule(**schedule), shards=shards, clock=self.clock)

    def train_to(self, step):
        train(self.states, step - self.states[0].step)

    def start(self):
        state = self.states[0]
        contents = state.contents()
        book = LeaseState(state.step, ())
        self.saver.start(
            contents,
            manifest_of(
                contents,
                state,
                book=book,
                seqs={0: (1, 2)},
                examples=5,
                dropped=0,
                settings=SETTINGS,
                samples=8,
                evener="x",
            ),
        )

    def follow(self, shard, error=""):
        """Another shard has written its files, or has not."""
        contents = self.states[shard].contents()
        files = {} if error else self.store.write_shard(contents, shard)
        self.saver.add(shard, files, msgspec.json.encode(contents.values), error)

    def save(self):
        self.start()
        for shard in range(1, len(self.states)):
            self.follow(shard)
        self.saver.wait_own(30)
        return self.saver.poll()


@pytest.fixture
def run(tmp_path):
    made = []

    def make(shards=1, **schedule):
        made.append(Run(tmp_path / "checkpoints", shards, **({"every_seconds": None} | schedule)))
        return made[-1]

    yield make
    for each in made:
        each.saver.close()


@pytest.fixture
def full(monkeypatch):
    """Call it and the disk is full; call it again and it is not."""

    class Full:
        def __init__(self):
            self.on = False

        def __call__(self):
            self.on = not self.on

        def fsync(self, fd):
            if self.on:
                raise OSError(errno.ENOSPC, "No space left on device")
            real.fsync(fd)

        def __getattr__(self, name):
            return getattr(real, name)

    real = atomic.os
    disk = Full()
    monkeypatch.setattr(atomic, "os", disk)
    return disk


# --- when


def test_it_is_due_each_time_so_many_steps_are_passed(run):
    training = run(every_steps=100)

    assert [step for step in (0, 1, 99, 100, 101) if training.saver.due(step)] == [100, 101]
    training.train_to(3)
    training.states[0].step = 101  # two shards may be seen only at 101
    training.save()
    assert [step for step in (101, 150, 199, 200, 201, 300) if training.saver.due(step)] == [200, 201, 300]


def test_it_is_due_each_time_so_many_seconds_have_passed(run):
    training = run(every_seconds=60.0)

    training.clock.now += 59.9
    assert not training.saver.due(7)
    training.clock.now += 0.1
    assert training.saver.due(7)
    training.train_to(1)
    training.save()
    assert not training.saver.due(8)
    training.clock.now += 60
    assert training.saver.due(8)


def test_steps_and_seconds_together_mean_whichever_comes_first(run):
    training = run(every_steps=100, every_seconds=60.0)

    assert training.saver.due(100)
    training.clock.now += 60
    assert training.saver.due(1)


def test_without_either_it_is_never_due(run):
    training = run()
    training.clock.now += 1e9

    assert not training.saver.due(1_000_000)


def test_the_same_step_is_never_saved_twice(run):
    training = run(every_seconds=60.0)
    training.train_to(1)
    training.save()
    training.clock.now += 1000

    assert not training.saver.due(1)
    assert training.saver.saved(1)
    assert training.saver.due(2)
    assert not training.saver.saved(2)


def test_what_a_run_continues_from_need_not_be_saved_again(run):
    training = run(every_steps=100, every_seconds=60.0)
    training.saver.resumed(150, "/there")
    training.clock.now += 1000

    assert (training.saver.saved(150), training.saver.newest) == (True, "/there")
    assert not training.saver.due(150)
    assert training.saver.due(151)  # for the seconds


def test_a_run_that_continues_keeps_the_rhythm_of_its_steps(run):
    training = run(every_steps=100)
    training.saver.resumed(150, "/there")

    assert [step for step in (151, 199, 200) if training.saver.due(step)] == [200]


# --- how


def test_a_save_is_announced_once_when_it_is_committed(run):
    training = run(every_steps=1)
    training.train_to(2)
    training.start()
    assert training.saver.busy
    training.saver.wait_own(30)

    path = training.saver.poll()
    assert Path(path) == training.store.path(2)
    assert (training.saver.newest, training.saver.busy, training.saver.failure) == (path, False, None)
    assert training.saver.poll() == ""
    assert load(Path(path))[0].step == 2


def test_there_is_one_save_at_a_time(run):
    training = run(every_steps=1)
    training.train_to(1)
    training.start()

    assert not training.saver.due(2)
    with pytest.raises(AssertionError, match="one save at a time"):
        training.start()


def test_what_is_saved_is_the_moment_of_the_start(run):
    training = run(every_steps=1)
    training.train_to(1)
    training.start()
    training.train_to(3)  # while the thread writes
    training.saver.wait_own(30)

    manifest, contents = load(Path(training.saver.poll()))
    assert (manifest.step, contents.step) == (1, 1)
    assert int(contents.parameters["norm.num_batches_tracked"]) == 1


def test_it_waits_for_the_files_of_every_shard(run):
    training = run(shards=3, every_steps=1)
    training.train_to(1)
    training.start()
    training.saver.wait_own(30)
    assert training.saver.poll() == ""
    training.follow(2)
    assert training.saver.poll() == ""
    assert training.store.newest() is None
    training.follow(1)

    manifest, _ = load(Path(training.saver.poll()))
    assert len(manifest.files) == 9
    assert sorted(manifest.values) == ["0", "1", "2"]


def test_files_that_nobody_waits_for_change_nothing(run):
    training = run(shards=2)
    training.saver.add(1, {}, b"", "late")

    assert training.saver.poll() == ""
    assert training.save() != ""


def test_only_the_newest_are_kept(run):
    training = run(every_steps=1, keep=2)
    for step in (1, 2, 3, 4):
        training.train_to(step)
        training.save()

    assert training.store.steps() == [3, 4]


def test_a_run_that_skipped_damaged_checkpoints_keeps_what_it_saves(run):
    first = run(every_steps=1)
    for step in (1, 2, 3):
        first.train_to(step)
        first.save()
    for step in (2, 3):
        (first.store.path(step) / "parameters-0.safetensors").unlink()
    first.saver.close()

    second = run(every_steps=1, keep=1)  # continues from step 1, since the others are damaged
    second.saver.resumed(1, str(second.store.path(1)))
    second.train_to(1)
    second.states[0].step = 1
    announced = second.save()

    assert load(Path(announced))[0].step == 1
    assert second.store.newest()[0].step == 1


def test_the_manifest_says_where_to_go_on(run):
    training = run(shards=2)
    training.train_to(2)
    manifest, _ = load(Path(training.save()))

    assert (manifest.recipe, manifest.options, manifest.shards, manifest.step) == ("net", {"hidden": 3}, 2, 2)
    assert (manifest.next_lease, manifest.unapplied, manifest.seqs, manifest.examples) == (2, [], {"0": (1, 2)}, 5)
    assert manifest.shapes["first.weight"] == [61, 7]


def test_options_that_cannot_be_written_down_are_left_out_and_the_rest_is_kept(run):
    training = run()
    contents = training.states[0].contents()
    settings = Settings(recipe="net", recipe_options={"hidden": 3, "data_dir": Path("/data"), "act": len})
    manifest = manifest_of(
        contents,
        training.states[0],
        book=LeaseState(0, ()),
        seqs={},
        examples=0,
        dropped=0,
        samples=8,
        settings=settings,
        evener="",
    )
    training.saver.start(contents, manifest)
    training.saver.wait_own(30)

    assert load(Path(training.saver.poll()))[0].options == {"hidden": 3}


# --- when it fails


def test_a_failed_save_is_told_and_leaves_the_older_one_and_nothing_else(run, full, caplog):
    training = run(every_steps=1)
    training.train_to(1)
    good = training.save()
    training.train_to(2)
    full()

    with caplog.at_level(logging.ERROR):
        assert training.save() == ""
    assert caplog.messages == [
        f"the checkpoint of step 2 was not saved: [Errno 28] No space left on device; {good} is the newest; "
        "training goes on",
    ]
    assert isinstance(training.saver.failure, OSError)
    assert (training.saver.newest, training.saver.saved(2), training.saver.busy) == (good, False, False)
    assert load(Path(good))[0].step == 1
    assert [path.name for path in training.store.directory.glob("step-*")] == ["step-00000001"]


def test_it_is_tried_again_when_the_next_save_is_due_and_not_at_every_step(run, full):
    training = run(every_steps=10)
    training.train_to(1)
    training.states[0].step = 10
    full()
    training.save()
    assert [step for step in (10, 11, 19, 20, 21) if training.saver.due(step)] == [20, 21]

    full()
    training.states[0].step = 20
    assert training.save() != ""
    assert training.saver.failure is None


def test_the_last_step_may_be_tried_again_at_once(run, full):
    training = run(every_steps=10)
    full()
    training.save()
    full()

    assert not training.saver.saved(0)
    assert training.save() == str(training.store.path(0))


def test_that_saves_fail_is_told_once_and_once_more_when_they_work_again(run, full, caplog):
    training = run(every_steps=1)
    full()
    for step in (1, 2, 3):
        training.train_to(step)
        training.save()
    full()
    training.train_to(4)
    with caplog.at_level(logging.ERROR):
        newest = training.save()

    told = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert [text.partition(":")[0] for text in told] == [
        "the checkpoint of step 1 was not saved", "checkpoints can be saved again",
    ]  # fmt: skip
    assert told[1] == f"checkpoints can be saved again: {newest} is the newest"


def test_on_a_full_disk_the_oldest_of_those_that_are_kept_makes_room_once_and_the_newest_never(
    run, monkeypatch, caplog
):
    training = run(every_steps=1, keep=3)
    for step in (1, 2, 3):
        training.train_to(step)
        training.save()
    with monkeypatch.context() as full:
        full.setattr(training.store, "commit", lambda _: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        for step in (4, 5, 6):
            training.train_to(step)
            training.save()
            assert training.store.steps() == [2, 3], "each try would else cost one more"
    assert "the checkpoint of step 1, the oldest, is deleted: the next one needs its room" in caplog.messages

    training.train_to(7)
    assert load(Path(training.save()))[0].step == 7
    assert training.store.steps() == [2, 3, 7]


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EDQUOT])
def test_it_makes_room_for_another_shard_too(run, why):
    training = run(shards=2, every_steps=1, keep=2)
    for step in (1, 2):
        training.train_to(step)
        training.save()
    training.train_to(3)
    training.start()
    training.follow(1, error=str(OSError(why, os.strerror(why))))
    training.saver.wait_own(30)
    training.saver.poll()

    assert (training.saver.made_room, training.store.steps()) == (True, [2])


@pytest.mark.parametrize(("keep", "why"), [(1, errno.ENOSPC), (5, errno.ENOSPC), (3, errno.EIO)])
def test_no_checkpoint_goes_that_the_next_one_would_not_replace_nor_for_another_fault(run, monkeypatch, keep, why):
    training = run(every_steps=1, keep=keep)
    for step in (1, 2, 3):
        training.train_to(step)
        training.save()
    before = training.store.steps()
    training.train_to(4)
    monkeypatch.setattr(training.store, "commit", lambda _: (_ for _ in ()).throw(OSError(why, os.strerror(why))))
    training.save()

    assert (training.saver.made_room, training.store.steps()) == (False, before)


def test_another_shards_failure_fails_the_save(run, caplog):
    training = run(shards=2, every_steps=1)
    training.train_to(1)
    training.start()
    training.follow(1, error="No space left on device")
    training.saver.wait_own(30)

    assert training.saver.poll() == ""
    assert isinstance(training.saver.failure, CheckpointError)
    assert caplog.messages == [
        "the checkpoint of step 1 was not saved: ps:1 could not save: No space left on device; "
        "there is none yet; training goes on"
    ]
    assert list(training.store.directory.glob("step-*")) == []

    training.train_to(2)
    assert training.save() == str(training.store.path(2))  # the error is forgotten


def test_when_all_shards_fail_the_cause_that_is_told_is_the_one_seen_first_hand(run, full, caplog):
    it = run(shards=2, every_steps=1)
    it.train_to(1)
    full()
    it.start()
    it.saver.wait_own(30)
    it.follow(1, "No such file or directory")

    assert it.saver.poll() == ""
    assert "No space left on device" in str(it.saver.failure)
    assert "No such file" not in caplog.text


def test_a_parameter_that_is_not_finite_is_not_saved(run):
    training = run()
    training.states[0].parameters.trained[0][0] = float("inf")

    assert training.save() == ""
    assert "is not finite at step 0" in str(training.saver.failure)


def test_old_ones_that_cannot_be_deleted_do_not_make_a_save_fail(run, monkeypatch, caplog):
    training = run(every_steps=1, keep=1)
    training.train_to(1)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(training.store, "keep_newest", refuse)
    assert training.save() == str(training.store.path(1))
    assert training.saver.failure is None
    assert "could not be deleted" in caplog.messages[0]


def test_closing_completes_what_was_begun_and_frees_the_directory(run):
    training = run()
    training.start()
    training.saver.close()

    assert load(Path(training.saver.newest))[0].step == 0
    Store(training.store.directory).close()
