"""docs/modes.md says what the modes themselves say, and its figures are those of the real policies."""

import re
import shlex
from pathlib import Path

import pytest

from evener.modes import MODES, OPTIONS, mode_of
from evener.simulate.crew import SimulatedCrew, constant

PAGE = (Path(__file__).parents[1] / "docs" / "modes.md").read_text()
ROWS = re.findall(r"^\| `([a-z]+[^`]*)` \| ([\d.]+) \| (\d+) \| ([\d.]+) \| (\d+) \|$", PAGE, re.MULTILINE)


def told(text):
    return re.sub(r"\s+", " ", text)


def test_there_is_a_line_of_figures_for_every_mode():
    assert {row[0].split()[0] for row in ROWS} == MODES.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_figure_is_what_the_real_policy_does(row):
    name, *words = shlex.split(row[0])
    if "--batch-by-speed" in words:
        rates = [sum(1 / tau for tau in times) for times in ([1, 2, 3, 4], [1, 1, 1, 10])]
        assert float(row[1]) == pytest.approx(rates[0], abs=0.005)
        assert float(row[3]) == pytest.approx(rates[1], rel=0.01), "a tenth of a batch of 130 is not divisible"
        return
    options = {word.lstrip("-").replace("-", "_"): number for word, number in zip(words[::2], words[1::2], strict=True)}
    mode = mode_of(name, {option: OPTIONS[option].kind(value) for option, value in options.items()})
    for times, rate, late in (([1.0, 2.0, 3.0, 4.0], row[1], row[2]), ([1.0, 1.0, 1.0, 10.0], row[3], row[4])):
        count = SimulatedCrew(mode.start(0, 4), 4, constant(times)).play(1200, 13200)
        assert float(rate) == pytest.approx(count.rate, abs=0.006)
        assert int(late) == count.longest


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_each_mode_is_described_as_its_help_does(mode):
    assert f"* **{mode.name}**" in PAGE
    assert told(mode.about) in told(PAGE)
