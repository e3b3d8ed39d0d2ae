"""Line charts as SVG. The same lines give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Okabe and Ito 2008: colour-blind eyes tell them apart too
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE: Mapping[Any, Any] = {
    "svg.hashsalt": "sagan",  # else the ids inside an SVG are random
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
# left, bottom, width, height in the figure; a layout engine would take twice as long
PLACE = (0.1, 0.13, 0.62, 0.78)
FEW = 20  # points of a line at most for each to have a dot


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # (x, y)
    band: Sequence[tuple[float, float]] = ()  # (low, high) around each point; (): none


@dataclass(frozen=True)
class Axes:
    """What the axes of a chart say."""

    x: str
    y: str
    scale: Literal["linear", "symlog"] = "linear"  # of y; symlog: linear up to 1, logarithmic above


def chart(title: str, axes: Axes, lines: Sequence[Line], mark: float | None = None) -> bytes:
    """An SVG of `lines` with a legend. mark: a height, dashed. Values that are not finite leave a gap."""
    import matplotlib as mpl  # takes a second, which every start of `sagan` would wait for
    import numpy as np
    from cycler import cycler
    from matplotlib.figure import Figure

    # when the colours are used up, they come again with another stroke
    strokes = cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS)
    with mpl.rc_context({**STYLE, "axes.prop_cycle": strokes}):
        figure = Figure(figsize=(7.6, 3.8))
        plot = figure.add_axes(PLACE, title=title, xlabel=axes.x, ylabel=axes.y)
        plot.set_yscale(axes.scale, **({"linthresh": 1} if axes.scale == "symlog" else {}))
        for line in lines:
            x, y = np.ma.masked_invalid(np.reshape(line.points, (-1, 2))).T
            (drawn,) = plot.plot(x, y, label=line.name, marker="o" if len(x) <= FEW else "")
            if line.band:
                plot.fill_between(x, *np.transpose(line.band), color=drawn.get_color(), alpha=0.15, lw=0)
        if mark is not None:
            plot.axhline(mark, color="#555555", linestyle="--", linewidth=1)
        if lines:
            figure.legend(loc="upper left", bbox_to_anchor=(PLACE[0] + PLACE[2], PLACE[1] + PLACE[3]))
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
