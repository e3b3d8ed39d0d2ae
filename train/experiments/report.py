"""A report, written once: as Markdown with its figures beside it, and as one HTML file with them inside."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt  # comes with rich

from imaging.files import write_whole

FIGURES = "figures"  # folder beside the Markdown
# Okabe and Ito 2008: told apart by colour-blind eyes too
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
DASHES = ("", "6 3", "2 3")  # after the last colour the first comes again, with another stroke
CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem; text-align: left;
  font-variant-numeric: tabular-nums; }
pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; font-size: 0.85rem; }
svg, img { max-width: 100%; height: auto; }
"""


@dataclass
class Report:
    """Markdown, block by block, and the figures it refers to."""

    title: str
    blocks: list[str] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)  # file name -> PNG or SVG

    def heading(self, text: str, level: int = 2) -> None:
        self.blocks.append(f"{'#' * level} {text}")

    def text(self, text: str) -> None:
        self.blocks.append(text)

    def bullets(self, lines: Sequence[str]) -> None:
        self.blocks.append("\n".join(f"- {line}" for line in lines))

    def code(self, text: str, language: str = "") -> None:
        self.blocks.append(f"```{language}\n{text}\n```")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns whose cells are figures, or a dash, are set to the right."""
        figures = [all(re.match(r"(\*\*)?([-–\d]|never)", row[i]) for row in rows) for i in range(len(head))]
        lines = [head, ["---:" if figure else "---" for figure in figures], *rows]
        self.blocks.append(
            "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)
        )

    def figure(self, name: str, content: bytes | str, about: str) -> None:
        """A PNG or SVG called `name`; `about` says in a line what it shows."""
        self.figures[name] = content.encode() if isinstance(content, str) else content
        self.blocks.append(f"![{about}]({FIGURES}/{name})\n\n*{about}*")

    def markdown(self) -> str:
        return "\n\n".join([f"# {self.title}", *self.blocks]) + "\n"

    def html(self) -> str:
        """The same, with nothing outside it: well-formed XML too."""
        body = MarkdownIt("commonmark", {"html": False}).enable("table").render(self.markdown())
        body = re.sub(rf'<img src="{FIGURES}/([^"]+)" alt="([^"]*)" />', self._inlined, body)
        return (
            '<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml">\n<head>\n'
            '<meta charset="utf-8" />\n<meta name="viewport" content="width=device-width" />\n'
            f"<title>{escape(self.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
        )

    def write(self, folder: Path) -> None:
        """Write report.md, report.html and the figures, each whole."""
        for name, content in self.figures.items():
            write_whole(folder / FIGURES / name, content)
        write_whole(folder / "report.md", self.markdown().encode())
        write_whole(folder / "report.html", self.html().encode())

    def _inlined(self, found: re.Match[str]) -> str:
        content = self.figures[found[1]]
        if found[1].endswith(".svg"):
            return content.decode()
        return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{found[2]}" />'


@dataclass(frozen=True)
class Series:
    """A line of a chart: (x, y) points, and the band (low, high) around each, if any."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], mark: float | None = None) -> str:
    """An SVG line chart with a legend; `mark`: a height, dashed. Points that are not finite are left out."""
    width, height, left, right, top, bottom = 760, 380, 70, 190, 34, 46
    shown = [s for s in series if any(map(_finite, s.points))]
    xs = [x for s in shown for x, y in s.points if _finite((x, y))]
    ys = [y for s in shown for x, y in s.points if _finite((x, y))]
    ys += [y for s in shown for pair in s.band for y in pair if math.isfinite(y)]
    ys += [mark] if mark is not None else []
    x_ticks, y_ticks = (
        ticks(min(xs, default=0), max(xs, default=1)),
        ticks(min(ys, default=0), max(ys, default=1)),
    )
    x_low, x_high = min([*xs, x_ticks[0]]), max([*xs, x_ticks[-1]])
    y_low, y_high = min([*ys, y_ticks[0]]), max([*ys, y_ticks[-1]])

    def at(x: float, y: float) -> str:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        down = height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)
        return f"{across:.1f},{down:.1f}"

    def text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        text(left, 18, title, "start", ' font-weight="bold" font-size="13"'),
        text((left + width - right) / 2, height - 8, x_label),
        text(0, 0, y_label, more=f' transform="translate(14 {(top + height - bottom) / 2:.0f}) rotate(-90)"'),
    ]
    for x in x_ticks:
        across = float(at(x, y_low).split(",")[0])
        parts.append(text(across, height - bottom + 16, _short(x)))
    for y in y_ticks:
        down = float(at(x_low, y).split(",")[1])
        parts.append(f'<path d="M{left},{down:.1f}H{width - right}" stroke="#ddd"/>')
        parts.append(text(left - 6, down + 4, _short(y), "end"))
    if mark is not None:
        parts.append(
            f'<path d="M{at(x_low, mark)}L{at(x_high, mark)}" stroke="#555" stroke-dasharray="4 4"/>'
        )
    for i, line in enumerate(shown):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        kept = [p for p in line.points if _finite(p)]
        if line.band:
            edges = [(x, b) for (x, _), b in zip(line.points, line.band, strict=True) if _finite(b)]
            around = [at(x, low) for x, (low, _) in edges] + [at(x, high) for x, (_, high) in edges[::-1]]
            parts.append(f'<polygon points="{" ".join(around)}" fill="{colour}" opacity="0.15"/>')
        stroke = f'fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash or "none"}"'
        parts.append(f'<polyline points="{" ".join(at(*p) for p in kept)}" {stroke}/>')
        if len(kept) <= 20:
            dots = (at(*p).split(",") for p in kept)
            parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>' for x, y in dots]
        down = top + 8 + 17 * i
        parts.append(f'<path d="M{width - right + 12},{down}h22" {stroke}/>')
        parts.append(text(width - right + 40, down + 4, line.name, "start"))
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five, the first at or above `low`, the last at or below `high`."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _finite(pair: tuple[float, float]) -> bool:
    return math.isfinite(pair[0]) and math.isfinite(pair[1])


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
