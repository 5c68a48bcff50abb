"""How many lines a user changed: of each own_*.py against its plain_*.py, added, replaced or taken away.

    python tests/own_loop/changed_lines.py          a table; exit code 1 where one has more than six

A line that is only indented further counts, an import counts, an empty line does not.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

MOST = 6
PROGRAMS = Path(__file__).parent / "programs"


def changes(before: str, after: str) -> list[str]:
    """The changed lines as they stand afterwards; those taken away, with a minus, where nothing is in their place."""
    old, new = ([line for line in text.splitlines() if line.strip()] for text in (before, after))
    found = []
    for _, from_old, to_old, from_new, to_new in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if old[from_old:to_old] != new[from_new:to_new]:
            found += new[from_new:to_new]
            found += [f"-{line}" for line in old[from_old:to_old][to_new - from_new :]]
    return found


def pairs() -> list[tuple[Path, Path]]:
    """Every plain program and the same one under evener."""
    return [(path, path.with_name(path.name.replace("plain_", "own_"))) for path in sorted(PROGRAMS.glob("plain_*.py"))]


def main() -> int:
    most = 0
    for plain, own in pairs():
        lines = changes(plain.read_text(), own.read_text())
        most = max(most, len(lines))
        print(f"{own.name}: {len(lines)}", *lines, sep="\n    ")
    return int(most > MOST)


if __name__ == "__main__":
    sys.exit(main())
