"""Slurm's way to write many hosts."""

from __future__ import annotations

import re


def nodelist(text: str) -> list[str]:
    """Slurm's compressed host list.

    >>> nodelist("gpu[01-03,7],login,rack[0-1]_blade[4-5]")
    ['gpu01', 'gpu02', 'gpu03', 'gpu7', 'login', 'rack0_blade4', 'rack0_blade5', 'rack1_blade4', 'rack1_blade5']
    """
    names: list[str] = []
    for entry in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        made = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", entry):
            ends = _numbers(ranges) if ranges else [plain]
            made = [name + end for name in made for end in ends]
        names += made
    return names


def _numbers(ranges: str) -> list[str]:
    """What stands between brackets: 01-03,7 is 01, 02, 03 and 7."""
    numbers: list[str] = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1)]
    return numbers
