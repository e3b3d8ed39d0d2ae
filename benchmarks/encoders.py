"""CPU time and size of one PNG by several ways to pack it, on images of a checkpoint.

    python -m benchmarks.encoders [checkpoints/dogs64.safetensors] [--rounds 5]

Filters are applied in numpy, Deflate is zlib's or ISA-L's; Pillow chooses its filters itself. All are read
back.
"""

from __future__ import annotations

import io
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from benchmarks import machine
from imaging import png
from imaging.spec import ImageSpec
from worker.engine import Engine

IMAGES = 32
Pixels = NDArray[np.uint8]


def _zlib(level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> Callable[[memoryview], bytes]:
    def packed(data: memoryview) -> bytes:
        packer = zlib.compressobj(level=level, strategy=strategy)
        return packer.compress(data) + packer.flush()

    return packed


WAYS: dict[str, Callable[[memoryview], bytes]] = {
    "zlib, no search, Huffman codes alone": _zlib(1, zlib.Z_HUFFMAN_ONLY),
    "zlib, run lengths alone": _zlib(1, zlib.Z_RLE),
    "zlib, level 1": _zlib(1),
    "zlib, level 6": _zlib(6),
    "ISA-L, level 0": lambda data: isal_zlib.compress(data, 0),
    "ISA-L, level 1": lambda data: isal_zlib.compress(data, 1),
    "ISA-L, level 3": lambda data: isal_zlib.compress(data, 3),
}


def main(
    checkpoint: Annotated[Path, typer.Argument()] = Path("checkpoints/dogs64.safetensors"),
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print the table."""
    cpu = torch.device("cpu")
    typer.echo(f"{machine.described(cpu)}; other processes keep {machine.neighbours():.2f} cores busy")
    engine = Engine.load(checkpoint, cpu)
    classes = len(engine.info.classes)
    images = [engine.sample([ImageSpec(k % classes, k, 0, 1.0)])[0] for k in range(IMAGES)]
    ways: dict[str, Callable[[Pixels], bytes]] = {
        f"Pillow, level {level}": lambda pixels, level=level: _pillow(pixels, level)  # type: ignore[misc]
        for level in (1, 6)
    }
    for filter_type, filter_name in ((1, "left"), (2, "above")):
        for name, pack in WAYS.items():
            ways[f"difference from {filter_name}, {name}"] = _by(filter_type, pack)
    times: dict[str, list[float]] = {name: [] for name in ways}
    sizes = {
        name: statistics.mean(len(_checked(way, image)) for image in images) for name, way in ways.items()
    }
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            for image in images:
                way(image)
            times[name].append((time.process_time() - began) / IMAGES * 1e6)
    typer.echo(f"\n| {checkpoint.stem}, {rounds} rounds, median (range) | µs of CPU | bytes |\n|---|---|---|")
    for name, spent in times.items():
        spread = f"{statistics.median(spent):.0f} ({min(spent):.0f} to {max(spent):.0f})"
        typer.echo(f"| {name} | {spread} | {sizes[name]:.0f} |")


def _pillow(pixels: Pixels, level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def _by(filter_type: int, pack: Callable[[memoryview], bytes]) -> Callable[[Pixels], bytes]:
    def packed(pixels: Pixels) -> bytes:
        height, width, _ = pixels.shape
        rows = pixels.reshape(height, 3 * width)
        lines = np.empty((height, 1 + 3 * width), np.uint8)
        lines[:, 0], lines[:, 1:] = filter_type, rows
        if filter_type == 1:
            lines[:, 4:] -= rows[:, :-3]
        else:
            lines[1:, 1:] -= rows[:-1]
        return png.container(width, height, pack(lines.data), "{}")

    return packed


def _checked(way: Callable[[Pixels], bytes], pixels: Pixels) -> bytes:
    data = way(pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), pixels)
    return data


if __name__ == "__main__":
    typer.run(main)
