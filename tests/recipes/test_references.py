"""Recipes found by name, made with options, and the way back to the name."""

import subprocess
import sys

import pytest

from evener.errors import ConfigError, SecurityError
from evener.recipes.recipe import options_of, reference_of, resolve
from evener.recipes.references import find, importing

SOURCE = """
import torch
from torch import nn
from evener.recipes.recipe import Recipe

def data():
    return (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), None

def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

def narrow(width: int = 3, *, name="narrow"):
    return Recipe(model=lambda: nn.Linear(2, width), data=data, optimizer=optimizer, name=name)

recipe = narrow(4, name="fixed")
alias = [recipe]
number = 3

def broken():
    raise ZeroDivisionError("the user's own")

def forgetful():
    narrow()

class Shelf:
    @staticmethod
    def made():
        return narrow(name="on the shelf")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_a_relative_path_leads_to_the_file_also_after_its_code_has_changed_the_directory(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find("mine.py:recipe")
    monkeypatch.chdir("/")
    assert find("mine.py:recipe") is found  # options are asked for again, and a ps task makes its recipe anew
    with pytest.raises(ConfigError, match="there is no file"):
        find("yours.py:recipe")


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    """What a test imports is forgotten after it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("evener_file_", "house", "neighbour", "mine")):
            del sys.modules[name]


def test_a_recipe_object_in_a_file(file):
    assert resolve(f"{file}:recipe").name == "fixed"


def test_a_function_in_a_file_with_options(file):
    made = resolve(f"{file}:narrow", {"width": "7", "name": "wide"})
    assert made.model().out_features == 7
    assert made.name == "wide"


def test_a_relative_path_begins_at_the_current_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert resolve("mine.py:recipe") is resolve(f"{file}:recipe")


def test_an_attribute_may_be_inside_another(file):
    assert resolve(f"{file}:Shelf.made").name == "on the shelf"


def test_a_module_in_the_current_directory(file, monkeypatch):
    package = file.parent / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rooms.py").write_text(SOURCE)
    monkeypatch.chdir(file.parent)
    assert resolve("house.rooms:narrow").name == "narrow"


def test_a_file_may_import_its_neighbours_now_and_later(tmp_path):
    (tmp_path / "neighbour.py").write_text("name = 'next door'")
    (tmp_path / "neighbour_later.py").write_text("name = 'later'")
    path = tmp_path / "mine.py"
    path.write_text(
        SOURCE
        + "\nimport neighbour\ndef late():\n    import neighbour_later\n    return narrow(name=neighbour_later.name)"
    )
    before = list(sys.path)

    assert resolve(f"{path}:late").name == "later"
    assert sys.path == [*before, str(tmp_path)]


def test_dataclasses_work_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        f"@dataclasses.dataclass\nclass A:\n    b: int\n{SOURCE}"
    )
    assert resolve(f"{path}:recipe").name == "fixed"


def test_shipped_recipes_have_short_names():
    assert resolve("mnist", {"hidden": "16"}).model()[0].out_features == 16


# --- not found: what, why, fix


def refused(reference, *words, options=None):
    with pytest.raises(ConfigError) as caught:
        resolve(reference, options)
    text = str(caught.value)
    assert "why: " in text
    assert "fix: " in text
    for word in words:
        assert word in text


def test_an_unknown_recipe_is_compared_with_the_shipped_ones():
    refused("mnsit", "no recipe 'mnsit'", "did you mean 'mnist'?", "path/to/file.py:name")
    refused("train.py", "no recipe 'train.py'", "mnist")


@pytest.mark.parametrize("reference", [":", "a:", ":b", "mine.py:"])
def test_half_a_reference_is_refused(reference):
    refused(reference, "does not name an object")


def test_a_missing_file_and_a_missing_module_say_where_they_were_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("nowhere.py:recipe", "no file nowhere.py", str(tmp_path))
    refused("nowhere.at.all:recipe", "no module 'nowhere.at.all'", str(tmp_path))
    refused("torch.nowhere:recipe", "no module 'torch.nowhere'")


def test_a_missing_name_is_compared_with_those_there_are(file):
    refused(f"{file}:recipee", "no 'recipee'", "did you mean 'recipe'?", "narrow, recipe")
    refused(f"{file}:Shelf.mad", "did you mean 'made'?")


def test_something_that_is_no_recipe_is_refused(file):
    refused(f"{file}:number", "type int")
    refused(f"{file}:forgetful", "returned None")
    refused(f"{file}:Shelf", "returned an object of type Shelf")


def test_unknown_options_are_compared_with_those_there_are(file):
    refused(f"{file}:narrow", "no option 'widht'", "did you mean 'width'?", "width, name", options={"widht": 1})
    refused("mnist", "no option 'hiden'", "did you mean 'hidden'?", options={"hiden": "1"})
    refused(f"{file}:recipe", "takes no options", "width", options={"width": 1})


def test_an_option_of_another_type_is_refused(file):
    refused(f"{file}:narrow", "width='wide'", "whole number", options={"width": "wide"})


# --- the user's own errors are theirs


def test_what_the_users_function_raises_passes_through(file):
    with pytest.raises(ZeroDivisionError, match="the user's own"):
        resolve(f"{file}:broken")


def test_what_the_users_module_raises_passes_through_each_time(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import missing_dependency")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="missing_dependency"):
            resolve(f"{path}:recipe")
    path.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        resolve(f"{path}:recipe")


def test_a_dependency_that_a_module_lacks_is_not_taken_for_the_module(tmp_path, monkeypatch):
    (tmp_path / "house_of_cards.py").write_text("import missing_dependency")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_dependency"):
        resolve("house_of_cards:recipe")


# --- options for help texts, and the way back


def test_options_and_their_defaults(file):
    assert options_of(f"{file}:narrow") == {"width": 3, "name": "narrow"}
    assert options_of(f"{file}:recipe") == {}
    assert options_of("mnist")["hidden"] == 500


@pytest.mark.parametrize("name", ["narrow", "recipe", "Shelf.made"])
def test_what_a_file_holds_leads_back_to_it(file, name):
    assert reference_of(find(f"{file}:{name}")) == f"{file}:{name}"


def test_shipped_recipes_lead_back_to_their_short_names():
    from evener.recipes.mnist import mnist

    assert reference_of(mnist) == "mnist"


def test_a_recipe_in_a_package_leads_back_to_its_module(file, monkeypatch):
    package = file.parent / "house"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE)
    (package / "rooms.py").write_text(SOURCE)
    monkeypatch.chdir(file.parent)
    assert reference_of(resolve("house.rooms:recipe")) == "house.rooms:recipe"


def test_what_no_name_leads_to_has_no_reference():
    def local():
        pass

    assert reference_of(local) is None
    assert reference_of(lambda: None) is None
    assert reference_of(resolve("mnist")) is None


@pytest.mark.slow
def test_a_script_leads_back_to_its_file_and_a_console_to_nothing(file):
    question = "\nif __name__ == '__main__':\n    from evener.recipes import recipe as r\n"
    question += "    print(r.reference_of(recipe), r.reference_of(narrow))\n"
    file.write_text(SOURCE + question)
    script = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert script.stdout.split() == [f"{file}:recipe", f"{file}:narrow"]

    console = subprocess.run([sys.executable, "-c", SOURCE + question], capture_output=True, text=True, check=True)
    assert console.stdout.split() == ["None", "None"]


def test_who_is_being_imported_can_be_asked(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        SOURCE
        + "\nfrom evener.recipes.references import importing\nseen = importing()\nseen_recipe = narrow(name=seen)"
    )
    assert resolve(f"{path}:seen_recipe").name == f"{path}:seen_recipe"
    assert importing() is None


# --- named by somebody else


@pytest.mark.parametrize(
    ("code", "called"),
    [
        ("def named() -> Recipe:", True),
        ('def named() -> "evener.Recipe":', True),
        ("@evener.recipe\ndef named():", True),
        ("def named():", False),
        ("def named() -> str:", False),
    ],
)
def test_what_somebody_else_names_is_called_only_if_it_says_that_it_is_a_recipe(code, called, tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(f"import evener\nfrom evener import Recipe\n{code}\n    raise RuntimeError('it was called')\n")
    with pytest.raises(RuntimeError if called else SecurityError, match="called"):
        resolve(f"{path}:named", typed=True)


def test_a_function_of_another_module_is_not_called():
    with pytest.raises(SecurityError, match=r"subprocess:getoutput does not say that it is a recipe"):
        resolve("subprocess:getoutput", {"cmd": "id"}, typed=True)
    assert resolve("mnist", typed=True).name
