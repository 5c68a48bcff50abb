"""Which faults a seed stands for."""

from hypothesis import given, strategies as st

from evener.commands.chaos.schedule import KINDS, MOST_KILLS, MOST_STRIKES, Strike, draw

seeds = st.integers(0, 2**63)
kinds = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)


@st.composite
def crews(draws):
    ps, workers = draws(st.integers(0, 4)), draws(st.integers(1, 5))
    return [f"ps:{i}" for i in range(ps)] + [f"worker:{i}" for i in range(workers)]


@given(seeds, crews(), kinds)
def test_a_schedule_follows_from_its_seed_alone_whatever_the_order_of_the_kinds(seed, tasks, chosen):
    assert draw(seed, tasks, chosen) == draw(seed, tasks, chosen[::-1])


@given(seeds, crews(), kinds)
def test_a_schedule_has_faults_of_the_chosen_kinds_only_and_at_least_one(seed, tasks, chosen):
    schedule = draw(seed, tasks, chosen)
    assert {strike.kind for strike in schedule.strikes} | ({"slow"} if schedule.slow else set()) <= set(chosen)
    assert schedule.strikes or schedule.slow
    assert len(schedule.strikes) <= MOST_STRIKES


@given(seeds, crews(), kinds)
def test_no_task_dies_more_often_than_it_is_started_again(seed, tasks, chosen):
    assert sum(strike.kind == "kill" for strike in draw(seed, tasks, chosen).strikes) <= MOST_KILLS


@given(seeds, crews(), kinds)
def test_faults_happen_to_tasks_that_there_are_and_only_workers_are_cut_off_or_slow(seed, tasks, chosen):
    schedule = draw(seed, tasks, chosen)
    assert all(strike.task in tasks for strike in schedule.strikes)
    assert all(strike.task.startswith("worker") for strike in schedule.strikes if strike.kind == "cut")
    assert not schedule.slow or schedule.slow.partition("=")[0] in tasks


@given(seeds, crews(), kinds)
def test_every_moment_lies_within_the_undisturbed_run_and_stops_have_an_end(seed, tasks, chosen):
    for strike in draw(seed, tasks, chosen).strikes:
        assert 0 < strike.at < 1
        assert (strike.seconds > 0) == (strike.kind == "stop")


@given(seeds, crews(), kinds)
def test_a_worker_that_is_slow_is_struck_at_as_many_times_fewer_steps(seed, tasks, chosen):
    slow = draw(seed, tasks, [*chosen, "slow"])
    worker, _, times = slow.slow.partition("=")
    sudden = [one for one in chosen if one != "slow"]
    for strike, plain in zip(slow.strikes, draw(seed, tasks, sudden).strikes, strict=True):
        fewer = float(times.rstrip("x")) if strike.by_steps and strike.task == worker else 1.0
        assert strike.at == round(plain.at / fewer, 3)


def test_another_seed_is_another_schedule():
    assert len({str(draw(seed, ["ps:0", "worker:0", "worker:1"], KINDS)) for seed in range(100)}) > 90


def test_a_moment_by_steps_is_one_of_that_task_and_one_by_time_of_the_whole_command():
    steps = {"ps:0": 200, "worker:0": 90}
    assert Strike("kill", "worker:0", True, 0.5).moment(8.0, steps) == 45
    assert Strike("kill", "worker:0", False, 0.5).moment(8.0, steps) == 4.0
    assert Strike("kill", "worker:1", True, 0.5).moment(8.0, steps) == 1, "who made no step is struck at its first"
