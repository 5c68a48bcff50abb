"""Ten schedules of the long `make chaos`, with the seeds that once found something first."""

from __future__ import annotations

import pytest
from chaos_soak import play, schedule


# 10: workers that had left were still ending when ps:0 died, and nobody started them again. 1, 2: nobody evaluated
# because the chief died as it was about to. 18: a draft of grants.json stayed. 12: the launcher dies.
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [10, 1, 2, 18, 12, 5, 7, 9, 25, 35])
def test_a_random_schedule_of_faults_is_survived(seed, tmp_path):
    print(schedule(seed))
    play(schedule(seed), tmp_path)
