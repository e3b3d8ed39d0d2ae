"""A report: Markdown, with its figures in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imaging.files import write_whole

FIGURES = "figures"  # folder beside the Markdown


@dataclass
class Report:
    """Markdown, block by block, and the figures it shows."""

    title: str
    blocks: list[str] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)  # file name -> PNG or SVG

    def heading(self, text: str) -> None:
        self.blocks.append(f"## {text}")

    def text(self, text: str) -> None:
        self.blocks.append(text)

    def bullets(self, lines: Sequence[str]) -> None:
        self.blocks.append("\n".join(f"- {line}" for line in lines))

    def code(self, text: str, language: str) -> None:
        self.blocks.append(f"```{language}\n{text}\n```")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns that hold numbers alone, or a dash, are set to the right."""
        numeric = [all(re.match(r"(\*\*)?([-–\d]|never)", row[i]) for row in rows) for i in range(len(head))]
        lines = [head, ["---:" if right else "---" for right in numeric], *rows]
        self.blocks.append(
            "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
        )

    def figure(self, name: str, content: bytes, caption: str) -> None:
        """A PNG or SVG called `name`."""
        self.figures[name] = content
        self.blocks.append(f"![{caption}]({FIGURES}/{name})\n\n*{caption}*")

    def markdown(self) -> str:
        return "\n\n".join([f"# {self.title}", *self.blocks]) + "\n"

    def write(self, folder: Path) -> None:
        """Write report.md and its figures, each whole."""
        for name, content in self.figures.items():
            write_whole(folder / FIGURES / name, content)
        write_whole(folder / "report.md", self.markdown().encode())
