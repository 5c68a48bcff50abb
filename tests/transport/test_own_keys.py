"""Keys of one user on one machine: made as they are needed, by whoever comes first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from evener.errors import SecurityError
from evener.transport import keys
from evener.transport.own_keys import own


def secrets(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*.secret")}


def test_a_larger_cluster_adds_to_the_keys_of_a_smaller_one(tmp_path):
    small = secrets(own(tmp_path, 1, 1))
    large = secrets(own(tmp_path, 1, 3))
    assert small.items() <= large.items()
    assert large.keys() - small.keys() == {"worker-1.secret", "worker-2.secret"}
    assert secrets(own(tmp_path, 1, 2)) == large


def test_tasks_that_ask_at_once_get_the_same_keys(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: own(tmp_path, 1, 8), range(8)))
    loaded = [keys.load(tmp_path / "keys", f"worker-{index}") for index in range(8)]
    assert all(one.public == loaded[0].public for one in loaded)


@pytest.mark.parametrize("left", [keys.PUBLIC, keys.SECRET])
def test_half_a_pair_that_a_killed_task_left_is_made_anew(tmp_path, left):
    directory = own(tmp_path, 1, 1)
    (directory / f"worker-0{keys.SECRET if left == keys.PUBLIC else keys.PUBLIC}").unlink()
    own(tmp_path, 1, 1)
    assert keys.load(directory, "worker-0").name == "worker-0"


def test_they_are_as_any_others_once_they_are_made(tmp_path):
    directory = own(tmp_path, 1, 1)
    (directory / "ps-0.secret").chmod(0o644)
    with pytest.raises(SecurityError, match="0644"):
        keys.load(directory, "ps-0")
