"""Figures as Markdown; the part of a document between two marks; quotations of figures in other documents. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

from beside.aims import AIMS, Aim, Found
from beside.ways import Work

BEGIN, END = "<!-- bench-peers: begin (written by `make bench-peers`) -->", "<!-- bench-peers: end -->"
QUOTED = re.compile(r"(<!--bench-peers: (.+?)-->)([\d.]+)(<!---->)")


def middle(values: Sequence[float], digits: int = 0) -> str:
    """Median and range: "673 (640-690)"."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def of_work(work: Work, found: Found) -> str:
    """One row for each way that was tried."""
    rows = [f"| {work.name} | {work.unit} | CPU ms of one | first step s | loss |", "|---|---|---|---|---|"]
    for way in work.ways:
        tried = found.get((work.name, way.name))
        if tried is None:
            continue
        samples = [one for one in tried if one]
        if not samples:
            rows.append(f"| {way.name} | failed | | | |")
            continue
        lost = f", {len(tried) - len(samples)} of {len(tried)} failed" if len(samples) < len(tried) else ""
        loss = f"{statistics.median(one.loss for one in samples):.2f}" if work.learns else ""  # type: ignore[attr-defined]
        rows.append(
            f"| {way.name} | {middle([one.rate for one in samples])}{lost} | "
            f"{middle([one.cpu_ms for one in samples], 2)} | {statistics.median(one.begin for one in samples):.1f} | "
            f"{loss} |"
        )
    return "\n".join(rows)


def of_aims(found: Found, aims: Sequence[Aim] = AIMS) -> str:
    """One row for each ratio of which both sides were measured."""
    rows = ["| ratio, by round | aim | measured | |", "|---|---|---|---|"]
    for aim in aims:
        if values := aim.values(found):
            rows.append(f"| {aim.name} | {aim.wanted} | {middle(values, 2)} | {'met' if aim.met(values) else 'no'} |")
    return "\n".join(rows)


def ratios(document: str) -> dict[str, float]:
    """Name of each ratio in a document -> its median."""
    rows = re.findall(r"^\| (.+?) \| [<>]= [\d.]+ \| ([\d.]+) \(", document, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def replaced(document: str, text: str) -> str:
    """The document with other text between its marks. Raises ValueError where it has none."""
    start, end = document.index(BEGIN) + len(BEGIN), document.index(END)
    return f"{document[:start]}\n{text}\n{document[end:]}"


def requoted(document: str, measured: Mapping[str, float]) -> str:
    """The document with the newest figures: it quotes them as `<!--bench-peers: NAME-->1.8<!---->`.

    With as many decimals as they were written with; what was not measured stays.
    """

    def newest(match: re.Match[str]) -> str:
        if match[2] not in measured:
            return match[0]
        digits = len(match[3].partition(".")[2])
        return f"{match[1]}{measured[match[2]]:.{digits}f}{match[4]}"

    return QUOTED.sub(newest, document)
