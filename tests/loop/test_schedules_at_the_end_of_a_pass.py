"""The last round of an epoch may be of one worker alone: the schedule of the others goes on all the same."""

import pytest
import torch
from loops_in_one_process import audited, good, run
from test_every_loop_goes_on import Scheduled


@pytest.mark.parametrize("way", ["2 ps, 2 workers, sync", "1 ps, 2 workers", "1 ps, 2 workers, bounded"])
def test_all_workers_have_the_same_rate_after_each_pass_whoever_made_the_last_update(way, tmp_path):
    ran = good(run(way, Scheduled(True, epochs=2, batches=5), tmp_path))
    updates = audited(tmp_path).updates
    assert ran.ends == [pytest.approx(0.1 * 0.9**updates)] * 2


def test_so_each_run_in_lockstep_gives_the_same_bits(tmp_path):
    first, second = (
        good(run("2 ps, 2 workers, sync", Scheduled(True, epochs=3, batches=5), tmp_path / name)) for name in "ab"
    )
    assert all(map(torch.equal, first.values(), second.values()))
