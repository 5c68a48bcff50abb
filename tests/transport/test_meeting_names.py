"""Where a ps task is met on its own machine: random names, told in a file that only this user reads."""

from __future__ import annotations

import pytest

from evener.transport import meeting_names


def test_a_name_is_new_each_time_and_found_by_its_key(tmp_path):
    first, second = meeting_names.fresh(), meeting_names.fresh()
    assert first != second
    meeting_names.tell(tmp_path, "run-ps-0-2222", first)
    meeting_names.tell(tmp_path, "run-ps-0-2222", second)
    meeting_names.tell(tmp_path, "run-ps-1-2223", first)
    assert meeting_names.find(tmp_path, "run-ps-0-2222") == second
    assert meeting_names.find(tmp_path, "run-ps-9-2222") == ""


def test_who_leaves_takes_back_its_own_name_alone(tmp_path):
    old, new = meeting_names.fresh(), meeting_names.fresh()
    meeting_names.tell(tmp_path, "key", new)
    meeting_names.forget(tmp_path, "key", old)
    assert meeting_names.find(tmp_path, "key") == new
    meeting_names.forget(tmp_path, "key", new)
    assert meeting_names.find(tmp_path, "key") == ""


@pytest.mark.parametrize("told", [b"", b"shared:evener-x", b"tcp://10.0.0.9:1", b"\xff" * 80, b"x" * 10_000])
def test_what_is_no_name_is_nobody(tmp_path, told):
    meeting_names.tell(tmp_path, "key", meeting_names.fresh())
    next((tmp_path / "meet").iterdir()).write_bytes(told)
    assert meeting_names.find(tmp_path, "key") == ""


def test_a_key_is_no_path(tmp_path):
    meeting_names.tell(tmp_path, "../../out", meeting_names.fresh())
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "meet"]
