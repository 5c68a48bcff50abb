"""Which cluster this process is in: flags, TF_CONFIG, torchrun, Slurm."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from evener.cluster.cluster import Task
from evener.cluster.environment import Flags, Rank, explain, find, loopback_variables, nodelist, rank_here
from evener.errors import ConfigError

HOSTS = {"ps_hosts": "h0:2222", "worker_hosts": "h1:2222,h2:2222"}


def tf_config(job: str, index: object, **jobs: list[str]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": job, "index": index}})}


def test_flags_say_which_task_this_is():
    found = find(Flags(job_name="worker", task_index=1, **HOSTS), {})

    assert (found.task, found.source) == (Task("worker", 1), "command line")
    assert explain(found).splitlines() == [
        "this task is worker:1, said by command line",
        "cluster:",
        "  ps:0         h0:2222",
        "  worker:0     h1:2222",
        "  worker:1     h2:2222   <- this task",
    ]


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (Flags(task_index=0, **HOSTS), "the job of this task is not given"),
        (Flags(job_name="ps", **HOSTS), "the index of this task is not given"),
        (Flags(), "nothing says which cluster this task belongs to"),
    ],
)
def test_what_is_missing_is_named(flags, what):
    with pytest.raises(ConfigError) as error:
        find(flags, {})
    assert what in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize("chief", ["chief", "master"])
def test_the_chief_of_tf_config_is_worker_0_and_the_workers_follow_it(chief):
    jobs = {chief: ["c:1"], "ps": ["p:1"], "worker": ["w:1", "w:2"]}

    assert find(Flags(), tf_config(chief, 0, **jobs)).task == Task("worker", 0)
    found = find(Flags(), tf_config("worker", 1, **jobs))
    assert found.task == Task("worker", 2)
    assert [str(address) for address in found.cluster.worker] == ["c:1", "w:1", "w:2"]


def test_an_evaluator_is_told_how_validation_is_done_here():
    with pytest.raises(ConfigError, match="an evaluator, which evener has not") as error:
        find(Flags(), tf_config("evaluator", 0, ps=["p:1"], worker=["w:1"], evaluator=["e:1"]))
    assert "evener eval" in error.value.fix


def test_tf_config_that_is_not_json_is_refused_with_the_place():
    with pytest.raises(ConfigError, match="TF_CONFIG is not JSON: line 1 column 13"):
        find(Flags(), {"TF_CONFIG": '{"cluster": nonsense'})


@pytest.mark.parametrize(
    ("config", "what", "fix"),
    [
        (
            {"sparseCluster": {"worker": {"0": "h1:1"}, "ps": ["h0:1"]}, "task": {"type": "worker", "index": 0}},
            'TF_CONFIG has a "sparseCluster", which names some tasks of a cluster only.', 'name all tasks: "cluster":',
        ),
        ({"cluster": ["h:1"]}, "The \"cluster\" of TF_CONFIG is ['h:1'].", '"worker": [...]'),
        (["h:1"], "TF_CONFIG is ['h:1'].", '"worker": [...]'),
        (
            {"cluster": {"ps": ["grpc://h0:2222"], "worker": ["h1:1"]}},
            "address 'grpc://h0:2222' of ps:0 begins with grpc://.", "write h0:2222.",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_tf_config_is_named(config, what, fix):
    with pytest.raises(ConfigError) as error:
        find(Flags(), {"TF_CONFIG": json.dumps(config)})
    assert error.value.what == what and fix in error.value.fix


@pytest.mark.parametrize("alone", [{}, {"cluster": {}}, {"cluster": None}, {"task": {"type": "worker", "index": 0}}])
def test_a_tf_config_without_a_cluster_is_not_said_to_be_missing(alone):
    with pytest.raises(ConfigError, match="nothing says which cluster") as error:
        find(Flags(), {"TF_CONFIG": json.dumps(alone)})
    assert "TF_CONFIG names no cluster" in error.value.why
    with pytest.raises(ConfigError) as error:
        find(Flags(), {})
    assert "TF_CONFIG is not set" in error.value.why


def test_the_command_line_and_tf_config_may_not_contradict_each_other():
    told = tf_config("worker", 0, ps=["h0:2222"], worker=["h1:2222", "h2:2222"])
    with pytest.raises(ConfigError, match="worker:1 by the command line, worker:0 by TF_CONFIG"):
        find(Flags(job_name="worker", task_index=1, **HOSTS), told)
    assert find(Flags(job_name="worker", task_index=0, **HOSTS), told).task == Task("worker", 0)


def test_under_torchrun_the_first_ranks_are_ps_tasks():
    variables = {"WORLD_SIZE": "3", "MASTER_ADDR": "m", "MASTER_PORT": "29500"}
    tasks = [find(Flags(ps=1), {**variables, "RANK": str(rank)}).task for rank in range(3)]

    assert tasks == [Task("ps", 0), Task("worker", 0), Task("worker", 1)]
    with pytest.raises(ConfigError, match="add --ps P with P from 1 to 2"):
        find(Flags(), {**variables, "RANK": "0"})
    with pytest.raises(ConfigError, match="RANK='x' is not an integer"):
        find(Flags(ps=1), {**variables, "RANK": "x"})


def test_under_slurm_ranks_are_placed_on_nodes_in_order():
    variables = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[01-02]"}
    found = find(Flags(ps=1), variables)

    assert found.task == Task("worker", 1)
    assert [str(a) for a in (*found.cluster.ps, *found.cluster.worker)] == [
        "n01:2222",
        "n01:2223",
        "n02:2224",
        "n02:2225",
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("a[1-2]-ib,b", ["a1-ib", "a2-ib", "b"]),
        ("r[0-1]_n[08-09],b", ["r0_n08", "r0_n09", "r1_n08", "r1_n09", "b"]),
    ],
)
def test_compressed_host_lists_are_unfolded(text, names):
    assert nodelist(text) == names


@given(st.text(max_size=60))
def test_whatever_tf_config_holds_the_answer_is_a_cluster_or_a_config_error(text):
    try:
        find(Flags(), {"TF_CONFIG": text})
    except ConfigError as error:
        assert error.what


@pytest.mark.parametrize("told", [None, 3, "h:1", {"0": "h:1"}, [1], [None]])
def test_a_job_of_tf_config_that_is_no_list_of_addresses_is_refused(told):
    with pytest.raises(ConfigError, match="of TF_CONFIG is"):
        find(Flags(), {"TF_CONFIG": json.dumps({"cluster": {"worker": told}})})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["cluster", "task", "ps", "worker", "type", "index"]), inner)
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_json_in_tf_config_too(value):
    try:
        find(Flags(), {"TF_CONFIG": json.dumps(value)})
    except ConfigError as error:
        assert error.what


# --- towers


TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h0", "MASTER_PORT": "29500",
}  # fmt: skip


def test_torchrun_says_which_tower_this_process_is():
    assert rank_here(TORCHRUN) == Rank(3, 4, 1, 2)
    assert not rank_here(TORCHRUN).one_machine
    assert rank_here(TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}).one_machine
    assert rank_here({}) is None
    assert rank_here(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None  # one process is no group
    with pytest.raises(ConfigError, match="WORLD_SIZE='four' is not an integer"):
        rank_here(TORCHRUN | {"WORLD_SIZE": "four"})


def test_who_sets_the_variables_without_torchrun_has_one_process_a_machine():
    found = rank_here({name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")})
    assert found == Rank(3, 4, 0, 1)


def test_towers_of_one_machine_talk_on_loopback_unless_told_otherwise():
    assert set(loopback_variables({})) == {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    assert set(loopback_variables({"GLOO_SOCKET_IFNAME": "eth0"})) == {"NCCL_SOCKET_IFNAME"}
