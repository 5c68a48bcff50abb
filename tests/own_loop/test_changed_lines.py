"""The programs as people have them need at most six lines to run under evener."""

import ast

import pytest
from changed_lines import MOST, PROGRAMS, changes, pairs


@pytest.mark.parametrize(("plain", "own"), pairs(), ids=lambda path: path.stem)
def test_a_program_needs_six_lines(plain, own):
    assert 4 <= len(changes(plain.read_text(), own.read_text())) <= MOST


@pytest.mark.parametrize("path", sorted(PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_a_program_can_be_read(path):
    ast.parse(path.read_text())


@pytest.mark.parametrize(
    ("after", "count"),
    [
        ("a\nb\nc\n", 0),
        ("a\n\nb\nc\n", 0),  # an empty line
        ("x\na\nb\nc\n", 1),
        ("a\n    b\nc\n", 1),  # indented
        ("a\nc\n", 1),  # taken away
        ("a\nx\ny\nc\n", 2),
        ("x\n", 3),
    ],
)
def test_lines_are_counted(after, count):
    assert len(changes("a\nb\nc\n", after)) == count
