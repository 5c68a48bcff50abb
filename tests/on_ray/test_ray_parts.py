"""The parts of the Ray launcher that need no Ray: what is asked, what is shipped, keys, and what is kept of a run."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st
from ray.exceptions import AuthenticationError, RpcError

from evener import errors
from evener.commands.on_ray import on_ray
from evener.launch.starters.ray import joining
from evener.launch.starters.ray.asked import RayAsked
from evener.launch.starters.ray.joining import joined
from evener.launch.starters.ray.keyring import Keyring
from evener.launch.starters.ray.room import lacking, total
from evener.launch.starters.ray.run_host import Journal
from evener.launch.starters.ray.shipping import shipped
from evener.launch.starters.ray.told import Start, mark_of, same, shares
from evener.report import Line, Progress, Status
from evener.settings import Settings
from evener.transport import keys
from evener.transport.tcp_handshake import Credentials

# --- what is asked


def test_a_task_needs_one_cpu_unless_it_is_said():
    assert RayAsked().needs("worker") == {"CPU": 1.0}
    asked = RayAsked(resources_per_worker={"GPU": 0.5}, resources_per_ps='{"CPU": 2, "big": 1}')
    assert asked.needs("worker") == {"CPU": 1.0, "GPU": 0.5}
    assert asked.needs("ps") == {"CPU": 2.0, "big": 1.0}


@pytest.mark.parametrize(("amount", "sees"), [(0, 0), (0.25, 1), (1, 1), (2, 2)])
def test_a_worker_sees_as_many_gpus_as_it_has_a_share_in(amount, sees):
    assert RayAsked(resources_per_worker={"GPU": amount}).gpus == sees


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("resources_per_worker", "{GPU: 1}", "is no JSON"),
        ("resources_per_ps", "[1]", "is no object"),
        ("resources_per_ps", {"CPU": -1}, "asks for -1 of CPU"),
        ("resources_per_ps", {"CPU": "many"}, "asks for 'many' of CPU"),
        ("resources_per_ps", {"GPU": 1.5}, "asks for 1.5 of GPU"),
        ("runtime_env", "pip", "is no JSON"),
        ("ray_placement", "far", "--ray-placement 'far' is unknown"),
    ],
)
def test_what_cannot_work_is_refused_by_name(option, value, told):
    with pytest.raises(errors.ConfigError, match=told):
        RayAsked(**{option: value})


@pytest.mark.parametrize("option", ["ray_address", "runtime_env", "detach", "resources_per_ps"])
def test_options_of_ray_without_it_are_refused(option):
    with pytest.raises(errors.ConfigError, match=f"--{option.replace('_', '-')} is an option of another launcher"):
        on_ray("local", {option: "x"})


@pytest.mark.parametrize(
    ("option", "value"), [("keys", "d"), ("ps_hosts", ("h:1",)), ("num_gpus", 1), ("visible_devices", "0")]
)
def test_what_ray_or_its_actors_decide_is_refused(option, value):
    with pytest.raises(errors.ConfigError, match=f"--{option.replace('_', '-')} does not go with --launcher ray"):
        on_ray("ray", {option: value})


def test_other_options_pass_and_gpus_are_what_ray_gives():
    ray, rest = on_ray("ray", {"ps": 1, "ray_address": "auto", "resources_per_worker": {"GPU": 1}})
    assert ray is not None and ray.asked.ray_address == "auto"
    assert rest == {"ps": 1, "num_gpus": 1, "share_gpus": True}
    assert on_ray("local", {"ps": 1}) == (None, {"ps": 1})


def test_without_ps_tasks_there_is_nobody_to_meet():
    ray, _ = on_ray("ray", {})
    assert ray is not None
    with pytest.raises(errors.ConfigError, match="needs ps tasks"):
        ray.settings(Settings(recipe="mnist", towers=2))


def test_an_unknown_launcher_is_refused():
    with pytest.raises(errors.ConfigError, match="no launcher 'slurm'"):
        on_ray("slurm", {})


# --- room

amounts = st.dictionaries(st.sampled_from(["CPU", "GPU", "x"]), st.floats(0.5, 8), min_size=1)


@given(st.lists(amounts, min_size=1, max_size=5), amounts)
def test_what_is_missing_names_each_resource_that_is_short_and_no_other(asked, free):
    told = lacking(asked, 3, free, free)
    short = {name for name, amount in total(asked).items() if amount > free.get(name, 0.0)}
    for name in total(asked):
        assert (f" {name};" in told) == (name in short or not short)


# --- what is shipped


def plan(place, monkeypatch, recipe="", script="", asked=None):
    monkeypatch.chdir(place)
    settings = Settings(recipe=recipe or Path(script).name, script=script, ps=1, logdir="run", batch_size=1)
    return shipped(settings, place, asked or {})


def test_nothing_is_shipped_of_what_evener_ships(tmp_path, monkeypatch):
    assert plan(tmp_path, monkeypatch, "mnist") == ({}, {})


def test_a_file_takes_its_directory_with_it(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").touch()
    environment, there = plan(tmp_path, monkeypatch, str(tmp_path / "a" / "b.py") + ":made")
    assert environment["working_dir"] == str(tmp_path)
    assert "/evener-runs/" in environment["excludes"]
    assert there == {"recipe": "a/b.py:made"}


def test_a_program_from_elsewhere_takes_its_own_directory(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "train.py").touch()
    environment, there = plan(tmp_path / "here", monkeypatch, script=str(tmp_path / "there" / "train.py"))
    assert environment["working_dir"] == str(tmp_path / "there")
    assert there == {"script": "train.py"}


def test_a_module_of_this_directory_is_shipped_and_an_installed_one_is_not(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").touch()
    (tmp_path / "numpy").mkdir()
    assert plan(tmp_path, monkeypatch, "mine_alone:recipe")[0]["working_dir"] == str(tmp_path)
    assert plan(tmp_path, monkeypatch, "numpy:recipe") == ({}, {})


def test_what_a_person_says_of_it_counts(tmp_path, monkeypatch):
    (tmp_path / "b.py").touch()
    asked = {"working_dir": "s3://bucket/code.zip", "pip": ["timm"]}
    assert plan(tmp_path, monkeypatch, "b.py:made", asked=asked)[0] == asked
    with_packages = plan(tmp_path, monkeypatch, "b.py:made", asked={"pip": ["timm"], "excludes": ["data/"]})[0]
    assert with_packages["pip"] == ["timm"]
    assert with_packages["excludes"][0] == "data/"


# --- directories that are the same on another node


def test_a_directory_is_known_by_more_than_its_name(tmp_path):
    place = tmp_path / "work"
    place.mkdir()
    start = Start(str(place), mark_of(str(place)), str(place), "token")
    assert same(start) and not shares(start)
    (place / "token").touch()
    assert same(start) and shares(start)
    place.rename(tmp_path / "before")
    assert not same(start) and not shares(start)
    place.mkdir()
    assert not same(start)


def test_where_there_was_none_there_is_none(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert not same(Start(nowhere, mark_of(nowhere), nowhere, "token"))


# --- keys


def test_a_secret_stays_where_it_was_made_and_goes_away_with_its_actor():
    one, other = Keyring("ps-0"), Keyring("worker-3")
    secret = one.directory / "ps-0.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(one.directory.stat().st_mode) == 0o700
    one.trust({"ps-0": "not mine", "worker-3": other.certificate})
    assert set(os.listdir(one.directory)) == {"ps-0.secret", "ps-0.public", "worker-3.public"}
    assert keys.load(one.directory, "ps-0").public.keys() == {"ps-0", "worker-3"}
    one.close()
    assert not one.directory.exists()
    other.close()


def test_a_server_learns_the_new_key_of_a_task_that_has_come_back():
    server, first, second = Keyring("ps-0"), Keyring("worker-0"), Keyring("worker-0")
    server.trust({"worker-0": first.certificate})
    before = Credentials(keys.load(server.directory, "ps-0"))
    assert before.renewed() is before
    os.utime(server.directory, (1, 1))  # the clock of the file system may be coarse
    server.trust({"worker-0": second.certificate})
    after = before.renewed()

    assert set(before.tasks.values()) == set(after.tasks.values()) == {"ps-0", "worker-0"}
    assert len(set(before.tasks) ^ set(after.tasks)) == 2
    for ring in (server, first, second):
        ring.close()


def test_a_key_that_was_known_means_the_same_task_for_good():
    server, worker = Keyring("ps-0"), Keyring("worker-0")
    server.trust({"worker-0": worker.certificate})
    before = Credentials(keys.load(server.directory, "ps-0"))
    (server.directory / "worker-0.public").rename(server.directory / "client.public")
    os.utime(server.directory, (1, 1))
    assert before.renewed().tasks == before.tasks
    for ring in (server, worker):
        ring.close()


# --- what is kept of a detached run


def test_who_attaches_late_is_told_all_events_and_the_newest_figures():
    journal = Journal()
    for step in range(3):
        journal.add(Progress(step, 0, 0.0, 0.0, 0.0, 0))
        journal.add(Status("worker:0", "training", step))
    journal.add(Line("worker:0", "one"))
    progress, status, line = journal.since(0)
    assert isinstance(progress, Progress) and progress.global_step == 2
    assert isinstance(status, Status) and status.step == 2
    assert line == Line("worker:0", "one")


@given(st.lists(st.sampled_from(["line", "status", "progress"]), max_size=40), st.integers(0, 40))
def test_who_asks_again_is_told_what_came_since(kinds, cut):
    journal = Journal()
    for number, kind in enumerate(kinds):
        if number == cut:
            heard = journal.until
        journal.add({
            "line": Line("ps:0", str(number)), "status": Status("ps:0", "training", number),
            "progress": Progress(number, 0, 0.0, 0.0, 0.0, 0),
        }[kind])  # fmt: skip
    if cut < len(kinds):
        lines = [str(number) for number in range(cut, len(kinds)) if kinds[number] == "line"]
        assert [report.text for report in journal.since(heard) if isinstance(report, Line)] == lines
        figures = sum(not isinstance(report, Line) for report in journal.since(heard))
        assert figures == len(set(kinds[cut:]) - {"line"})
    assert journal.since(journal.until) == []


# --- to which Ray a run goes


@pytest.fixture
def begun(monkeypatch):
    """What Ray is asked to begin with; nothing is begun."""
    asked = []
    monkeypatch.setattr(joining, "_init", lambda address, **more: asked.append(address))
    monkeypatch.setattr(joining, "addresses", lambda: {"127.0.0.1"})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return asked


@pytest.fixture
def listens(monkeypatch):
    """An address at which a cluster without a token listens."""
    monkeypatch.setattr(joining, "GcsClient", lambda address: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_ray_that_runs_here_is_taken_if_it_answers_else_one_is_started(begun, listens, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"127.0.0.1:{server.getsockname()[1]}"
    for found, own in ((listens, False), (dead, True)):
        monkeypatch.setattr(
            joining.services,
            "get_ray_address_from_environment",
            lambda asked, _, found=found: found * (asked == "auto"),
        )
        monkeypatch.setattr(joining.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=listens))
        assert joined("", {}, 2).own is own
    assert begun == [listens, "local"]


def test_an_address_that_a_person_gave_is_the_only_one_and_said_at_once_if_nothing_listens(begun, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"127.0.0.1:{server.getsockname()[1]}"
    for address in (dead, f"ray://{dead}"):
        with pytest.raises(errors.Unavailable, match=f"no Ray cluster answers at {address}"):
            joined(address, {}, 2)
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(errors.Unavailable, match=f"no Ray cluster answers at {dead}"):
        joined("", {}, 2)
    assert begun == []


@pytest.mark.parametrize("token", ["right", "wrong", "none"])
def test_a_cluster_that_wants_a_token_gets_the_one_of_this_user_or_says_where_there_is_one(
    token, begun, listens, monkeypatch
):
    asked = []

    def client(address):
        asked.append(address)
        if token != "right" or len(asked) == 1:
            raise AuthenticationError("InvalidAuthToken")

    monkeypatch.setattr(joining, "GcsClient", client)
    monkeypatch.setattr(joining, "token_is_used", lambda: token != "none")
    if token == "right":
        assert not joined(listens, {}, 2).own
    else:
        with pytest.raises(errors.AuthError, match="wants its token") as refused:
            joined(listens, {}, 2)
        assert "ray get-auth-token" in refused.value.fix
    assert asked == [listens] * (1 if token == "none" else 2)
    assert begun == [listens] * (token == "right")


def test_what_listens_and_is_no_ray_is_told_as_that(begun, listens, monkeypatch):
    def client(address):
        raise RpcError("Timed out")

    monkeypatch.setattr(joining, "GcsClient", client)
    with pytest.raises(errors.Unavailable, match="no Ray cluster answers") as refused:
        joined(listens, {}, 2)
    assert "does not speak as Ray does" in refused.value.why


def test_one_of_its_own_is_started_beside_others_if_asked_and_never_for_a_run_that_outlives_it(begun):
    assert joined("local", {}, 2).own
    with pytest.raises(errors.Unavailable, match="ends with the process"):
        joined("local", {}, 0)
    assert begun == ["local"]
