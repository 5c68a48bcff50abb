"""A recipe with a DataLoader's processes, dict batches and two optimizers, in every way of running."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from running import evener

DOCUMENT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
#: The second recipe of the document.
WORDS = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)[1]
WAYS = {
    "one process": [],
    "towers": ["--towers", "2"],
    "async": ["--ps", "1", "--workers", "2", "--mode", "async"],
    "sync": ["--ps", "1", "--workers", "2", "--mode", "sync"],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_it_trains_goes_on_in_the_middle_of_an_epoch_and_is_accounted_for(way, tmp_path):
    (tmp_path / "words.py").write_text(WORDS)
    replicas = 1 if way in ("one process", "async") else 2
    train = ["train", "words.py:recipe", *WAYS[way], "--batches-per-step", "3", "--logdir", "run"]

    first = evener(tmp_path, *train, "--train-steps", "5")
    then = evener(tmp_path, *train, "--train-steps", "40")
    audit = evener(tmp_path, "audit", "run")

    assert first.code == 0, first.text
    assert then.code == 0, then.text
    assert "continues from step 5" in then.text
    assert re.search(r"validation accuracy +(0\.9|1\.0)", then.out), then.out
    assert f"{40 * 3 * replicas} batches applied" in audit.out
    assert "ledger clean" in audit.out
    assert "not applied" not in audit.out
