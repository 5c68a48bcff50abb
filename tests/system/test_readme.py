"""Every command and every program in README.md and CONTRIBUTING.md, run as printed there."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    lines = [line.removeprefix("$ ") for block in blocks("console", text) for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a reader would type: with the README's recipe in `spirals.py`, and its script in `train.py`."""
    directory = tmp_path_factory.mktemp("reader")
    (directory / "train.py").write_text(script())
    (directory / "spirals.py").write_text(recipe())
    return directory


def recipe() -> str:
    return next(block for block in blocks("python") if "def recipe" in block)


def script() -> str:
    return next(block for block in blocks("python") if "evener.join" in block)


def needed(command: str) -> list[str]:
    """The commands above this one, in its block, that make what it works on."""
    block = next(block for block in blocks("console") if f"$ {command}" in block)
    above = commands(f"```console\n{block[: block.index(f'$ {command}')]}```")
    works_on = {word for word in command.split()[2:] if word == "digits" or word.startswith("runs/")}
    return [line for line in above if line.startswith("evener ") and works_on & set(line.split())]


def typed(place: Path) -> set[str]:
    return set((place / ".typed").read_text().splitlines()) if (place / ".typed").exists() else set()


def run(command: str, place: Path) -> str:
    words = command.split()
    words[0] = str(BIN / words[0])
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    with (place / ".typed").open("a") as file:
        file.write(f"{command}\n")
    return done.stdout


def test_a_recipe_of_ones_own_takes_at_most_25_lines():
    assert len(recipe().strip().splitlines()) <= 25


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(commands(README)) if c.startswith("evener ")])
def test_each_evener_command_of_the_readme_works(command, place):
    for before in needed(command):  # whoever reads has typed it; this test may be the first on its half of the suite
        if before not in typed(place):
            run(before, place)
    output = run(command, place)
    assert {"launch": "accuracy 0.9", "audit": "ledger clean"}.get(command.split()[1], "validation") in output


def test_the_script_of_the_readme_runs_by_itself_and_has_six_changed_lines(place):
    assert "python train.py" in commands(README)
    assert "accuracy 0.9" in run("python train.py", place)
    assert len(re.findall(r"evener\.|\bev\.", script())) <= 6


def test_the_logs_of_the_readme_open_in_tensorboard(place):
    assert "tensorboard --logdir runs/digits" in commands(README)
    server = subprocess.Popen(
        [BIN / "tensorboard", "--logdir", "runs/digits", "--host", "127.0.0.1", "--port", "0"],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert server.stdout
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        with urllib.request.urlopen(address, timeout=30) as page:
            assert page.status == 200
    finally:
        server.kill()
        server.communicate()


def test_the_python_program_of_the_readme_works_and_is_short(place):
    program = next(block for block in blocks("python") if "evener.run" in block)
    assert len(program.strip().splitlines()) <= 10
    (place / "program.py").write_text(program)
    assert re.search(r"^\d\.\d+ .*step-00000500$", run("python program.py", place), re.MULTILINE)


def test_the_make_targets_of_the_documents_exist():
    named = {c.split()[1] for text in (README, (ROOT / "CONTRIBUTING.md").read_text()) for c in commands(text)
             if c.startswith("make ")}  # fmt: skip
    assert {"demo", "test", "check"} <= named
    for target in named:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_make_demo_is_the_command_of_the_readme():
    shown = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "evener train mnist --ps 1 --workers 2" in shown
    assert "evener train mnist --ps 1 --workers 2" in commands(README)
