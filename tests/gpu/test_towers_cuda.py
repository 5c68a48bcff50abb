"""Towers on real GPUs; skipped elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "system"))
from running import RECIPE, evener

from evener.state.checkpoint import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here (torch.cuda.is_available() is False)"),
]
LOOKS = """class Looks(evener.Hook):
    def end(self, session):
        exchange = session.exchange
        homes = {tensor.device.type for tensor in (exchange._travelling.head, *exchange._gradients.flats)}
        homes |= {flat.device.type for flat in exchange._inner._state.parameters.flats}
        Path(f"homes-{session.task}.txt").write_text(f"{sorted(homes)} nccl={exchange._group._nccl}")


class Gate("""


@pytest.mark.parametrize("gpus", [1, 2])
def test_towers_train_on_gpus_to_the_same_place_without_a_round_trip(tmp_path, gpus):
    if gpus > torch.cuda.device_count():
        pytest.skip(f"{torch.cuda.device_count()} GPU here")
    text = (
        RECIPE.replace("class Gate(", LOOKS)
        .replace("hooks = [", "hooks = [Looks()] + [")
        .replace("Dropout(0.1)", "Dropout(0.0)")
    )
    (tmp_path / "own.py").write_text(text)
    train = ("train", "own.py:recipe", "--towers", 2, "--train-steps", 60, "--json")
    here = evener(tmp_path, *train, "--logdir", "cpu", seconds=120)
    there = evener(tmp_path, *train, "--logdir", "gpu", "--num-gpus", gpus, "--share-gpus", seconds=120)

    assert (here.code, there.code) == (0, 0), here.text + there.text
    for rank in range(2):
        assert (tmp_path / f"homes-worker:{rank}.txt").read_text() == f"['cuda'] nccl={gpus == 2}"
    ours, theirs = (load(Path(tmp_path / done.json["checkpoint"]))[1].parameters for done in (there, here))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
