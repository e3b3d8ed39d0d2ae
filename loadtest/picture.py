"""The picture of a benchmark: latency by percentile, both axes logarithmic, and images a second over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np

from loadtest.load import Result, percentile

# Okabe and Ito 2008: told apart by colour-blind eyes too
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
WIDTH, HEIGHT = 820, 330  # of one chart
LEFT, RIGHT, TOP, BOTTOM = 66, 170, 36, 46

Points = Sequence[tuple[float, float]]


def draw(title: str, results: Sequence[Result]) -> str:
    """An SVG of two charts, a line for each result."""
    slowest = max((len(r.latencies) for r in results), default=0)
    nines = max(2, math.ceil(math.log10(slowest + 1)))  # 1 - 10^-nines is the last percentile that is drawn
    places = [(float(n), f"{100 * (1 - 10.0**-n):.12g} %") for n in range(nines + 1)]
    curves = [_curve(r) for r in results]
    heights = [y for curve in curves for _, y in curve]
    low = math.floor(math.log10(min(heights))) if heights else 0
    high = math.ceil(math.log10(max(heights))) if heights else 1
    decades = [(float(n), f"{10.0**n:g}") for n in range(low, max(high, low + 1) + 1)]
    logs = [[(x, math.log10(y)) for x, y in curve] for curve in curves]

    paces = [r.over_time(max(1.0, r.seconds / 60)) for r in results]
    xs = round_places(max((x for pace in paces for x, _ in pace), default=1))
    ys = round_places(max((y for pace in paces for _, y in pace), default=1))
    names = [str(r.load) for r in results]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * HEIGHT}" width="{WIDTH}" '
        f'height="{2 * HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{2 * HEIGHT}" fill="#fff"/>',
        *chart(title, "share of requests answered within", "latency, ms", places, decades, names, logs),
        f'<g transform="translate(0 {HEIGHT})">',
        *chart("Answers over time", "seconds", "images/s", xs, ys, names, paces),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts)


def _curve(result: Result) -> list[tuple[float, float]]:
    """(nines of the percentile, ms), from the 0th to the last that the number of requests can tell."""
    latencies = result.latencies
    if not len(latencies):
        return []
    last = math.log10(len(latencies)) if len(latencies) > 1 else 0.0
    nines = np.unique(np.append(np.arange(0, last, 0.05), last))
    # a request answered within the clock's resolution has no logarithm
    return [(float(n), max(1e3 * percentile(latencies, 1 - 10.0**-n), 1e-3)) for n in nines]


def chart(
    title: str,
    x_label: str,
    y_label: str,
    x_places: Sequence[tuple[float, str]],
    y_places: Sequence[tuple[float, str]],
    names: Sequence[str],
    lines: Sequence[Points],
) -> list[str]:
    """Lines between the first and last of the places that its axes name."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(x: float) -> float:
        return LEFT + (x - x_places[0][0]) / (x_places[-1][0] - x_places[0][0]) * (right - LEFT)

    def down(y: float) -> float:
        return bottom - (y - y_places[0][0]) / (y_places[-1][0] - y_places[0][0]) * (bottom - TOP)

    def text(x: float, y: float, words: object, anchor: str = "middle", more: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(str(words))}</text>'

    middle = f' transform="translate(16 {(TOP + bottom) / 2:.0f}) rotate(-90)"'
    parts = [
        text(LEFT, 20, title, "start", ' font-weight="bold" font-size="13"'),
        text((LEFT + right) / 2, HEIGHT - 8, x_label),
        text(0, 0, y_label, more=middle),
    ]
    for x, name in x_places:
        parts.append(f'<path d="M{across(x):.1f},{TOP}V{bottom}" stroke="#eee"/>')
        parts.append(text(across(x), bottom + 16, name))
    for y, name in y_places:
        parts.append(f'<path d="M{LEFT},{down(y):.1f}H{right}" stroke="#ddd"/>')
        parts.append(text(LEFT - 6, down(y) + 4, name, "end"))
    for i, (name, line) in enumerate(zip(names, lines, strict=True)):
        stroke = f'fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.8"'
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{points}" {stroke}/>')
        parts.append(f'<path d="M{right + 12},{TOP + 8 + 17 * i}h22" {stroke}/>')
        parts.append(text(right + 40, TOP + 12 + 17 * i, name, "start"))
    return parts


def round_places(most: float) -> list[tuple[float, str]]:
    """Some five round numbers from 0 to the first at or above `most`."""
    most = most or 1.0
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= most / 5 * 0.999)
    return [(i * step, f"{i * step:g}") for i in range(math.ceil(most / step - 1e-9) + 1)]
