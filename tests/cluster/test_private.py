"""A directory of this user's own, and keys that nobody has to make."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from evener.cluster.cluster import Address
from evener.cluster.private import keyed, keyed_here, private_directory
from evener.errors import SecurityError
from evener.settings import Settings

HERE, THERE = Address("127.0.0.1", 1), Address("10.0.0.9", 1)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_lies_where_the_system_says_and_nobody_else_can_look_into_it(tmp_path):
    path = private_directory(str(tmp_path))
    assert (path, mode(path)) == (tmp_path / "evener", 0o700)


@pytest.mark.parametrize("runtime", ["", "/", "missing", "open", "link"])
def test_where_the_system_says_none_or_one_of_others_it_lies_in_the_home(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    if os.getuid() == 0 and runtime == "/":
        pytest.skip("root owns /")
    path = private_directory(str(tmp_path / runtime) if runtime else "")
    assert path == tmp_path / "home" / ".cache" / "evener"


def test_a_directory_that_is_not_ours_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".cache" / "evener").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SecurityError, match=r"cannot be a directory for this user's keys") as refused:
        private_directory("")
    assert "XDG_RUNTIME_DIR" in refused.value.fix


def test_tasks_of_one_machine_get_keys_of_this_users_own():
    made = keyed(Settings(ps=2, workers=3), [HERE])
    names = {path.name for path in Path(made.keys).glob("*.secret")}
    assert {"ps-0.secret", "ps-1.secret", "worker-2.secret", "client.secret"} <= names


@pytest.mark.parametrize(
    ("settings", "addresses"),
    [
        (Settings(ps=1, keys="mine"), [HERE]),
        (Settings(ps=1, insecure=True), [HERE]),
        (Settings(ps=1, transport="shared"), [HERE]),
        (Settings(ps=1), [HERE, THERE]),
    ],
    ids=["they have some", "they want none", "no port", "several machines"],
)
def test_others_are_left_as_they_are(settings, addresses):
    assert keyed(settings, addresses) is settings


def test_a_launchers_tasks_need_none_where_they_meet_in_memory():
    assert keyed_here(Settings(ps=1)).keys == ""
    assert keyed_here(Settings(ps=1, transport="tcp")).keys
    assert keyed_here(Settings(ps=1, ps_hosts=("127.0.0.1:2222",))).keys
    assert keyed_here(Settings(ps=1, ps_hosts=("10.0.0.9:2222",))).keys == ""
