"""docs/cluster.md, followed to the letter: laptop-a and laptop-b are two addresses of this machine."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TEXT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
BIN = Path(sys.executable).parent


def commands() -> list[list[str]]:
    """The document's commands in order, with a free port for laptop-a's ps."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    blocks = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    lines = [line.partition("$ ")[2] for block in blocks for line in block.splitlines()]
    place = {"laptop-a:2222": f"127.0.0.1:{port}", "laptop-a": "127.0.0.1", "laptop-b": "127.0.0.2"}
    for name, address in place.items():
        lines = [line.replace(name, address) for line in lines]
    return [[str(BIN / words[0]), *words[1:]] for words in (line.split() for line in lines)]


def test_two_laptops_train_together_as_the_document_says(tmp_path):
    keys, *others = commands()
    tasks = [words for words in others if words[1] == "task"]
    (explain,) = [words for words in others if words[1] == "explain"]
    assert len(tasks) == 3

    subprocess.run(keys, cwd=tmp_path, check=True, capture_output=True)
    shown = subprocess.run(explain, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "this task is worker:1, said by command line" in shown

    running = []
    for number, words in enumerate(reversed(tasks)):  # "the order does not matter"
        home = tmp_path / f"task-{number}"
        home.mkdir()
        (home / "keys").symlink_to(tmp_path / "keys")
        running.append(
            subprocess.Popen(words, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )  # fmt: skip
    outputs = []
    try:
        outputs = [task.communicate(timeout=100)[0] for task in running]
    finally:
        for task in running:
            task.kill()
            task.communicate()
    assert [task.returncode for task in running] == [0, 0, 0], "\n".join(outputs)
    worker_1, worker_0, ps = outputs
    assert "mnist: reached step 1000" in ps
    assert re.search(r"final evaluation at global step 1000: .*validation_accuracy 0\.9", worker_0)
    assert "validation" not in worker_1


@pytest.mark.parametrize(
    "words",
    re.findall(r"^\| `([^`]+)` \|", TEXT.partition("## 3.")[2].partition("## 4.")[0], re.MULTILINE),
)
def test_what_the_table_of_waits_says_is_what_evener_says(words):
    """Each left cell is a text of the sources, up to the names and numbers in it."""
    sources = "".join(path.read_text() for path in (Path(__file__).parents[2] / "src").rglob("*.py"))
    fixed = re.split(r"'x'|worker:1|ps:[01]|mine with seed=\d|\.\.\.|0\.\d|host pid 77|\b12\b", words)
    assert any(part.strip(" ,") for part in fixed)
    for part in fixed:
        assert part.strip(" ,") in sources
