"""Bars and curves as SVG, in plain text: a picture needs no further package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, ROW, LEFT = 860, 22, 210
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#dd8800", "#005f73", "#9b2226")


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """One group of horizontal bars after the other; each with its own scale."""
    lines, top = [f'<text x="10" y="24" font-size="15">{escape(title)}</text>'], 50
    for group, values in groups.items():
        lines.append(f'<text x="10" y="{top + 14}" font-weight="bold">{escape(group)}</text>')
        top += ROW
        most = max((value for value in values.values() if math.isfinite(value)), default=1.0)
        for number, (name, value) in enumerate(values.items()):
            finite = math.isfinite(value)
            width = (WIDTH - LEFT - 90) * (value / most if finite else 1.0)
            colour = COLOURS[number % len(COLOURS)]
            said = f"{value:.0f}" if finite else "not reached"
            lines.append(f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>')
            lines.append(f'<rect x="{LEFT}" y="{top + 2}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}" '
                         f'fill-opacity="{1.0 if finite else 0.2}"/>')  # fmt: skip
            lines.append(f'<text x="{LEFT + width + 6:.1f}" y="{top + 14}">{said}</text>')
            top += ROW
        top += ROW // 2
    return _svg(top + 10, lines)


def curves(title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, across: str, up: str) -> str:
    """Lines over a common axis."""
    points = [(x, y) for xs, ys in lines.values() for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    right, high = max(x for x, _ in points), max(y for _, y in points)
    height, drawn = 420, []
    drawn.append(f'<text x="10" y="24" font-size="15">{escape(title)}</text>')
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(
            f"{60 + (WIDTH - 260) * x / right:.1f},{height - 340 * y / high:.1f}"
            for x, y in zip(xs, ys, strict=True) if math.isfinite(y)
        )  # fmt: skip
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        drawn.append(f'<text x="{WIDTH - 190}" y="{70 + 18 * number}" fill="{colour}">{escape(name)}</text>')
    drawn.append(f'<path d="M60 80 V{height} H{WIDTH - 200}" fill="none" stroke="#333"/>')
    drawn.append(f'<text x="60" y="{height + 20}">0</text>')
    drawn.append(f'<text x="{WIDTH - 200}" y="{height + 20}" text-anchor="end">{right:g} {escape(across)}</text>')
    drawn.append(f'<text x="10" y="70">{high:.3g} {escape(up)}</text>')
    return _svg(height + 40, drawn)


def _svg(height: float, lines: Sequence[str]) -> str:
    inside = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{inside}\n</svg>\n'
    )
