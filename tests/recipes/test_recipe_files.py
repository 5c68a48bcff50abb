"""The files that a recipe is made of, which tasks compare; and what a file may not do when it is imported."""

import re
import subprocess
import sys

import pytest

from evener.errors import ConfigError
from evener.recipes.recipe import resolve
from evener.recipes.references import find, sources_of

SOURCE = """
import torch
from torch import nn
from evener.recipes.recipe import Recipe

recipe = Recipe(
    model=lambda: nn.Linear(2, 3), data=lambda: (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)),
    optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), name="fixed",
)
"""


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    """What a test imports is forgotten after it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("evener_file_", "house", "neighbour", "mine")):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


# --- the files that a recipe is made of


def lives_in(directory, **files):
    """Files, by names in which __ is a directory and _py the suffix; the directory."""
    for name, text in files.items():
        path = directory / (name.replace("__", "/").removesuffix("_py") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def names_in(sources):
    return [one.partition(":")[0] for one in sources.split()]


def test_its_own_file_comes_first_then_what_it_imported_from_its_directory(tmp_path):
    lives_in(tmp_path, mine_py=f"import torch, neighbour\n{SOURCE}", neighbour_py="import house.rooms",
             house__rooms_py="size = 3", unused_py="never = 'imported'")  # fmt: skip
    (tmp_path / "house/__init__.py").touch()
    find(f"{tmp_path}/mine.py:recipe")

    sources = sources_of(f"{tmp_path}/mine.py:recipe")
    assert names_in(sources) == ["mine.py", "house/__init__.py", "house/rooms.py", "neighbour.py"]
    assert all(len(one.partition(":")[2]) == 8 for one in sources.split())


def test_of_a_module_in_a_package_it_is_the_package_from_its_top(tmp_path, monkeypatch):
    lives_in(tmp_path, house__deep__mine_py=f"from house import walls\n{SOURCE}", house__walls_py="")
    (tmp_path / "house/__init__.py").touch()
    (tmp_path / "house/deep/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    find("house.deep.mine:recipe")

    assert names_in(sources_of("house.deep.mine:recipe")) == [
        "house/deep/mine.py", "house/__init__.py", "house/deep/__init__.py", "house/walls.py",
    ]  # fmt: skip


def in_another_process(root, reference="mine.py:recipe"):
    """What a task on a machine would say where the recipe lies in `root`."""
    code = (
        f"from evener.recipes.references import find, sources_of; find({reference!r}); print(sources_of({reference!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.mark.slow
def test_machines_where_it_lies_elsewhere_say_the_same_and_of_an_edited_neighbour_another_thing(tmp_path):
    files = {"mine_py": f"import neighbour\n{SOURCE}", "neighbour_py": "sign = 1"}
    here, there = (in_another_process(lives_in(tmp_path / place, **files)) for place in ("here", "there/deeper"))
    assert names_in(here) == ["mine.py", "neighbour.py"]
    assert here == there

    edited = in_another_process(lives_in(tmp_path / "edited", **{**files, "neighbour_py": "sign = -1"}))
    assert names_in(edited) == names_in(here)
    assert edited.split()[0] == here.split()[0]
    assert edited.split()[1] != here.split()[1]


def test_installed_packages_are_no_files_of_a_recipe(tmp_path):
    path = f"import sys\nsys.path.insert(0, {str(tmp_path / 'site-packages')!r})\n"
    lives_in(tmp_path, mine_py=f"{path}import neighbour_far\n{SOURCE}", **{"site-packages__neighbour_far_py": ""})
    find(f"{tmp_path}/mine.py:recipe")
    assert names_in(sources_of(f"{tmp_path}/mine.py:recipe")) == ["mine.py"]


@pytest.mark.parametrize("reference", ["mnist", "cifar10", "evener.recipes.mnist:mnist", ""])
def test_recipes_that_evener_ships_have_none(reference):
    assert sources_of(reference) == ""


def test_a_file_that_is_edited_later_is_not_what_this_process_runs(file):
    find(f"{file}:recipe")
    before = sources_of(f"{file}:recipe")
    file.write_text(f"{SOURCE}\nmore = 1\n")
    assert sources_of(f"{file}:recipe") == before


def test_of_many_files_one_is_named_and_all_are_compared(tmp_path):
    rooms = {f"house__room_{'x' * 60}_{number}_py": "" for number in range(20)}
    imports = "".join(f"import house.room_{'x' * 60}_{number}\n" for number in range(20))
    lives_in(tmp_path, mine_py=f"{imports}{SOURCE}", **rooms)
    find(f"{tmp_path}/mine.py:recipe")

    sources = sources_of(f"{tmp_path}/mine.py:recipe")
    assert len(sources) < 800
    assert re.fullmatch(r"mine\.py:[0-9a-f]{8} and [0-9a-f]{16}", sources)


# --- what a file does when it is imported


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("argparse.ArgumentParser().parse_args(['--unknown'])", "mine.py, line 3, reads the command line (argparse)"),
        ("sys.exit(0)", "mine.py, line 3, ends the program (sys.exit(0))"),
        ("sys.exit('bye')", "mine.py, line 3, ends the program (sys.exit(bye))"),
        ("raise SystemExit", "mine.py, line 3, ends the program (sys.exit(None))"),
    ],
)
def test_a_file_that_is_a_program_is_told_the_line_that_makes_it_one(tmp_path, line, what, capsys):
    (tmp_path / "mine.py").write_text(f"import argparse\nimport sys\n{line}\n{SOURCE}")
    with pytest.raises(ConfigError) as error:
        resolve(f"{tmp_path}/mine.py:recipe")
    assert error.value.what == f"{what} when it is imported."
    assert "every task imports the file of its recipe" in error.value.why
    assert 'if __name__ == "__main__":' in error.value.fix
    assert "--set NAME=VALUE" in error.value.fix


@pytest.mark.parametrize(("package", "fix"), [(True, "house.mine:recipe"), (False, "PACKAGE.mine:recipe")])
def test_a_file_that_imports_its_neighbours_relatively_is_told_how_it_is_named_as_a_module(tmp_path, package, fix):
    lives_in(tmp_path, house__mine_py=f"from .walls import width\n{SOURCE}", house__walls_py="width = 3")
    if package:
        (tmp_path / "house/__init__.py").touch()
    with pytest.raises(ConfigError) as error:
        resolve(f"{tmp_path}/house/mine.py:recipe")
    assert error.value.what.startswith("mine.py imports its neighbours relatively (")
    assert fix in error.value.fix


def test_as_a_module_it_is_found(tmp_path, monkeypatch):
    lives_in(tmp_path, house__mine_py=f"from .walls import width\n{SOURCE}", house__walls_py="width = 3")
    (tmp_path / "house/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve("house.mine:recipe").name == "fixed"
