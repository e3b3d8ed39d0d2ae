"""Images a second of the worker's engine beside the plain eager float32 network, side by side in one run.

    python -m benchmarks.engine [--device auto] [--rounds 5] [--checkpoint checkpoints/dogs64.safetensors]

Without a checkpoint: a 64×64 generator of width 32 with random weights. The rows take turns, --rounds times,
so that all share the noise of the machine. Every row brings its pixels back to the host; none makes PNGs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from imaging.levels import to_pixels
from imaging.noise import noise
from imaging.spec import ImageSpec
from model import layers
from model.checkpoint import load_generator, save_generator
from model.config import ModelConfig
from model.generator import Generator
from model.layers import spectral_normalise
from worker.engine import Engine, ThreadBudget, choose_device, choose_exact_kernels

WIDE = 16  # images of the plain network's batch
Make = Callable[[int], object]  # number of images -> returns when they are on the host


def main(
    device: Annotated[str, typer.Option(help='"cpu", "cuda", or what there is')] = "auto",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Of each row in each round", min=0.1)] = 2.0,
    checkpoint: Annotated[Path | None, typer.Option(help="Random weights without one")] = None,
) -> None:
    """Print the table."""
    choose_exact_kernels()
    where = choose_device(device)
    typer.echo(f"{machine.described(where)}; other processes keep {machine.neighbours():.2f} cores busy")
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint or _random(Path(folder) / "random.safetensors")
        rows = _rows(path, where)
        _floor(path, where)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, (make, batch, lanes) in rows.items():
            times[name].append(_images_a_second(make, batch, lanes, seconds))
    base = times[next(iter(times))]
    typer.echo(
        f"\n| {rounds} rounds of {seconds:g} s, median (range) | images/s | × the first row |\n|---|---|---|"
    )
    for name, rates in times.items():
        ratios = [rate / first for rate, first in zip(rates, base, strict=True)]
        typer.echo(f"| {name} | {_spread(rates, 0)} | {_spread(ratios, 2)} |")


def _rows(path: Path, device: torch.device) -> dict[str, tuple[Make, int, int]]:
    """Name -> (a way to make images, its batch, the threads that call it at once)."""
    live = load_generator(path).generator.to(device)
    folded = live.folded().to(memory_format=torch.channels_last)
    spectral_normalise(live.requires_grad_(False).eval())  # as a checkpoint in training has it
    budget = ThreadBudget()
    engine = Engine.load(path, device, "float32", budget)
    engine.verify_batch_sizes()
    rows: dict[str, tuple[Make, int, int]] = {
        f"plain eager float32 in eval mode, {WIDE} images": (_plainly(live, device), WIDE, 1),
        f"the same, spectral norm folded, channels_last, {WIDE} images": (_plainly(folded, device), WIDE, 1),
    }
    for size in (1, engine.max_batch):
        rows[f"engine, one forward at a time, {size} images"] = (_by(engine), size, 1)
        rows[f"engine, {engine.lanes} forwards at once, {size} images each"] = (
            _by(engine),
            size,
            engine.lanes,
        )
    short = Engine.load(path, device, "auto", budget)
    if short.info.precision != "float32":
        short.verify_batch_sizes()
        for size in (1, engine.max_batch):
            name = f"engine in {short.info.precision}, {short.lanes} forwards at once, {size} images each"
            rows[name] = (_by(short), size, short.lanes)
    return rows


def _plainly(network: Generator, device: torch.device) -> Make:
    classes, latent = network.config.classes, network.config.latent

    def make(batch: int) -> object:
        z = torch.from_numpy(
            np.stack([noise(r.seed, r.index, latent, r.truncation) for r in _specs(batch, classes)])
        ).to(device)
        y = torch.tensor([r.class_id for r in _specs(batch, classes)], device=device)
        merged, layers._double_then = layers._double_then, _enlarge_then
        try:
            with torch.inference_mode():
                return to_pixels(network(z, y)).cpu().numpy()
        finally:
            layers._double_then = merged

    return make


def _enlarge_then(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """×2 and a 3×3 convolution as everybody writes them."""
    h: Tensor = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return h


def _by(engine: Engine) -> Make:
    return lambda batch: engine.sample(_specs(batch, len(engine.info.classes)))


def _specs(count: int, classes: int) -> list[ImageSpec]:
    return [ImageSpec(k % classes, k, 0, 1.0) for k in range(count)]


def _images_a_second(make: Make, batch: int, lanes: int, seconds: float) -> float:
    made = [0] * lanes
    threads = torch.get_num_threads()
    make(batch)

    def lane(index: int) -> None:
        while time.perf_counter() < end:
            make(batch)
            made[index] += batch

    began = time.perf_counter()
    end = began + seconds
    if lanes == 1:
        torch.set_num_threads(threads)
        lane(0)
    else:
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(lane, range(lanes)))  # raises a lane's exception
    return sum(made) / (time.perf_counter() - began)


def _floor(path: Path, device: torch.device) -> None:
    """Print the products of one image, and how many images a second the rate of a large product allows."""
    network = load_generator(path).generator.folded()
    z, y = torch.zeros(1, network.config.latent), torch.zeros(1, dtype=torch.long)
    counts = []
    for way in (_enlarge_then, layers._double_then):
        merged, layers._double_then = layers._double_then, way
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(z, y)
        layers._double_then = merged
        counts.append(counter.get_total_flops())
    rate = machine.matrix_rate(device, torch.float32)
    typer.echo(
        f"floor: {counts[0] / 1e9:.2f} GFLOP an image as everybody writes it, {counts[1] / 1e9:.2f} with ×2 "
        f"and 3×3 merged; a large float32 product runs at {rate / 1e9:.0f} GFLOP/s here, so "
        f"{rate / counts[0]:.0f} and {rate / counts[1]:.0f} images/s"
    )


def _random(path: Path) -> Path:
    torch.manual_seed(0)
    widths = (512, 256, 128, 64, 32)
    config = ModelConfig(
        resolution=64,
        classes=10,
        generator_widths=widths,
        discriminator_widths=widths[::-1],
        generator_attention=(32,),
        discriminator_attention=(32,),
    )
    generator = Generator(config).train()
    with torch.no_grad():
        for _ in range(20):  # sane statistics for the batch norms
            generator(torch.randn(16, config.latent), torch.randint(10, (16,)))
    save_generator(path, generator, tuple(map(str, range(10))))
    return path


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    typer.run(main)
