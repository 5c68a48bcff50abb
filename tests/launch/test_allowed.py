"""What clients of a standing server may ask for: names and directories, decided before anything is imported or made."""

from __future__ import annotations

import pytest

from evener.errors import ConfigError, SecurityError
from evener.launch.standing.allowed import Allowed


@pytest.mark.parametrize("recipe", ["mnist", "cifar10"])
def test_the_recipes_that_ship_are_taken_if_nothing_else_is_said(recipe):
    Allowed().check_recipe(recipe)


@pytest.mark.parametrize("recipe", ["subprocess:getoutput", "os:system", "mnist:main", "mypackage.train:recipe"])
def test_no_others_are(recipe):
    with pytest.raises(SecurityError, match="does not take the recipe") as refused:
        Allowed().check_recipe(recipe)
    assert f"--recipes {recipe.partition(':')[0]}" in refused.value.fix


@pytest.mark.parametrize(
    ("pattern", "recipe", "taken"),
    [
        ("mypackage.*", "mypackage.train:recipe", True),
        ("mypackage.*", "mypackage:recipe", False),
        ("mypackage", "mypackage:recipe", True),
        ("mypackage", "mypackage.train:recipe", False),
        ("mypackage.train:recipe", "mypackage.train:recipe", True),
        ("mypackage.train:recipe", "mypackage.train:other", False),
        ("mypackage.*", "mnist", False),
        ("mnist", "mnist", True),
        ("mnist", "mnist:recipe", False),
        ("*", "subprocess:getoutput", True),
    ],
)
def test_patterns_are_of_modules_or_of_whole_names(pattern, recipe, taken):
    allowed = Allowed((pattern,))
    if taken:
        allowed.check_recipe(recipe)
    else:
        with pytest.raises(SecurityError):
            allowed.check_recipe(recipe)


def test_runs_write_below_the_current_directory_or_where_the_owner_said(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "out").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    allowed = Allowed.of((), ())
    allowed.check_logdir(str(tmp_path / "here" / "run"))
    for outside in (tmp_path / "there", tmp_path / "here2", tmp_path / "here" / "out" / "run", tmp_path):
        with pytest.raises(SecurityError, match="does not write to"):
            allowed.check_logdir(str(outside))
    Allowed.of((), [str(tmp_path / "there")]).check_logdir(str(tmp_path / "there" / "run"))
    with pytest.raises(ConfigError, match="no directory"):
        Allowed.of((), [str(tmp_path / "missing")])


def test_programs_are_those_in_the_directories_that_the_owner_has_named(tmp_path):
    for place in ("jobs/nested", "secret"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "train.py").touch()
    (tmp_path / "jobs" / "notes.txt").touch()
    (tmp_path / "jobs" / "link.py").symlink_to(tmp_path / "secret" / "train.py")
    (tmp_path / "jobs-of-others").mkdir()
    (tmp_path / "jobs-of-others" / "train.py").touch()
    allowed = Allowed.of((), [str(tmp_path)], [str(tmp_path / "jobs")])
    assert allowed.check_script("nested/train.py") == str(tmp_path / "jobs" / "nested" / "train.py")
    assert allowed.check_script(str(tmp_path / "jobs" / "nested" / "train.py")).endswith("jobs/nested/train.py")
    for other in (
        "../secret/train.py",
        "../jobs-of-others/train.py",
        "link.py",
        "notes.txt",
        "nested",
        "missing.py",
        "",
    ):
        with pytest.raises(SecurityError, match="does not run"):
            allowed.check_script(other)
    with pytest.raises(SecurityError, match="does not run"):
        allowed.check(str(tmp_path / "secret" / "train.py"))
    allowed.check("mnist")


def test_no_program_is_run_unless_the_owner_says_where_they_lie(tmp_path):
    (tmp_path / "train.py").touch()
    with pytest.raises(SecurityError, match="does not run") as refused:
        Allowed.of((), [str(tmp_path)]).check_script(str(tmp_path / "train.py"))
    assert "no program is sent" in refused.value.why
    with pytest.raises(ConfigError, match="--scripts names"):
        Allowed.of((), [str(tmp_path)], [str(tmp_path / "missing")])
