"""A program that iterates over the loader it has made, and not over the one that `prepare` returned."""

import pytest
from loops_in_one_process import KEPT, Program, good, run
from test_every_loop_goes_on import Rivals

from evener.report import Line


class Past(Program):
    def loop(self, ev, model, optimizer, loader):
        for batch in self.loader():
            self.step(model, optimizer, batch)


@pytest.mark.parametrize("way", KEPT)
@pytest.mark.parametrize(("program", "told"), [(Past(), 1), (Program(), 0), (Rivals(), 0)])
def test_is_told_so_once(way, program, told, tmp_path):
    if "flight" in way and isinstance(program, Rivals):
        pytest.skip("several optimizers do not go with it")
    ran = good(run(way, program, tmp_path))
    texts = [line.text for line in ran.reported(Line) if "without a batch of the loader" in line.text]
    assert len(texts) == told * (len(ran.ends) if "ps" in way else 1)
