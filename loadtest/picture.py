"""The picture of a load test: latency by percentile, and images a second over time."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from loadtest.load import Floats, Result, percentile

# Okabe and Ito 2008: colour-blind eyes tell them apart too
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE: Final[Mapping[Any, Any]] = {
    "svg.hashsalt": "sagan",  # else the ids inside an SVG are random
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def draw(title: str, results: Sequence[Result]) -> bytes:
    """An SVG of two charts with a line for each result. The same results give the same bytes."""
    import matplotlib as mpl  # takes a second, which every `sagan bench` would wait for
    from cycler import cycler
    from matplotlib.figure import Figure

    # when the colours are used up, they come again with another stroke
    strokes = cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS)
    with mpl.rc_context({**STYLE, "axes.prop_cycle": strokes}):
        figure = Figure(figsize=(8.2, 6.6), layout="constrained")
        figure.suptitle(title, parse_math=False)
        latency, pace = figure.subplots(2, 1)
        latency.set(xlabel="requests answered within the latency, %", ylabel="latency, ms", yscale="log")
        pace.set(xlabel="seconds", ylabel="images/s")
        for result in results:
            latency.plot(*_by_nines(result.latencies), label=str(result.load))
            pace.plot(*np.reshape(result.over_time(max(1.0, result.seconds / 60)), (-1, 2)).T)
        nines = np.arange(1 + math.ceil(latency.get_xlim()[1]))
        latency.set_xticks(nines, [f"{100 * (1 - 10.0**-n):.12g}" for n in nines])
        pace.set_ylim(bottom=0)
        figure.legend(loc="outside right upper")
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _by_nines(latencies: Floats) -> tuple[Floats, Floats]:
    """Nines of the percentile (2 is 99 %), up to the last that so many requests resolve, and ms of each."""
    last = math.log10(max(1, len(latencies)))
    nines = np.unique(np.append(np.arange(0, last, 0.05), last))
    ms = [1e3 * percentile(latencies, 1 - 10.0**-n) for n in nines]
    return nines, np.maximum(ms, 1e-3)  # an answer within the clock's resolution has no logarithm
