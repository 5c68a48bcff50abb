"""A file named like a module of Python is somebody's own, and no part of what others import."""

from __future__ import annotations

import sys

import pytest

from evener.recipes.neighbours import neighbours_of
from evener.recipes.references import find


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    """What a test imports is forgotten after it, and `colorsys` before it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("evener_file_", "neighbour", "colorsys", "msilib")):
            del sys.modules[name]


def test_a_module_of_python_is_found_before_a_neighbour_of_its_name(tmp_path):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('this is not what anybody wants')")
    (tmp_path / "mine.py").write_text("import colorsys\nblack = colorsys.rgb_to_hsv(0, 0, 0)")
    assert find(f"{tmp_path}/mine.py:black") == (0.0, 0.0, 0)


def test_so_it_is_for_a_file_that_is_named_as_a_module_of_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('this is not what anybody wants')")
    (tmp_path / "neighbour_recipe.py").write_text("import colorsys\nblack = colorsys.rgb_to_hsv(0, 0, 0)")
    monkeypatch.chdir(tmp_path)
    assert find("neighbour_recipe:black") == (0.0, 0.0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="it is there")
def test_a_name_of_python_that_this_python_lacks_is_the_neighbours(tmp_path):
    (tmp_path / "msilib.py").write_text("mine = True")
    assert "msilib" in sys.stdlib_module_names
    (tmp_path / "mine.py").write_text("from msilib import mine")
    assert find(f"{tmp_path}/mine.py:mine") is True


def test_a_neighbour_comes_before_what_is_installed_while_its_file_is_imported_and_after_it_later(tmp_path):
    (tmp_path / "neighbour_or_not.py").write_text("place = 'here'")
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "neighbour_or_not.py").write_text("place = 'installed'")
    sys.path.insert(0, str(installed))
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom neighbour_or_not import place\ndel sys.modules['neighbour_or_not']\n"
        "def later():\n    from neighbour_or_not import place\n    return place"
    )
    assert find(f"{tmp_path}/mine.py:place") == "here"
    assert find(f"{tmp_path}/mine.py:later")() == "installed"


def test_what_finds_modules_is_as_before_whatever_the_file_does(tmp_path):
    before = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), neighbours_of(tmp_path):
        sys.meta_path.pop(0)
        raise ZeroDivisionError
    assert sys.meta_path == before
