"""What stands after a pass over the loader sees all updates of it, whoever made them."""

from threading import Event

import pytest
import torch
from loops_in_one_process import Program, audited, good, run


class Last(Program):
    """The second worker gives the last gradient, and the first asks for more when the epoch is over."""

    def __init__(self):
        super().__init__(epochs=1, batches=2)
        self.stepped_by = [Event(), Event()]

    def loop(self, ev, model, optimizer, loader):
        for batch in loader:
            if ev.worker == 1:
                assert self.stepped_by[0].wait(30.0)
            self.step(model, optimizer, batch)
            self.stepped_by[ev.worker].set()
            assert self.stepped_by[1].wait(30.0)
        return ev.step


@pytest.mark.parametrize("way", ["1 ps, 2 workers", "1 ps, 2 workers, bounded"])
def test_the_worker_that_did_not_make_the_last_one_has_it_too(way, tmp_path):
    ran = good(run(way, Last(), tmp_path))
    assert ran.ends == [2, 2]
    assert all(map(torch.equal, ran.values(0), ran.values(1)))
    assert audited(tmp_path).updates == 2
