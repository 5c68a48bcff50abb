"""`evener doctor` beside a running `evener task` cluster, and ports that nobody chose."""

from __future__ import annotations

import signal

import pytest
from running import RECIPE, Run, evener, here, start, until

pytestmark = pytest.mark.slow


def test_tasks_find_each_other_through_a_directory_and_the_doctor_sees_who_has_joined(tmp_path):
    (tmp_path / "small.py").write_text(RECIPE)
    hosts = ["--ps-hosts", "127.0.0.1:0,127.0.0.1:0", "--worker-hosts", "localhost:1,localhost:2"]
    common = [*hosts, "--rendezvous", "meet", "--logdir", "run", "--train-steps", 30,
              "--set", f"gate={tmp_path / 'gate'}", "--set", "gate_step=5"]  # fmt: skip

    def task(job: str, index: int) -> Run:
        return start(tmp_path, "task", "small.py:recipe", "--job-name", job, "--task-index", index, *common)

    with task("worker", 0) as worker, task("ps", 0) as ps0, task("ps", 1) as ps1:
        until(lambda: list(tmp_path.glob("worker:0-*.waits")), 90, "worker:0 at the gate")
        files = sorted(tmp_path.glob("meet/*/ps-?"))
        addresses = [file.read_text().strip().removeprefix("tcp://") for file in files]
        found = ["--ps-hosts", ",".join(addresses), "--worker-hosts", "localhost:1,localhost:2"]

        seen = evener(tmp_path, "doctor", *found)
        assert seen.code == 1
        rows = {line.split()[0]: line for line in seen.out.splitlines()}
        assert "ready" in rows["ps:0"] and "joined: worker:0" in rows["ps:0"]
        assert "ready" in rows["ps:1"]
        assert "  joined" in rows["worker:0"]
        assert "not joined" in rows["worker:1"]
        assert seen.out.endswith("not ready: worker:1\n")

        (tmp_path / "gate").touch()
        ended = [worker.finish()]
        ps0.wait_for("worker:1 has not come yet, so it stays until 60 s after the first worker came; Ctrl-C ends it")
        ps0.signal(signal.SIGINT)
        ended += [run.finish() for run in (ps0, ps1)]
    assert [done.code for done in ended] == [0, 0, 0], "\n".join(done.text for done in ended)
    after = evener(tmp_path, "doctor", *found, "--json")
    assert [row["state"] for row in after.json["tasks"]] == ["refused", "refused", "unknown", "unknown"]


def test_port_0_without_a_rendezvous_is_a_wrong_option(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["task", "mnist", "--job-name", "ps", "--task-index", 0, "--ps-hosts", "h0:0", "--worker-hosts", "h1:0"]
    done = here(capfd, *words)
    assert done.code == 2
    assert "add --rendezvous DIR" in done.err
