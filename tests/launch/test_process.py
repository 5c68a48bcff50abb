"""Tasks as processes of this machine, forked and started one by one: what the contract of starters does not say."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from evener.control.control import Assignment
from evener.control.told import LEFT
from evener.launch.starters.forked import possible
from evener.launch.starters.process import Process, Processes
from evener.report import Failed, Published
from evener.transport.channel import wait

pytestmark = pytest.mark.slow

#: A recipe's file that writes down what it finds in its process, and holds no recipe.
RECIPE = """
import json, os, pathlib, random, numpy

with open(os.environ["SAYS"], "w") as file:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    drawn = numpy.random.random(), random.random()
    held = [str(path.readlink()) for path in pathlib.Path("/proc/self/fd").iterdir() if path.exists()]
    json.dump([os.getsid(0) == os.getpid(), gpus, *drawn, len(held), "pidfd" in " ".join(held)], file)
"""


#: Another, which writes down how many arenas glibc makes for four threads, and whether PyTorch's compiler is there.
ARENAS = """
import ctypes, json, os, pathlib, sys, threading, torch

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p


def arenas():
    with_all = ctypes.c_void_p(libc.fopen(b"arenas.xml", b"w"))
    libc.malloc_info(0, with_all)
    libc.fclose(with_all)
    return pathlib.Path("arenas.xml").read_text().count("<heap")


def take():
    torch.empty(1 << 16)
    all_have.wait()


before, all_have = arenas(), threading.Barrier(4)
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with open(os.environ["SAYS"], "w") as file:
    json.dump([arenas() - before, "torch._dynamo" in sys.modules], file)
"""


@pytest.fixture(params=["forked", "started"])
def processes(request, tmp_path, monkeypatch):
    if request.param == "forked" and not possible():
        pytest.skip("no fork server here: it needs Linux, and no GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "telling.py").write_text(RECIPE)
    processes = Processes(forks=request.param == "forked")
    yield processes
    processes.close()


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
    return found


def gone(process: psutil.Process) -> bool:
    """Dead, whether or not somebody has waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assignment(job: str = "ps", index: int = 0, recipe: str = "mnist") -> Assignment:
    return Assignment(job, index, {"recipe": recipe, "logdir": ".", "ps": 1, "workers": 2, "train_steps": 5}, "run")


def heard(process: Process, kind: type, seconds: float = 60.0):
    """The first report of a kind."""

    def look():
        wait([process], 0.1)
        return [report for report in process.reports() if isinstance(report, kind)]

    return until(look, seconds)[0]


def listening(processes: Processes, index: int = 0) -> Process:
    """A ps task that waits for workers."""
    process = processes.start(assignment(index=index))
    heard(process, Published)
    assert process.pid > 0
    return process


def test_files_of_the_current_directory_that_are_named_like_modules_are_not_run(processes, tmp_path):
    for name in ("types", "queue", "logging", "argparse", "threads", "random", "signal", "select", "torch", "msgspec"):
        (tmp_path / f"{name}.py").write_text(f"open('was-run', 'a').write('{name} ')\nraise RuntimeError('{name}')")
    (tmp_path / "beside.py").write_text("from evener.recipes.mnist import mnist as recipe")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "train.py").write_text("import random, types, torch\nfrom beside import recipe")
    process = processes.start(assignment(recipe="sub/train.py:recipe"))
    heard(process, Published)
    process.close()
    assert not (tmp_path / "was-run").exists()


def test_each_task_has_its_own_session_environment_randomness_and_no_other_descriptors(processes, monkeypatch):
    said = []
    other = listening(processes)
    for index in range(2):
        monkeypatch.setenv("SAYS", f"{index}.json")
        process = processes.start(assignment("ps", index, "telling.py:nothing"))
        heard(process, Failed)
        process.close()
        said.append(json.loads(Path(f"{index}.json").read_text()))
    other.close()

    (session, gpus, numpys, pythons, descriptors, pidfd), (_, _, others, theirs, as_many, _) = said
    assert session and gpus == "" and numpys != others and pythons != theirs and descriptors == as_many and not pidfd


def test_a_ps_has_one_arena_and_no_task_is_given_the_compiler(processes, monkeypatch):
    Path("arenas.py").write_text(ARENAS)
    said = {}
    for job in ("worker", "ps"):
        monkeypatch.setenv("SAYS", f"{job}.json")
        process = processes.start(assignment(job, recipe="arenas.py:nothing"))
        heard(process, Failed)
        process.close()
        said[job] = json.loads(Path(f"{job}.json").read_text())

    assert (said["ps"][0], said["worker"][0] > 0) == (0, True)
    assert not said["ps"][1] and not said["worker"][1]


def test_a_killed_task_is_told_as_such_and_is_dead_when_closed(processes):
    process = listening(processes)
    assert process.ended() is None
    name = " ".join(psutil.Process(process.pid).cmdline()).split()[-1]
    process.kill()
    until(lambda: process.ended() is not None)
    assert (name, process.ended()) == ("ps:0", "was killed by SIGKILL")
    pid = process.pid
    process.close()
    assert not psutil.pid_exists(pid) and not process.open


def test_a_log_that_cannot_be_opened_is_told_and_the_task_trains_without(processes):
    Path("logs/ps-0.log").mkdir()
    told = []
    processes._tell = told.append
    process = listening(processes)
    process.close()
    assert told == ["logs/ps-0.log cannot be opened (Is a directory): what its task writes there is lost"]


def test_the_directory_of_the_logs_is_made_again_when_it_was_deleted(processes):
    Path("logs").rmdir()
    process = listening(processes)
    process.close()
    assert Path("logs/ps-0.log").exists()


#: A recipe's file that starts processes, as data loaders and trackers do: in its session, one in a group of its own.
PARENT = """
import subprocess
started = [subprocess.Popen(["sleep", "1000"], process_group=group) for group in (None, 0)]
with open("children", "w") as file:
    file.write(" ".join(str(child.pid) for child in started) + " .")
from evener.recipes.mnist import mnist as recipe
"""


def children_of_recipe() -> list[psutil.Process]:
    """The processes that it has started."""

    def written():
        return Path("children").read_text().split(" ") if Path("children").exists() else []

    until(lambda: written()[-1:] == ["."])
    return [psutil.Process(int(pid)) for pid in written()[:-1]]


def test_what_a_recipe_has_started_ends_with_a_launcher_that_is_killed(processes, tmp_path):
    Path("parent.py").write_text(PARENT)
    code = f"""
import sys, time
from evener.control.control import Assignment
from evener.launch.starters.process import Processes
settings = {assignment(recipe="parent.py:recipe").settings}
process = Processes(forks={processes.forks}).start(Assignment("ps", 0, settings, "run"))
while True: time.sleep(1)
"""
    launcher = psutil.Popen([sys.executable, "-c", code])
    children = children_of_recipe()
    others = launcher.children(recursive=True)
    assert not any(map(gone, children))
    launcher.kill()
    launcher.wait()
    until(lambda: all(map(gone, [*children, *others])))


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_what_a_recipe_has_started_ends_with_a_fork_server_that_is_killed(processes):
    Path("parent.py").write_text(PARENT)
    process = processes.start(assignment(recipe="parent.py:recipe"))
    heard(process, Published)
    children = children_of_recipe()
    processes._server._process.kill()
    until(lambda: process.ended() is not None)
    until(lambda: all(map(gone, children)))
    process.close()


def test_a_process_of_another_session_stays(processes):
    Path("parent.py").write_text(PARENT.replace("process_group=group", "start_new_session=True"))
    process = processes.start(assignment(recipe="parent.py:recipe"))
    heard(process, Published)
    children = children_of_recipe()
    process.close()
    assert not any(map(gone, children))
    for child in children:
        child.kill()


def test_one_that_is_killed_before_it_is_born_takes_no_other_along(processes):
    one = listening(processes)
    two = processes.start(assignment(index=1))
    two.kill()
    two.close()
    assert (two.ended(), one.ended()) == ("was killed by SIGKILL", None)
    one.close()


def test_tasks_that_are_killed_before_they_are_born_are_never_born(processes):
    started = [processes.start(assignment(index=index)) for index in range(3)]
    for process in started:
        process.kill()
    for process in started:
        process.close()
        assert process.ended() == "was killed by SIGKILL"
        assert not process.pid or not psutil.pid_exists(process.pid)


def test_after_a_close_no_process_is_left(processes):
    process = listening(processes)
    below = psutil.Process().children(recursive=True)
    assert process.pid in {one.pid for one in below}
    process.close()
    processes.close()
    until(lambda: all(map(gone, below)))  # an orphan waits for init to look at it


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_a_task_that_is_told_to_leave_the_moment_it_is_born_leaves(processes):
    """Forty, for the moment is short in which nothing of the task listens yet."""
    for _ in range(40):
        process = processes.start(assignment())
        while not process.pid:
            pass  # what sleeps comes too late
        os.kill(process.pid, signal.SIGTERM)
        assert until(process.ended) in ("was killed by SIGTERM", LEFT)
        process.close()


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_a_killed_fork_server_takes_its_tasks_along_and_the_next_task_has_a_new_one(processes):
    one = listening(processes)
    server = processes._server
    unborn = processes.start(assignment(index=1))
    os.kill(one.pid, signal.SIGSTOP)  # it cannot see that its line has ended
    server._process.kill()
    until(lambda: one.ended() and unborn.ended())
    assert one.ended() == unborn.ended() == "was killed by SIGKILL"
    assert not psutil.pid_exists(one.pid) or psutil.Process(one.pid).status() == psutil.STATUS_ZOMBIE  # init's
    for process in (one, unborn):
        process.close()
    again = listening(processes)
    assert processes._server is not server
    again.close()


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_how_a_task_ended_is_known_although_the_fork_server_dies_with_an_order_unread(processes):
    one = processes.start(assignment(recipe="absent.py:nobody"))
    pid, server = until(lambda: one.pid), processes._server
    until(lambda: not psutil.pid_exists(pid))
    held = psutil.Process(server._process.pid)
    until(lambda: held.status() == psutil.STATUS_SLEEPING)  # it has said so, and waits for more
    held.suspend()
    two = processes.start(assignment(index=1))
    held.kill()
    until(lambda: not server.alive)
    assert (one.ended(), two.ended()) == ("ended with status 1", "was killed by SIGKILL")
    for process in (one, two):
        process.close()


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_how_tasks_end_is_known_where_children_are_ignored_as_under_some_supervisors(processes):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a new process inherits it
    try:
        process = processes.start(assignment(recipe="absent.py:nobody"))
    finally:
        signal.signal(signal.SIGCHLD, before)
    until(lambda: process.ended() is not None)
    assert process.ended() == "ended with status 1"
    process.close()


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_what_still_lives_when_the_fork_server_is_closed_was_killed(processes):
    process = listening(processes)
    processes.close()
    assert process.ended() == "was killed by SIGKILL"
    process.close()


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_a_stopped_fork_server_keeps_nobody_waiting(processes):
    process = listening(processes)
    os.kill(processes._server._process.pid, signal.SIGSTOP)
    process.kill()
    process.close()
    assert process.ended() == "was killed by SIGKILL"


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_ctrl_c_ends_no_fork_server(processes):
    """Not even one that reaches all processes of a job, as Slurm's does: tasks that are to save would die with it."""
    one = listening(processes)
    os.kill(processes._server._process.pid, signal.SIGINT)
    two = listening(processes, 1)
    assert one.ended() is None
    for process in (one, two):
        process.close()


@pytest.mark.parametrize("processes", ["forked"], indirect=True)
def test_a_task_that_the_fork_server_cannot_be_told_of_is_started_all_the_same(processes, monkeypatch):
    one = listening(processes)
    monkeypatch.setenv("EVENER_SAYS", "x" * (1 << 16))
    two = listening(processes, 1)
    assert psutil.Process(two.pid).parent() == psutil.Process()
    for process in (one, two):
        process.close()
