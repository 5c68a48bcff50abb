"""From what a caller says to settings, and to a directory of its own."""

from __future__ import annotations

import json
import math
import os
import time
from enum import Enum
from pathlib import Path

import pytest
import torch
from torch import nn

from evener.cluster.cluster import ClusterSpec
from evener.cluster.environment import Rank
from evener.commands.preparation import as_rank, make_logdir, new_logdir, options_there, run_name, settings_of
from evener.errors import ConfigError
from evener.recipes.recipe import Recipe

REFERENCE = f"{__file__}:described"


def described() -> Recipe:
    """A recipe that other processes find by name."""
    return Recipe(
        model=lambda: nn.Linear(1, 1),
        data=lambda: ((torch.zeros(4, 1), torch.zeros(4, 1)), (torch.zeros(4, 1), torch.zeros(4, 1))),
        loss=nn.functional.mse_loss,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )


@pytest.mark.parametrize("others", [{"ps": 1}, {"towers": 2}, {"pipeline_stages": 2}], ids=str)
def test_other_processes_must_find_a_recipe_by_name(others, tmp_path):
    settings, made = settings_of(described, {**others, "logdir": tmp_path})
    assert (settings.recipe, made) == (REFERENCE, None)
    nameless = described()
    with pytest.raises(ConfigError, match="other processes cannot find the recipe"):
        settings_of(nameless, {**others, "logdir": tmp_path})


@pytest.mark.parametrize("alone", [{}, {"towers": 1}, {"pipeline_stages": 1}], ids=str)
def test_one_process_takes_any_recipe_and_keeps_its_name_if_it_has_one(alone, tmp_path):
    settings, made = settings_of(described(), {**alone, "logdir": tmp_path})
    assert isinstance(made, Recipe) and settings.recipe == made.name
    settings, made = settings_of(described, {**alone, "logdir": tmp_path})
    assert isinstance(made, Recipe) and settings.recipe == REFERENCE


@pytest.mark.parametrize(
    ("name", "url"),
    [("logdir", "s3://bucket/run"), ("init_from", "https://host/model.pt"), ("keys", "file:///keys"),
     ("preemption_notice", "file:///notice")],
)  # fmt: skip
def test_a_url_is_no_path_below_the_current_directory(name, url):
    with pytest.raises(ConfigError, match=f"{name}='{url}' cannot work"):
        settings_of("mnist", {name: url})


def test_a_notice_may_be_asked_for_at_a_url(tmp_path):
    settings, _ = settings_of("mnist", {"preemption_notice": "http://127.0.0.1:1/notice", "logdir": tmp_path})
    assert settings.preemption_notice == "http://127.0.0.1:1/notice"


class Kind(Enum):
    WIDE = 2


def test_options_are_what_other_processes_and_checkpoints_have_too(tmp_path):
    given = {"place": Path("a/b"), "kind": Kind.WIDE, "sizes": (3, math.inf), "table": {"of": {1}}, "rate": 0.5}
    settings, _ = settings_of("mnist", {"recipe_options": given, "ps": 1, "logdir": tmp_path})

    data = {"place": "a/b", "kind": "WIDE", "sizes": [3, "inf"], "table": {"of": [1]}, "rate": 0.5}
    assert settings.recipe_options == json.loads(json.dumps(settings.recipe_options)) == data


@pytest.mark.parametrize(
    "value", [print, {1: 2}, torch.zeros(1), [object()]], ids=["a function", "numbers", "a tensor", "x"]
)
def test_an_option_that_cannot_travel_is_refused_where_it_has_to(value, tmp_path):
    settings, _ = settings_of("mnist", {"recipe_options": {"mine": value}, "logdir": tmp_path})
    assert "mine" in settings.recipe_options

    with pytest.raises(ConfigError, match=r"option mine=.* cannot be given to other processes"):
        settings_of("mnist", {"recipe_options": {"mine": value}, "towers": 2, "logdir": tmp_path})


@pytest.fixture
def one_second(monkeypatch, tmp_path):
    """All that happens in this test happens within the same one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20261121-120000")


@pytest.mark.usefixtures("one_second")
def test_runs_of_one_second_get_directories_of_their_own(tmp_path):
    names = [new_logdir("mnist", tmp_path) for _ in range(3)]
    assert names == [f"{tmp_path}/evener-runs/mnist-20261121-120000{more}" for more in ("", "-1", "-2")]


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("mnist", "mnist"), ("my_train.py:recipe", "my_train"), ("/home/me/a.b.py:recipe", "a.b"),
        ("file.py:other", "file-other"), ("package.module:recipe", "module"), ("package.module:small", "module-small"),
        ("module:make.small", "module-make.small"), ("", "run"), ("a/b", "a-b"),
    ],
)  # fmt: skip
def test_a_run_is_called_after_the_file_and_not_after_a_function_that_all_call_recipe(recipe, name):
    assert run_name(recipe) == name


def test_directories_are_absolute_before_the_recipes_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def wanders() -> Recipe:
        monkeypatch.chdir(tmp_path / "elsewhere")
        return described()

    settings, _ = settings_of(wanders, {"logdir": "run", "keys": "keys"})
    assert (settings.logdir, settings.keys) == (f"{tmp_path}/run", f"{tmp_path}/keys")
    monkeypatch.chdir(tmp_path)
    settings, _ = settings_of(wanders, {})
    assert settings.logdir.startswith(f"{tmp_path}/evener-runs/")


def test_a_logdir_of_standing_servers_stays_as_it_is(tmp_path):
    settings, _ = settings_of("mnist", {"logdir": "run"}, here=False)
    assert settings.logdir == "run"


@pytest.mark.usefixtures("one_second")
def test_on_standing_servers_too_where_nobody_here_can_look():
    servers = ClusterSpec.of({"ps": ["a:1"], "worker": ["b:1"]})
    first, second = (options_there("mnist", servers, {})["logdir"] for _ in range(2))
    assert first != second
    assert options_there("mnist", servers, {"logdir": "mine"})["logdir"] == "mine"


def test_under_torchrun_its_processes_are_the_towers():
    rank = Rank(0, 2, 0, 2)
    assert as_rank({"mode": "sync"}, None) == {"mode": "sync"}
    assert as_rank({"workers": 2}, rank) == {"workers": 2, "towers": 2}
    for name in ("towers", "workers"):
        with pytest.raises(ConfigError, match=f"{name}=3, but torchrun has started 2 processes"):
            as_rank({name: 3}, rank)


def test_a_logdir_whose_name_could_not_be_told_to_other_tasks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be used"):
        make_logdir(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    make_logdir(tmp_path / "café")
    assert (tmp_path / "café" / "logs").is_dir()


def test_a_notice_is_a_file_of_whoever_runs_the_command_and_of_no_other_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, found in (("notice", str(tmp_path / "notice")), ("http://cloud/notice", "http://cloud/notice")):
        assert settings_of("mnist", {"preemption_notice": place})[0].preemption_notice == found
    servers = ClusterSpec.of({"ps": ["h0:1"], "worker": ["h1:1"]})
    with pytest.raises(ConfigError, match="--preemption-notice does not go with --existing-servers"):
        options_there("mnist", servers, {"preemption_notice": "notice"})
