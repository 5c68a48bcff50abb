"""The table of promises names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS.parent / "docs" / "promises.md").read_text()


def test_every_promise_has_a_row_and_every_row_a_proof():
    rows = re.findall(r"^\| (P\d+) \|.*\|.*\|(.*)\|$", TABLE, re.MULTILINE)

    assert [number for number, _ in rows] == [f"P{number}" for number in range(1, 32)]
    assert all("::" in proof for _, proof in rows)


def test_every_test_that_is_named_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", TABLE)

    assert len(named) > 40
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in home(file).read_text()] == []


def home(file: str) -> Path:
    """Contracts are published with the package, all other tests are here."""
    return (TESTS.parent / "src" if file.startswith("evener/") else TESTS) / file
