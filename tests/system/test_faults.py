"""Faults are survived: real processes, killed, stopped and starved of disk at named points, on real MNIST.

Every run is of 2 ps and 3 workers, and is judged the same way: it ends by itself with the exact number of steps, every
batch was applied exactly once (`evener audit`), both shards are of one step, it has learned, and nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running import EVENER, Done, Run, belongings, check_nothing_left, evener, small_disk, until

from evener.state.checkpoint import Store, load

DATA = Path(__file__).parents[3] / "shared" / "data" / "mnist"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real MNIST files in {DATA}"),
]

STEPS, SAVE = 200, 50
#: Seconds for a whole run on a machine that has much else to do; alone it takes about 10.
PATIENCE = 200
MODES = {
    "async": ["--mode", "async"],
    "in flight": ["--mode", "async", "--in-flight", "2"],
    "bounded": ["--mode", "bounded"],
    "backup": ["--mode", "sync", "--replicas-to-aggregate", "2"],
    "sync": ["--mode", "sync"],
    "elastic": ["--mode", "sync", "--elastic"],
}
RECIPE = [
    "mnist",
    "--data",
    "mnist",
    "--data-dir",
    DATA,
    "--hidden",
    32,
    "--batch-size",
    50,
    "--save-summary-secs",
    1000,
]


def train(place: Path, plan: str, *options: object) -> Run:
    """A run of 2 ps and 3 workers with faults; use it in a `with`."""
    command = [*EVENER, "train", *RECIPE, "--ps", 2, "--workers", 3, "--train-steps", STEPS, "--logdir", "run",
               "--save-checkpoint-steps", SAVE, "--json", *options]  # fmt: skip
    return Run(command, place, EVENER_CHAOS=plan)


def happened(place: Path) -> list[str]:
    """The faults that the tasks met, as "ps-0: kill at server.applied"."""
    lines = [
        (log.stem, line)
        for log in sorted((place / "run" / "logs").glob("*.log"))
        for line in log.read_text().splitlines()
    ]
    return [
        f"{task}: {found[1]}" for task, line in lines if (found := re.search(r"evener\.chaos: (.* at \S+), pass", line))
    ]


def judge(run: Run, place: Path, held: object = None) -> Done:
    """Wait for the end, and see that it was a good one."""
    done = run.finish(PATIENCE)
    assert done.code == 0, done.text
    assert done.json["global_step"] == STEPS, done.text
    assert done.json["validation_accuracy"] > 0.6, done.json
    audit = evener(place, "audit", "run")
    assert audit.code == 0, audit.text
    manifest, contents = load(place / "run" / "checkpoints" / f"step-{STEPS:08d}")
    assert (manifest.step, manifest.shards, contents.step) == (STEPS, 2, STEPS)
    check_nothing_left(run, held or belongings([]))
    return done


# --- workers


@pytest.mark.parametrize("mode", ["async", "in flight", "bounded", "backup", "elastic"])
def test_the_others_go_on_without_a_worker_that_was_killed_and_the_next_one_is_chief(mode, tmp_path):
    plan = "worker:0/worker.pushed@20=kill"
    with train(tmp_path, plan, *MODES[mode], "--max-restarts", 0) as run:
        done = judge(run, tmp_path)
    assert happened(tmp_path) == ["worker-0: kill at worker.pushed"]
    assert re.search(r"worker:0 +was killed by SIGKILL; the others go on without it", done.err)
    # The chief's duties: another one evaluated, and wrote what TensorBoard shows.
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    assert done.json["validation_accuracy"] is not None
    assert events.stat().st_size > 1000


def test_lockstep_waits_aloud_until_killed_workers_are_back(tmp_path):
    """The chief computes, one waits for its answer, and one has pushed to one shard of two.

    One takes long to come back: a wait of a moment is not spoken of.
    """
    plan = "worker:0/worker.computing@20=kill; worker:1/worker.pushed@40=kill; worker:2/worker.pushing@120=kill"
    plan += "; worker:1#2/worker.hello=sleep:5"
    with train(tmp_path, plan, *MODES["sync"]) as run:
        done = judge(run, tmp_path)
    assert happened(tmp_path) == [
        "worker-0: kill at worker.computing", "worker-1: kill at worker.pushed", "worker-1: sleep at worker.hello",
        "worker-2: kill at worker.pushing",
    ]  # fmt: skip
    for worker in range(3):
        assert re.search(rf"worker:{worker} +was killed by SIGKILL; it starts again in", done.err)
    assert re.search(r"waiting for: update \d+ needs 3 gradients.* and only workers \d and \d are here", done.err)
    assert done.json["dropped_gradients"] == 0


def test_lockstep_without_restarts_ends_and_names_the_worker(tmp_path):
    with train(tmp_path, "worker:1/worker.computing@20=kill", *MODES["sync"], "--max-restarts", 0) as run:
        done = run.finish(PATIENCE)
        check_nothing_left(run, belongings([]))
    assert done.code == 1
    assert re.search(r"worker:1 on \S+ failed with TaskFailed.*: worker:1 was killed by SIGKILL", done.err), done.err


# --- ps tasks


@pytest.mark.parametrize("mode", ["async", "in flight", "bounded", "backup", "sync"])
def test_killed_ps_tasks_come_back_and_all_go_on_from_one_step(mode, tmp_path):
    """First ps:1 with an update that ps:0 has told of, then ps:0 with one that nobody was told of."""
    plan = f"ps:1/server.applied@{SAVE + 10}=kill; ps:0/server.applied@{2 * SAVE + 20}=kill"
    with train(tmp_path, plan, *MODES[mode]) as run:
        done = judge(run, tmp_path)
    assert happened(tmp_path) == ["ps-0: kill at server.applied", "ps-1: kill at server.applied"]
    said = re.findall(r"ps:0 +(\d+) updates since (.*) are lost", done.err)
    assert [int(lost) < 2 * SAVE for lost, _ in said] == [True, True], done.err
    for _, since in said:  # a save that was not whole when ps:1 died does not count
        assert re.fullmatch(r"the checkpoint of step \d+|the start, before any checkpoint", since)
    story = re.search(r"(\d+) updates lost in (\d) roll-backs", evener(tmp_path, "audit", "run").out)
    assert story is not None
    assert (int(story[1]), int(story[2])) == (sum(int(lost) for lost, _ in said), 2), "the log says how many, exactly"


def test_both_ps_tasks_killed_at_once_before_the_first_checkpoint(tmp_path):
    plan = (
        "ps:0/server.applied@30=kill; ps:1/server.applied@30=kill; ps:0#2/server.restoring=kill; "
        "ps:0#3/server.granting=kill"  # a worker's next life is on disk, and it does not know it
    )
    with train(tmp_path, plan, *MODES["async"]) as run:
        done = judge(run, tmp_path)
    met = happened(tmp_path)  # one ps may see the other's death before its own, which then comes later
    assert {"ps-0: kill at server.applied", "ps-0: kill at server.restoring", "ps-0: kill at server.granting"} <= set(
        met
    )
    assert re.search(r"ps:0 +\d+ updates since the start, before any checkpoint are lost", done.err)


def test_a_ps_killed_after_everybody_was_told_that_the_run_is_over_ends_it_once_more(tmp_path):
    """The others are about to end: they are started again, since a restarted ps:0 cannot end a run alone."""
    plan = "ps:0/server.ended=kill; worker:0/worker.left=sleep:2; worker:1/worker.left=sleep:1"
    with train(tmp_path, plan, *MODES["async"]) as run:
        judge(run, tmp_path)
    assert "ps-0: kill at server.ended" in happened(tmp_path)


def test_a_ps_that_dies_in_every_life_ends_the_run_and_is_named(tmp_path):
    with train(tmp_path, "ps:1#*/server.bound=kill", *MODES["async"], "--max-restarts", 1) as run:
        done = run.finish(PATIENCE)
        check_nothing_left(run, belongings([]))
    assert done.code == 1
    assert happened(tmp_path) == ["ps-1: kill at server.bound"] * 2
    assert re.search(r"ps:1 on \S+ failed with TaskFailed.*: ps:1 was killed by SIGKILL", done.err), done.err


def test_two_gradients_of_a_worker_count_once_when_workers_and_a_ps_are_killed(tmp_path):
    """One worker computes while its last gradient travels, one has sent it to one shard of two, and then ps:1 goes."""
    plan = "worker:1/worker.computing@20=kill; worker:2/worker.pushing@41=kill; ps:1/server.applied@110=kill"
    with train(tmp_path, plan, *MODES["in flight"]) as run:
        judge(run, tmp_path)
    assert happened(tmp_path) == [
        "ps-1: kill at server.applied", "worker-1: kill at worker.computing", "worker-2: kill at worker.pushing",
    ]  # fmt: skip


# --- the launcher


def test_a_killed_launcher_takes_all_tasks_with_it_also_a_stopped_one(tmp_path):
    with train(tmp_path, "worker:1/worker.computing@5=stop", *MODES["async"], "--train-steps", 10**6) as run:
        until(lambda: stopped(run.tasks()), PATIENCE, "a worker is stopped")
        held = belongings(run.tasks())
        assert len(run.names()) == 5
        run.signal(signal.SIGKILL)
        check_nothing_left(run, held)


def stopped(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(process)
    return found


# --- stopped workers


def test_a_stopped_worker_is_a_straggler_and_goes_on(tmp_path):
    """With a backup worker nobody waits for it, and it is welcome when it wakes."""
    plan = "worker:1/worker.pushing@21=stop; worker:2/worker.computing@60=stop"
    with train(tmp_path, plan, *MODES["backup"]) as run:
        until(lambda: len(stopped(run.tasks())) == 2, PATIENCE, "the second worker stops: it went on without the first")
        run.wait_for(r"waiting for SIGCONT: process \d+ is stopped", PATIENCE)
        for process in stopped(run.tasks()):
            process.send_signal(signal.SIGCONT)
        done = judge(run, tmp_path)
    assert "was killed" not in done.err


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    with contextlib.ExitStack() as stack:
        made.stack = stack
        yield made


class Cluster:
    """Tasks that were started one by one, over TCP: ps:0 and two workers that train until they are told to end."""

    stack: contextlib.ExitStack

    def __init__(self, place: Path) -> None:
        self.place = place
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]

    def task(self, job: str, index: int, plan: str = "") -> Run:
        hosts = ["--ps-hosts", f"127.0.0.1:{self.port}", "--worker-hosts", "127.0.0.1:1,127.0.0.1:2"]
        command = [*EVENER, "task", *RECIPE, *hosts, "--job-name", job, "--task-index", index, "--logdir", "run",
                   "--transport", "tcp", "--heartbeat-timeout", 2, "--train-steps", 10**6]  # fmt: skip
        return self.stack.enter_context(Run(command, self.place, EVENER_CHAOS=plan))


def test_a_stopped_worker_of_another_host_is_a_straggler_and_goes_on(cluster, tmp_path):
    """Its kernel answers for it, so its link lives: the others train on, and it joins them when it is let go."""
    server, other = cluster.task("ps", 0), cluster.task("worker", 0)
    sleeper = cluster.task("worker", 1, "worker.computing@20=stop; worker.computing@40=stop")
    me = psutil.Process(sleeper.process.pid)

    until(lambda: me.status() == psutil.STATUS_STOPPED, PATIENCE, "worker:1 stops")
    before = newest_step(server)
    until(lambda: newest_step(server) > before, PATIENCE, "the others go on")
    me.send_signal(signal.SIGCONT)
    until(lambda: me.status() == psutil.STATUS_STOPPED, PATIENCE, "worker:1 has gone on, and stops again")
    me.send_signal(signal.SIGCONT)

    server.signal(signal.SIGINT)
    assert [task.finish(PATIENCE).code for task in (server, other, sleeper)] == [0, 0, 0], server.said()
    assert "is gone" not in server.said()
    audit = evener(tmp_path, "audit", "run")
    assert audit.code == 0, audit.text
    for task in (server, other, sleeper):
        check_nothing_left(task, belongings([]))


def newest_step(server: Run) -> int:
    told = re.findall(r"global step (\d+)", server.said())
    return int(told[-1]) if told else 0


# --- the disk


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own for the run."""
    with small_disk(tmp_path / "run", 8) as place:
        yield place


def test_a_full_disk_costs_checkpoints_and_nothing_else(disk, tmp_path):
    """The disk is filled after the first checkpoint, and is given free again for the last."""
    plan = "ps:0/server.applied@80=stop; ps:0/server.applied@120=stop"
    with train(tmp_path, plan, *MODES["async"]) as run:
        until(lambda: stopped(run.tasks()), PATIENCE, "ps:0 stops after the first checkpoint")
        store = Store(disk / "checkpoints", writable=False)
        until(lambda: store.steps() == [SAVE], PATIENCE, "which is written")
        fill(disk / "ballast")
        stopped(run.tasks())[0].send_signal(signal.SIGCONT)
        run.wait_for(
            r"the checkpoint of step 100 was not saved: .*No space left on device.*; training goes on", PATIENCE
        )
        until(lambda: stopped(run.tasks()), PATIENCE, "it went on")
        assert load(store.path(SAVE))[0].step == SAVE, "the older one is intact"
        assert store.steps() == [SAVE]
        (disk / "ballast").unlink()
        stopped(run.tasks())[0].send_signal(signal.SIGCONT)
        judge(run, tmp_path)


def test_tasks_that_are_killed_while_the_disk_is_full_come_back_all_the_same(disk, tmp_path):
    """A ps:0 that comes back begins a generation that no other had, and gives places, with no room on the disk."""
    plan = "ps:0/server.applied@80=stop; ps:0#2/server.applied@60=stop"
    with train(tmp_path, plan, *MODES["async"]) as run:
        until(lambda: stopped(run.tasks()), PATIENCE, "ps:0 stops after the first checkpoint")
        store = Store(disk / "checkpoints", writable=False)
        until(lambda: store.steps() == [SAVE], PATIENCE, "which is written")
        fill(disk / "ballast")
        for task in (run.task("worker:1"), run.task("ps:0")):
            task.kill()
        until(lambda: stopped(run.tasks()), PATIENCE, "ps:0 has come back, and trains, and stops again")
        run.wait_for("worker:1 +was killed by SIGKILL; it starts again", PATIENCE)
        (disk / "ballast").unlink()
        stopped(run.tasks())[0].send_signal(signal.SIGCONT)
        judge(run, tmp_path)
    begun = [json.loads(line) for line in (disk / "ledger.jsonl").read_text().splitlines() if line.startswith('["b"')]
    assert [line[3] for line in begun] == [1, 2], "the generations"


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_ps_task_that_cannot_write_its_shard_costs_that_checkpoint_on_all(tmp_path):
    plan = "ps:1/checkpoint.writing@2=enospc; ps:0/disk.fsync@30=enospc"
    with train(tmp_path, plan, *MODES["sync"], "--save-checkpoint-steps", 20) as run:
        done = judge(run, tmp_path)
    assert "ps-1: enospc at checkpoint.writing" in happened(tmp_path)
    told = done.err + (tmp_path / "run" / "logs" / "ps-0.log").read_text()  # people are told once of a full disk
    assert re.search(r"the checkpoint of step 40 was not saved: ps:1 could not save: .*No space left", told)
    steps = Store(tmp_path / "run" / "checkpoints", writable=False).steps()
    assert 20 not in steps, "only the newest are kept"
    assert 40 not in steps
