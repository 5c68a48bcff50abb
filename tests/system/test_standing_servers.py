"""Standing servers as real processes, with keys: one job after the other, on servers that are started once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import PATIENCE, RECIPE, Run, alive, evener, start, until

from evener.state.checkpoint import load

pytestmark = pytest.mark.slow
TASKS = ("ps:0", "worker:0", "worker:1")


class Cluster:
    """Three servers, each in one directory, and the flags that name them."""

    def __init__(self, place: Path, stack: contextlib.ExitStack) -> None:
        self.place = place
        (place / "small.py").write_text(RECIPE)
        assert evener(place, "keys", "new", "keys", "--ps", 1, "--workers", 2).code == 0
        hosts = ["--ps-hosts", "127.0.0.1:0", "--worker-hosts", "127.0.0.1:0,127.0.0.1:0"]
        self.servers: dict[str, Run] = {}
        for task in TASKS:
            job, _, index = task.partition(":")
            words = [
                "server",
                "--job-name",
                job,
                "--task-index",
                index,
                *hosts,
                "--keys",
                "keys",
                "--recipes",
                "small,absent",
            ]
            self.servers[task] = stack.enter_context(start(place, *words))
        at = {task: run.wait_for(r"ready; waits for a job at tcp://(\S+)")[1] for task, run in self.servers.items()}
        workers = ",".join(at[task] for task in TASKS[1:])
        self.flags = ["--ps-hosts", at["ps:0"], "--worker-hosts", workers, "--keys", "keys"]

    def train(self, logdir: str, *options: object, steps: int = 40) -> list[object]:
        """A run that stops at step 20 until the file `gate-LOGDIR` is there."""
        gate = ["--set", f"gate={self.place / f'gate-{logdir}'}"]
        return ["train", "small:recipe", "--existing-servers", *self.flags, "--train-steps", steps, "--logdir", logdir,
                *gate, *options]  # fmt: skip

    def times_ready(self) -> list[int]:
        return [run.said().count("ready; waits for a job") for run in self.servers.values()]

    def doctor(self, *words: str) -> dict[str, object]:
        done = evener(self.place, "doctor", *self.flags, "--json", *words)
        found = done.json
        assert done.code == (0 if found["ready"] else 1)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster"), stack)


def at_gate(cluster: Cluster, count: int = 2) -> None:
    seen = lambda: list(cluster.place.glob("worker:*.waits"))  # noqa: E731
    until(lambda: len(seen()) >= count, 60, f"{count} workers at the gate, not {seen()}")


def test_a_job_runs_on_them_with_killed_tasks_restarted_and_other_clients_refused(cluster):
    before = min(cluster.times_ready())
    with start(cluster.place, *cluster.train("first", "--json")) as run:
        at_gate(cluster)
        assert all("busy with small:recipe" in row["detail"] for row in cluster.doctor()["tasks"])
        other = evener(cluster.place, *cluster.train("other"))
        assert other.code == 1
        assert "3 of 3 standing servers cannot take this run" in other.err
        assert "worker:1 is busy with small:recipe since" in other.err

        cluster.servers["worker:1"].task("worker:1").kill()
        run.wait_for(r"worker:1 +was killed by SIGKILL; it starts again")
        (cluster.place / "gate-first").touch()
        done = run.finish()
    assert done.code == 0, done.text
    assert done.json["global_step"] == 40
    assert (cluster.place / "first" / "checkpoints" / "step-00000040" / "manifest.json").exists()
    until(lambda: min(cluster.times_ready()) > before, PATIENCE, "all wait for the next job")


def test_a_job_begins_with_weights_that_the_machines_of_the_servers_have(cluster):
    for name in ("weights", "fine", "lost"):
        (cluster.place / f"gate-{name}").touch()
    assert evener(cluster.place, "train", "small:recipe", "--train-steps", 4, "--logdir", "weights").code == 0
    done = evener(cluster.place, *cluster.train("fine", "--init-from", "weights"))
    assert done.code == 0, done.text
    newest = cluster.place / "weights" / "checkpoints" / "step-00000004"
    assert done.out.count(f"begins with step 4 of {newest}: 4 of the model's 4 tensors taken") == 1, done.text

    done = evener(cluster.place, *cluster.train("lost", "--init-from", "nowhere.pt"))
    assert done.code == 2, done.text
    assert f"there is no {cluster.place}/nowhere.pt on this machine" in done.err


def test_a_client_that_is_killed_leaves_a_checkpoint_and_servers_that_wait(cluster):
    before = min(cluster.times_ready())
    for path in cluster.place.glob("*.waits"):
        path.unlink()
    with start(cluster.place, *cluster.train("second")) as run:
        at_gate(cluster)
        children = [server.task(task) for task, server in cluster.servers.items()]
        run.process.kill()
        until(lambda: not alive(children), PATIENCE, "every task ends")
    until(lambda: min(cluster.times_ready()) > before, PATIENCE, "all wait for the next job")
    assert list((cluster.place / "second" / "checkpoints").glob("step-*")), "ps:0 had time to save"
    assert cluster.doctor()["ready"]


def test_ctrl_c_at_the_client_saves_and_leaves_them_waiting(cluster):
    before = min(cluster.times_ready())
    with start(cluster.place, *cluster.train("third", steps=10**6)) as run:
        (cluster.place / "gate-third").touch()
        run.wait_for(r"global step [1-9]")
        run.signal(signal.SIGINT)
        done = run.finish()
    assert done.code == 130, done.text
    assert "interrupted at step" in done.err
    until(lambda: min(cluster.times_ready()) > before, PATIENCE, "all wait for the next job")


def test_code_does_not_travel(cluster):
    done = evener(cluster.place, "train", "small.py:recipe", "--existing-servers", *cluster.flags)
    assert done.code == 2
    assert "standing servers cannot take the recipe 'small.py:recipe'" in done.err


def test_a_recipe_that_they_do_not_have_fails_by_name_with_where_and_the_log(cluster):
    done = evener(cluster.place, "train", "absent:recipe", "--existing-servers", *cluster.flags, "--logdir", "fourth")
    assert done.code == 2, done.text
    assert "there is no module 'absent'" in done.err
    assert f"log: {cluster.place}/fourth/logs/" in done.err


def test_old_workers_tell_that_the_client_works_for_them(cluster):
    words = ["task", "small:recipe", "--existing_servers=True", "--job_name=worker", *cluster.flags]
    idle = evener(cluster.place, *words, "--task_index=1")
    assert (idle.code, idle.out) == (
        0, "worker:1 has nothing to do: its standing server works for the client, worker:0.\n",
    )  # fmt: skip
    chief = evener(cluster.place, *words, "--task_index=0", "--train_steps=30", "--logdir=fifth")
    assert chief.code == 0, chief.text
    assert "small:recipe: reached step 30" in chief.out


def test_sigterm_ends_a_server_with_its_task_in_order_and_the_client_is_told(cluster):
    for path in cluster.place.glob("*.waits"):
        path.unlink()
    with start(cluster.place, *cluster.train("last", "--max-restarts", 1)) as run:
        at_gate(cluster)
        children = [server.task(task) for task, server in cluster.servers.items()]
        for server in cluster.servers.values():
            server.signal(signal.SIGTERM)
        ended = {task: server.finish() for task, server in cluster.servers.items()}
        failed = run.finish()
    assert {task: done.code for task, done in ended.items()} == dict.fromkeys(TASKS, 0)
    assert "ps:0: ended (SIGTERM)" in ended["ps:0"].out
    assert failed.code == 1
    assert "its server got SIGTERM" in failed.text
    assert not alive(children)
    saved = sorted((cluster.place / "last" / "checkpoints").glob("step-*"))
    assert load(saved[-1])[0].step in (20, 21), "ps:0 saved where the workers stood"
