"""examples/mnist_replica.md: the command lines of the old tutorials, and what to type now."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import socket
from pathlib import Path

import pytest
from running import EVENER, Run, evener, here

from evener.cli import main as cli
from evener.cli.options import dashed

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT.parent / "shared" / "tutorials"
EXAMPLE = (ROOT / "examples" / "mnist_replica.md").read_text()
#: (language, commands) of each block, in order.
BLOCKS = [(kind, text.splitlines()) for kind, text in re.findall(r"```(\w+)\n(.*?)```", EXAMPLE, re.DOTALL)]
CLUSTERS = [commands for kind, commands in BLOCKS if kind == "console"]


def understood(command: str) -> dict[str, object]:
    """The values of `evener task mnist` for one command, old or new."""
    words = shlex.split(command)
    words = ["task", "mnist", *words[2:]] if words[0] == "python" else words[1:]
    args, unknown = cli.parser().parse_known_args([dashed(word) for word in words])
    assert not unknown
    return vars(args)


def given(command: str) -> set[str]:
    names = {word.partition("=")[0].lstrip("-") for word in shlex.split(command) if word.startswith("--")}
    return {{"task_id": "task_index", "ps_host": "ps_hosts"}.get(name, name) for name in names}


def test_each_old_line_is_understood_as_the_new_one_beside_it():
    pairs = [(old, new) for (kind, old), (_, new) in itertools.pairwise(BLOCKS) if kind == "old"]
    assert len(pairs) == 3
    for old, new in ((o, n) for lines in pairs for o, n in zip(*lines, strict=True)):
        assert given(old) <= given(new)
        was, now = understood(old), understood(new)
        assert {name: was[name] for name in given(old)} == {name: now[name] for name in given(old)}


def test_the_old_lines_stand_in_the_tutorials():
    if not TUTORIALS.is_dir():
        pytest.skip("../shared/tutorials is not here")
    text = "\n".join(path.read_text() for path in TUTORIALS.glob("*.txt"))
    for kind, commands in BLOCKS:
        for command in commands if kind == "old" else ():
            literal = command.partition(" --sync")[0] if "distributed.py" in command else command
            assert literal in text or "distributed.py" in literal, command
    assert "执行python distributed.py" in text and "加上--sync_replicas=True" in text
    assert "' tf-ps0:2222,tf-ps1:1111'" in text


TASK = ["task", "mnist", "--job_name=worker", "--task_index=0", "--ps_hosts=h0:1", "--worker_hosts=h1:1,h2:1"]


def test_an_old_flag_and_a_mode_that_contradict_each_other_are_refused(capfd):
    done = here(capfd, *TASK, "--sync_replicas", "--mode", "async", "--download_only")
    assert done.code == 2
    assert "--sync_replicas and --mode async are both given" in done.err
    assert here(capfd, *TASK, "--sync_replicas", "--mode", "sync", "--download_only").code == 0


def test_what_the_old_programs_read_beside_sync_replicas_alone_is_told_and_not_used_without_it(capfd):
    done = here(capfd, *TASK, "--replicas_to_aggregate=1", "--sync_replicas=False", "--download_only")
    assert done.code == 0, done.text
    assert "--replicas_to_aggregate=1 is not used without --sync_replicas, as in TensorFlow" in done.out
    assert "not used" not in here(capfd, *TASK, "--replicas_to_aggregate=1", "--sync_replicas", "--download_only").out


def test_beside_a_mode_which_they_did_not_have_it_is_refused(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = here(capfd, *TASK, "--replicas_to_aggregate=1", "--mode=async")
    assert (done.code, done.out, list(tmp_path.iterdir())) == (2, "", [])
    assert "replicas_to_aggregate=1 means nothing in mode async." in done.err


def on_this_machine(commands: list[str]) -> list[list[str]]:
    """The commands' words, with ps tasks at free ports of this machine. Workers' addresses are names only."""
    lists = re.search(r"--ps_hosts?=('[^']*'|\S+)", commands[0])
    assert lists is not None
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in lists[1].split(",")]
    here = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    return [shlex.split(command.replace(lists[1], f"' {here}'"))[1:] for command in commands]


@pytest.mark.slow
@pytest.mark.parametrize("commands", CLUSTERS, ids=["async", "sync with keys", "task_id", "two ps"])
def test_each_cluster_trains_to_its_end(commands, tmp_path):
    if "--keys=" in commands[0]:
        assert evener(tmp_path, "keys", "new", "keys").code == 0
    with contextlib.ExitStack() as stack:
        # backwards: workers first
        tasks = [stack.enter_context(Run([*EVENER, *words], tmp_path)) for words in on_this_machine(commands)[::-1]]
        ended = [task.finish(115) for task in tasks]
    assert [done.code for done in ended] == [0] * len(commands), "\n".join(done.text for done in ended)
    steps = re.search(r"--train_steps=(\d+)", commands[0])
    assert steps is not None
    assert sum(f"final evaluation at global step {steps[1]}" in done.text for done in ended) >= 1
