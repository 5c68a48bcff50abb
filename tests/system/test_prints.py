"""A `print` of a recipe stands on the person's screen, whichever task it was made in."""

from __future__ import annotations

import json

import pytest
from running import RECIPE, evener

pytestmark = pytest.mark.slow

PRINTING = """
class Printing(evener.Hook):
    def after_step(self, session, result):
        if result.local_step == 3:
            print("look:", session.task)

"""


@pytest.fixture
def recipe(tmp_path):
    text = RECIPE.replace("def recipe(", PRINTING + "def recipe(").replace("hooks = ", "hooks = [Printing()] + ")
    (tmp_path / "small.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize("way", [("--ps", 1, "--workers", 2), ("--towers", 2)], ids=["ps", "towers"])
def test_what_a_hook_prints_is_shown_with_the_name_of_its_task(recipe, way):
    done = evener(recipe, "train", "small.py:recipe", "--train-steps", 60, "--logdir", "run", *way)
    assert done.code == 0, done.text
    for index in range(2):
        shown = [line for line in done.out.splitlines() if f"look: worker:{index}" in line]
        assert len(shown) == 1 and f"worker:{index}  look:" in shown[0], done.text
        assert f"look: worker:{index}\n" in (recipe / "run" / "logs" / f"worker-{index}.log").read_text()


def test_it_is_not_in_the_way_of_what_a_program_reads(recipe):
    words = ("train", "small.py:recipe", "--train-steps", 60, "--ps", 1)
    done = evener(recipe, *words, "--json", "--logdir", "json")
    assert json.loads(done.out)["global_step"] == 60, done.text
    assert "look: worker:0" in done.err
    quiet = evener(recipe, *words, "--quiet", "--logdir", "quiet")
    assert quiet.code == 0 and "look:" not in quiet.text


def test_a_name_that_the_terminal_cannot_say_is_written_with_escapes(recipe):
    (recipe / "größe").mkdir()
    (recipe / "größe" / "trän.py").write_text((recipe / "small.py").read_text())
    words = ("train", "größe/trän.py:recipe", "--train-steps", 10, "--ps", 1, "--logdir", "größe")
    done = evener(recipe, *words, PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (0, ""), done.text
    assert "gr\\xf6\\xdfe/tr\\xe4n.py:recipe: reached step 10" in done.out
