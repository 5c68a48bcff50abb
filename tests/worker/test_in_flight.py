"""--in-flight 2: a worker computes its next gradient while the last one travels, and every batch counts once."""

from itertools import count
from random import Random

import pytest
from flyers import Flyer, Parked
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from evener import errors
from evener.commands.account import account
from evener.ledger import path_of
from evener.ledger.lines import Update
from evener.ledger.reading import read
from evener.testing import Cluster, row_recipe

directories = count()


@pytest.fixture(params=[1, 2], ids=["1 ps", "2 ps"])
def ps(request):
    return request.param


def cluster_of(directory, **options):
    everything = {"ps": 1, "workers": 2, "mode": "async", "in_flight": 2, "train_steps": 9, "batch_size": 10} | options
    return Cluster(row_recipe(), directory, **everything)


def applied_of(directory):
    """(lease, worker) of all updates in the ledger."""
    lines = [line for _, line in read(path_of(directory))]
    return [entry[:2] for line in lines if isinstance(line, Update) for entry in line.entries]


def drained(cluster, *flyers):
    """All go on in turn until the run is over, and say goodbye."""
    while not all(flyer.ended for flyer in flyers):
        for flyer in flyers:
            if not flyer.ended and flyer.begins().lease >= 0:
                flyer.gives()
    for flyer in flyers:
        flyer.flight.close()
    cluster.settle()
    cluster.finish()


# --- one worker


def test_a_worker_goes_on_with_its_second_batch_before_the_servers_have_looked(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps) as cluster:
        flyer = Flyer(cluster, 0)
        assert (flyer.turn.version, flyer.turn.lease) == (0, 0)

        turn = flyer.steps()

        assert (turn.version, turn.lease, cluster.step) == (0, 1, 0)
        assert flyer.value == 0.0


def test_a_gradient_is_told_to_be_of_the_parameters_that_it_was_computed_on(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps) as cluster:
        flyer = Flyer(cluster, 0)
        flyer.steps()
        flyer.begins()  # on version 0, while the first gradient travels
        flyer.gives()
        assert (flyer.turn.version, flyer.turn.staleness, flyer.turn.lease) == (1, 0, 2)  # what became of the first
        flyer.steps()

        assert (flyer.turn.version, flyer.turn.staleness) == (2, 1)  # of the second: one update later
        assert flyer.turn.lease == 3


def test_the_newest_answer_that_has_come_is_taken_before_a_gradient_is_begun(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps) as cluster:
        flyer = Flyer(cluster, 0)
        flyer.steps()
        cluster.settle()  # its answer is there

        assert flyer.begins().version == 1 and flyer.value == -1.0
        flyer.gives()
        assert flyer.steps().staleness == 0, "the second gradient was computed on the newest parameters"


def test_an_answer_that_comes_meanwhile_does_not_touch_the_model_that_computes(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps) as cluster:
        flyer = Flyer(cluster, 0)
        flyer.steps()
        flyer.begins()
        cluster.settle()
        flyer.flight.free()
        assert (cluster.step, flyer.value) == (1, 0.0)

        flyer.gives()
        assert flyer.value == -1.0


def test_a_gradient_that_is_answered_at_once_does_not_mix_the_parameters_of_two_versions(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps, workers=1) as cluster:
        flyer = Flyer(cluster, 0)
        for looks in (False, True, False, True, True, False):
            flyer.eager = looks
            turn = flyer.steps()
            assert flyer.value == -turn.version * (turn.version + 1) / 2
        assert turn.version == 5


def test_the_memory_of_a_gradient_is_written_when_no_server_reads_it_any_more(tmp_path, ps):
    """The parameters are minus the sum of the gradients: a gradient that was overwritten would be missing."""
    with cluster_of(tmp_path, ps=ps, workers=1, train_steps=7) as cluster:
        drained(cluster, Flyer(cluster, 0))

        assert cluster.parameters()["row"].tolist() == [-float(sum(range(1, 8)))] * 64


def test_servers_hold_one_gradient_of_a_worker_at_a_time(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps) as cluster:
        flyer = Flyer(cluster, 0)
        for _ in range(5):
            flyer.steps()
            cluster.look(0)
            assert all(len(server.shard.held) <= 1 for server in cluster.servers)


def test_a_version_that_it_never_had_is_refused(tmp_path):
    with cluster_of(tmp_path) as cluster:
        flyer = Flyer(cluster, 0)
        for _ in range(4):
            flyer.steps()
        flyer.begins()
        flyer.flight.free()
        flyer.flight._on = 2  # it has had the answers 3 and 4 since

        with pytest.raises(errors.ProtocolError, match="out of turn: version 2"):
            flyer.gives()
            flyer.flight.free()


def test_what_is_shown_is_shown_when_nothing_travels_and_the_run_goes_on(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps, workers=1) as cluster:
        flyer = Flyer(cluster, 0)
        flyer.steps()

        assert flyer.flight.show("parameters") == 1 and flyer.value == -1.0
        assert flyer.begins().version == 1
        flyer.gives()
        drained(cluster, flyer)
        assert cluster.parameters()["row"][0].item() == -45.0


def test_servers_that_give_one_batch_at_a_time_are_named(tmp_path):
    with cluster_of(tmp_path, in_flight=1) as cluster, pytest.raises(errors.ClusterMismatch, match="one batch"):
        Flyer(cluster, 0)


# --- the end


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_run_has_exactly_its_steps(tmp_path, ps, steps, workers):
    with cluster_of(tmp_path, ps=ps, workers=workers, train_steps=steps) as cluster:
        flyers = []
        for index in range(workers):
            try:
                flyers.append(Flyer(cluster, index))
            except Parked:
                assert workers * 2 > steps, "a worker got no batch though there were enough"
        for flyer in flyers:
            flyer.turn = flyer.flight.newest(flyer.turn)
        while cluster.step < steps:
            for flyer in flyers:
                if flyer.begins().lease >= 0:
                    flyer.gives()
        cluster.settle()
        assert cluster.leader.course.stopping == f"reached step {steps}"
    assert sorted(lease for lease, _ in applied_of(tmp_path)) == list(range(steps))


def test_a_gradient_that_is_begun_when_the_run_has_stopped_is_not_given(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps, workers=1) as cluster:
        flyer = Flyer(cluster, 0)
        flyer.steps()
        flyer.begins()
        cluster.leader.stop("enough")
        turn = flyer.gives()

        assert (turn.stop, turn.lease, flyer.servers._seq) == ("enough", -1, 1)
        flyer.flight.close()
        cluster.settle()
        cluster.finish()
    assert applied_of(tmp_path) == []
    assert account(tmp_path).clean


def test_a_gradient_that_is_given_after_the_run_has_stopped_is_not_applied(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps, workers=1) as cluster:
        flyer = Flyer(cluster, 0)
        flyer.steps()
        flyer.begins()
        cluster.settle()
        flyer.flight.stop("enough")
        flyer.gives()
        cluster.settle()

        assert flyer.begins().stop == "enough"
        flyer.flight.close()
        cluster.settle()
        cluster.finish()
    assert applied_of(tmp_path) == [(0, 0)]
    found = account(tmp_path)
    assert found.clean, str(found)


def test_two_optimizer_steps_of_an_epoch_are_two(tmp_path):
    with cluster_of(tmp_path, workers=1, train_steps=None, epochs=2.0) as cluster:
        drained(cluster, Flyer(cluster, 0))
        assert cluster.step == 8
    assert account(tmp_path).epochs == 2


# --- lives that end


@pytest.mark.parametrize("computing", [True, False])
@pytest.mark.parametrize("seen", [True, False], ids=["applied", "on its way"])
def test_both_batches_of_a_worker_that_dies_are_counted_or_come_back_once(tmp_path, ps, computing, seen):
    with cluster_of(tmp_path, ps=ps) as cluster:
        lost, other = Flyer(cluster, 0), Flyer(cluster, 1)
        lost.steps()
        if computing:
            lost.begins()
        if seen:
            cluster.settle()
        lost.die()
        cluster.settle()
        drained(cluster, other)

        assert cluster.parameters()["row"][0].item() == -45.0
    assert sorted(lease for lease, _ in applied_of(tmp_path)) == list(range(9))
    found = account(tmp_path)
    assert found.clean, str(found)


def test_a_worker_that_is_told_to_leave_hands_both_back(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps) as cluster:
        lost, other = Flyer(cluster, 0), Flyer(cluster, 1)
        lost.steps()
        lost.begins()
        lost.flight.close("Preempted: worker:0 was told to leave")
        cluster.settle()
        assert set(cluster.leader.leases.outstanding().values()) == {(1, 1)}
        drained(cluster, other)
    assert sorted(lease for lease, _ in applied_of(tmp_path)) == list(range(9))
    assert account(tmp_path).clean


def test_what_a_replaced_process_had_goes_to_others_and_it_is_fenced(tmp_path, ps):
    with cluster_of(tmp_path, ps=ps) as cluster:
        old = Flyer(cluster, 0)
        old.steps()
        old.begins()
        old.lose_links()
        cluster.settle()
        new = Flyer(cluster, 0, process="second")
        with pytest.raises(errors.Fenced):
            old.gives()
        drained(cluster, new)
        assert cluster.parameters()["row"][0].item() == -45.0
    assert sorted(lease for lease, _ in applied_of(tmp_path)) == list(range(9))
    assert account(tmp_path).clean


def test_servers_that_begin_anew_take_nothing_of_the_life_before(tmp_path, ps):
    before = cluster_of(tmp_path, ps=ps, save_checkpoint_steps=2)
    flyer = Flyer(before, 0)
    for _ in range(4):
        flyer.steps()
        before.tick(1.0)
    flyer.begins()
    before.workers.clear()
    before.close()
    with cluster_of(tmp_path, ps=ps, before=before) as cluster:
        flyer.cluster = cluster
        turn = flyer.gives()

        assert turn.rejected == "a link broke while it was on its way" and turn.version == cluster.step < 9
        drained(cluster, flyer)
        assert cluster.parameters()["row"][0].item() == -45.0
    found = account(tmp_path)
    assert found.clean and not found.unapplied, str(found)


# --- by chance


@settings(
    derandomize=True, deadline=None, database=None, max_examples=60, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    seed=st.integers(0, 2**32), workers=st.integers(1, 3), ps=st.integers(1, 3), steps=st.integers(1, 25),
    deaths=st.integers(0, 4), lives=st.integers(1, 3),
)  # fmt: skip
def test_whoever_dies_or_begins_anew_every_batch_is_applied_once(tmp_path, seed, workers, ps, steps, deaths, lives):
    directory, random = tmp_path / str(next(directories)), Random(seed)
    options = {"ps": ps, "workers": workers, "train_steps": steps}
    cluster, flyers = None, {}
    for life in range(lives):
        if cluster is not None:
            cluster.workers.clear()  # they live
            cluster.close()
        cluster = cluster_of(directory, before=cluster, save_checkpoint_steps=3, **options)
        for flyer in flyers.values():
            flyer.cluster = cluster
        moves = 4000 if life == lives - 1 else random.randrange(60)
        deaths = play(cluster, flyers, random, workers, deaths, moves)
        if cluster.leader.course.stopping:  # who has ended asks for no more
            play(cluster, flyers, random, workers, 0, 4000)
            break
    assert cluster.leader.course.stopping == f"reached step {steps}"
    for flyer in flyers.values():
        flyer.flight.close()
    cluster.settle()
    cluster.finish()
    value = cluster.parameters()["row"][0].item()
    cluster.close()
    assert value == -sum(range(1, steps + 1))
    found = account(directory)
    assert found.clean and not found.unapplied, str(found)


def play(cluster, flyers, random, workers, deaths, moves):
    """So many moves of workers, servers and the clock, or until the run is over; the deaths that are left."""
    for move in range(moves):
        index, chance = random.randrange(workers), random.random()
        flyer = flyers.get(index)
        try:
            if flyer is None:
                flyers[index] = Flyer(cluster, index, process=f"{cluster.generation} {move}")
            elif deaths and chance < 0.04:
                deaths -= 1
                del flyers[index]
                flyer.die()
                cluster.settle()
            elif chance < 0.3:
                cluster.look(random.randrange(cluster.settings.ps))
            elif chance < 0.35:
                cluster.tick(0.1)
            elif flyer.gradient is not None:
                flyer.gives()
            elif not flyer.ended:
                flyer.begins()
        except Parked:
            if (flyer := flyers.pop(index, None)) is not None:  # it came back, and there was no batch for it
                flyer.die()
                cluster.settle()
        if flyers and len(flyers) == workers and all(flyer.ended for flyer in flyers.values()):
            break
    return deaths
