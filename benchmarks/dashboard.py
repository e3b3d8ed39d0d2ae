"""Draws docker/grafana/dashboards/sagan.json from the data of a Prometheus, where there is no Grafana.

    python -m benchmarks.dashboard http://127.0.0.1:9090 --minutes 10 --out docs/images/dashboard.png

Each panel runs the dashboard's own queries; the look is matplotlib's, not Grafana's.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

DASHBOARD: Final = Path(__file__).parents[1] / "docker/grafana/dashboards/sagan.json"
STEPS: Final = 120  # points of a curve
INK: Final = "#d8d9da"
COLOURS: Final = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d")


def panels() -> list[dict[str, Any]]:
    """The panels that have queries, and the rows between them."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expand(expr: str, window: str = "1m") -> str:
    """A query as Grafana would send it, with all models shown."""
    return expr.replace("$__rate_interval", window).replace("$model", ".*")


def ask(prometheus: str, path: str, **asked: object) -> Any:
    """The `data` of an answer of Prometheus' HTTP API."""
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.loads(reply.read())["data"]


def label(legend: str, labels: Mapping[str, str]) -> str:
    """A legend such as "{{model}} half" with its labels filled in."""
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def shown(value: float, unit: str) -> str:
    """A value as a panel of that unit shows it."""
    if value != value:  # NaN
        return "no data"
    match unit:
        case "s":
            return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
        case "percentunit":
            return f"{100 * value:.2f} %"
        case "bytes":
            return f"{value / 2**20:.0f} MiB"
        case "ops" | "reqps":
            return f"{value:.1f}/s"
        case _:
            return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


class _Drawing:
    """The dashboard as one figure."""

    def __init__(self, prometheus: str, minutes: float, window: str, end: float) -> None:
        self._prometheus = prometheus
        self._end = end
        self._span = 60 * minutes
        self._window = window
        found = panels()
        self._panels = found
        self._rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in found)

    def save(self, out: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        pyplot.rcParams.update({"font.size": 7, "text.color": INK, "axes.labelcolor": INK})
        pyplot.rcParams.update({"xtick.color": INK, "ytick.color": INK, "axes.edgecolor": "#444"})
        figure = pyplot.figure(figsize=(15, 0.24 * self._rows), facecolor="#111217")
        for panel in self._panels:
            axes = figure.add_axes(self._place(panel["gridPos"], panel["type"]))
            axes.set_facecolor("#181b1f")
            {"row": self._row, "stat": self._stat, "timeseries": self._curves, "table": self._table}[
                panel["type"]
            ](axes, panel)
        out.parent.mkdir(parents=True, exist_ok=True)
        from PIL import Image

        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110, facecolor=figure.get_facecolor())
        Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
            out, optimize=True
        )  # a quarter of its bytes

    def _place(self, at: Mapping[str, int], kind: str) -> tuple[float, float, float, float]:
        """Left, bottom, width and height, with room for title, axes and legend."""
        left, bottom = at["x"] / 24, 1 - (at["y"] + at["h"]) / self._rows
        width, height = at["w"] / 24, at["h"] / self._rows
        row = 1 / self._rows
        if kind == "timeseries":
            return left + 0.03, bottom + 1.9 * row, width - 0.04, height - 3.1 * row
        return left + 0.004, bottom + 0.15 * row, width - 0.008, height - 0.3 * row

    def _row(self, axes: Any, panel: Mapping[str, Any]) -> None:
        axes.set_axis_off()
        axes.text(0.0, 0.5, panel["title"], fontsize=9, weight="bold", va="center")

    def _stat(self, axes: Any, panel: Mapping[str, Any]) -> None:
        [target] = panel["targets"]
        found = ask(self._prometheus, "query", query=expand(target["expr"], self._window), time=self._end)[
            "result"
        ]
        value = float(found[0]["value"][1]) if found else float("nan")
        defaults = panel["fieldConfig"]["defaults"]
        colour = "green"
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is None or value >= step["value"]:
                colour = step["color"]
        named = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c", "blue": "#5794f2"}
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.04, 0.9, panel["title"], va="top", transform=axes.transAxes, fontsize=8)
        text = shown(value, defaults["unit"])
        axes.text(
            0.5,
            0.4,
            text,
            ha="center",
            va="center",
            transform=axes.transAxes,
            fontsize=17,
            color=named[colour],
        )

    def _curves(self, axes: Any, panel: Mapping[str, Any]) -> None:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        curves: list[tuple[str, list[float], list[float]]] = []
        for target in panel["targets"]:
            asked = {"start": self._end - self._span, "end": self._end, "step": self._span / STEPS}
            query = expand(target["expr"], self._window)
            for series in ask(self._prometheus, "query_range", query=query, **asked)["result"]:
                times = [(float(at) - self._end) / 60 for at, _ in series["values"]]
                values = [float(value) for _, value in series["values"]]
                curves.append((label(target["legendFormat"], series["metric"]), times, values))
        stacked = "stacking" in panel["fieldConfig"]["defaults"]["custom"]
        _draw(axes, curves, stacked)
        axes.set_title(panel["title"], loc="left", fontsize=8, pad=4)
        axes.set_xlim(-self._span / 60, 0)
        axes.set_ylim(bottom=0)
        axes.grid(color="#2c3235", linewidth=0.5)
        axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} min" if value else "now")
        if curves:
            axes.legend(
                loc="upper left", bbox_to_anchor=(-0.06, -0.2), ncols=4, frameon=False, fontsize=5.5,
                labelcolor=INK, handlelength=1, columnspacing=1, borderaxespad=0,
            )  # fmt: skip
        else:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes, color="#888")

    def _table(self, axes: Any, panel: Mapping[str, Any]) -> None:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.02, 0.97, panel["title"], va="top", transform=axes.transAxes, fontsize=8)
        found = ask(self._prometheus, "query", query=expand(panel["targets"][0]["expr"]), time=self._end)[
            "result"
        ]
        columns: Sequence[str] = sorted({name for series in found for name in series["metric"]})
        rows = [[*columns, "number"]]
        rows += [[*(s["metric"].get(name, "") for name in columns), s["value"][1]] for s in found]
        for k, row in enumerate(rows):
            for j, cell in enumerate(row):
                at = 0.02 + 0.97 * j / len(row)
                cell = cell[:12]
                axes.text(
                    at, 0.78 - 0.14 * k, cell, transform=axes.transAxes, fontsize=5.5 if len(row) > 4 else 6,
                    color="#8ab8ff" if k == 0 else INK,
                )  # fmt: skip


def _draw(axes: Any, curves: Sequence[tuple[str, list[float], list[float]]], stacked: bool) -> None:
    below: dict[float, float] = {}
    for k, (name, times, values) in enumerate(curves):
        colour = COLOURS[k % len(COLOURS)]
        if not stacked:
            axes.plot(times, values, color=colour, linewidth=1, label=name)
            axes.fill_between(times, values, color=colour, alpha=0.08, linewidth=0)
            continue
        floor = [below.get(round(at, 4), 0.0) for at in times]
        top = [low + value for low, value in zip(floor, values, strict=True)]
        axes.fill_between(times, floor, top, color=colour, alpha=0.4, linewidth=0.5, label=name)
        below.update({round(at, 4): height for at, height in zip(times, top, strict=True)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prometheus", help="its address, such as http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--window", default="30s", help="of rates: four times what it scrapes by")
    parser.add_argument("--end", type=float, default=time.time(), help="seconds since 1970; now")
    parser.add_argument("--out", type=Path, default=Path("docs/images/dashboard.png"))
    given = parser.parse_args()
    _Drawing(given.prometheus, given.minutes, given.window, given.end).save(given.out)
