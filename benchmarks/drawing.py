"""Memory and CPU of the largest drawings that the API makes.

    python -m benchmarks.drawing

Each is drawn in a process of its own, piece by piece, as a request is: a grid of 64 images of noise at
size=1024 by either filter, and an attention figure of eight points at size=1024. Printed is what the process'
memory grew by at most, what the API reserves for such a drawing, and seconds of CPU.
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from collections.abc import Iterator
from time import process_time

import numpy as np
import typer
from PIL import Image

from app import overlay, pictures, views
from app.overlay import FigureStyle
from app.pictures import Resample
from jobs.job import AttentionMap

DRAWINGS = ("nearest", "lanczos", "figure")
RESOLUTION, COUNT, SIDE, POINTS = 128, 64, 1024, 8


def grid(pngs: list[bytes], side: int, resample: Resample) -> Iterator[bytes]:
    return pictures.grid(pngs, side, resample)


def figure(side: int) -> Iterator[bytes]:
    noise = np.random.default_rng(0)
    image = noise.integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    rows = noise.dirichlet(np.ones(256), 1024).astype(np.float16)
    attention = AttentionMap("32x32", (32, 32), (16, 16), 0.5, 0.1, rows)
    points = [(10 * index, 5 * index) for index in range(POINTS)]
    for sheet in overlay.figure(image, attention, points, FigureStyle(side), "a figure"):
        drawn = sheet
        yield b""
    yield from pictures.written(drawn)


def measure(kind: str) -> None:
    """Draw once small, so that all is loaded, and then large; print the growth and the CPU."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    resample: Resample = "lanczos" if kind == "lanczos" else "nearest"

    def pieces(side: int) -> Iterator[bytes]:
        return figure(side) if kind == "figure" else grid([out.getvalue()] * COUNT, side, resample)

    for _ in pieces(64):
        pass
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, process_time()
    size = sum(len(piece) for piece in pieces(SIDE))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if kind == "figure":
        reserved = views.memory_of("figure", SIDE, POINTS)
    else:
        reserved = pictures.memory_of_grid(RESOLUTION, COUNT, SIDE)
    typer.echo(
        f"{kind:8} {grown / 1e6:6.0f} MB more, {reserved / 1e6:6.0f} MB reserved, "
        f"{process_time() - began:5.1f} s of CPU, a file of {size / 1e6:.1f} MB"
    )


def main(kind: str = typer.Argument("", help="One of them; else each in a process of its own")) -> None:
    """Print memory and CPU of each drawing."""
    if kind:
        measure(kind)
        return
    for each in DRAWINGS:
        subprocess.run([sys.executable, "-m", "benchmarks.drawing", each], check=True)


if __name__ == "__main__":
    typer.run(main)
