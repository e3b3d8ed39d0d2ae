"""What looks at a run while it trains: progress, a log, TensorBoard, sample grids, the served copy."""

from __future__ import annotations

import io
import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.checkpoint import save_generator, write_whole
from train.data import Pack
from train.ema import recompute_statistics
from train.recipe import Recipe
from train.state import TrainingState

GRID_ROWS = 10  # classes in a sample grid, spread over all of them
GRID_COLUMNS = 10  # images a class
SETTLED = 30_000  # images seen before which grey samples are only young
LITTLE_VARIETY = 0.25  # of the variety of real images, under which a collapse is told
CERTAIN = 0.02  # discriminator loss under which it has won, and the generator learns nothing more


class ProgressBar:
    """Steps, images/s, losses and the time left; one line now and then where there is no terminal."""

    def __init__(self, console: Console, state_step: int, total: int, log_every: int) -> None:
        self.console, self.log_every = console, log_every
        self.started, self.first = time.monotonic(), state_step
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, completed=state_step)
        self.bar.start()

    def after(self, state: TrainingState) -> None:
        if state.step % self.log_every and state.step != self.first + 1:
            self.bar.update(self.task, completed=state.step)
            return
        seconds = time.monotonic() - self.started
        optimisation = state.recipe.optimisation
        steps = state.step - self.first
        rate = steps * optimisation.batch * optimisation.discriminator_steps / seconds
        losses = " ".join(f"{name} {value.item():.3f}" for name, value in state.losses.items())
        text = f"{rate:.0f} images/s, {losses}"
        self.bar.update(self.task, completed=state.step, description=text)
        if not self.console.is_terminal:
            left = (optimisation.steps - state.step) * seconds / steps
            line = f"step {state.step}/{optimisation.steps}: {text}, {left / 60:.0f} min left"
            self.console.print(line, highlight=False, soft_wrap=True)

    def close(self, state: TrainingState) -> None:
        self.bar.stop()


class Scalars:
    """Losses, scores and the attention gates, into TensorBoard and `log.jsonl`."""

    def __init__(self, out: Path, state_step: int, every: int) -> None:
        self.every = every
        self.path = out / "log.jsonl"
        _forget_after(self.path, state_step)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=state_step + 1)
        self.started, self.first = time.monotonic(), state_step

    def after(self, state: TrainingState) -> None:
        if state.step % self.every:
            return
        scalars = {f"loss/{name}": value.item() for name, value in state.losses.items()}
        for role, network in (("generator", state.generator), ("discriminator", state.discriminator)):
            for name, parameter in network.attention.named_parameters():
                if name.endswith(".gamma"):
                    scalars[f"gamma/{role}.{name.removesuffix('.gamma')}"] = parameter.item()
        seconds = time.monotonic() - self.started
        scalars["steps_per_second"] = (state.step - self.first) / seconds
        for name, value in scalars.items():
            self.board.add_scalar(name, value, state.step)
        with self.path.open("a") as log:
            log.write(json.dumps({"step": state.step, **scalars}) + "\n")

    def close(self, state: TrainingState) -> None:
        self.board.close()


class Grids:
    """The same noise, drawn by the averaged generator every so often; a collapse shows here first."""

    def __init__(self, out: Path, pack: Pack, recipe: Recipe, console: Console) -> None:
        self.folder, self.console = out / "samples", console
        classes = len(pack.class_names)
        rows = min(GRID_ROWS, classes)
        chosen = [round(i * (classes - 1) / max(rows - 1, 1)) for i in range(rows)]
        draw = torch.Generator().manual_seed(recipe.optimisation.seed)
        self.z = torch.randn(rows * GRID_COLUMNS, recipe.config(classes).latent, generator=draw)
        self.y = torch.tensor(chosen).repeat_interleave(GRID_COLUMNS)
        reals = pack.images[torch.randperm(len(pack.labels), generator=draw)[:100]]
        self.real_variety = _variety(reals.float() / 127.5 - 1)

    def after(self, state: TrainingState) -> None:
        if state.step % state.recipe.schedule.grid_every == 0:
            self._draw(state)

    def close(self, state: TrainingState) -> None:
        if state.step:
            self._draw(state)

    def _draw(self, state: TrainingState) -> None:
        path = self.folder / f"step-{state.step:07d}.png"
        if path.exists():
            return
        with torch.no_grad():
            images = state.ema.network(self.z.to(state.world.device), self.y.to(state.world.device)).cpu()
        save_grid(path, images, GRID_COLUMNS)
        if state.images_seen < SETTLED:
            return
        if _variety(images) < LITTLE_VARIETY * self.real_variety:
            self._warn(
                f"step {state.step}: the samples hardly differ from each other (mode collapse). "
                f"Look at {path}; lower the learning rates or go back to an earlier state."
            )
        elif state.losses["discriminator"].item() < CERTAIN:
            self._warn(
                f"step {state.step}: the discriminator tells real from fake with certainty, so the "
                "generator learns nothing. Lower discriminator_lr, or keep its spectral norm on."
            )

    def _warn(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


class Served:
    """The averaged generator as it serves, written beside the state whenever that is saved."""

    def __init__(self, path: Path, metadata: Mapping[str, object]) -> None:
        self.path, self.metadata = path, metadata
        self.started = time.monotonic()

    def after(self, state: TrainingState) -> None:
        if state.step % state.recipe.schedule.save_every == 0:
            self._write(state)

    def close(self, state: TrainingState) -> None:
        if state.step:
            self._write(state)

    def _write(self, state: TrainingState) -> None:
        schedule, optimisation = state.recipe.schedule, state.recipe.optimisation
        served = state.ema.network
        recompute_statistics(
            served,
            schedule.statistics_batches,
            optimisation.batch,
            optimisation.seed,
            state.world.device,
        )
        metadata = {
            **self.metadata,
            "recipe": state.recipe.to_json(),
            "steps": state.step,
            "images_seen": state.images_seen,
            "data": {k: v for k, v in state.pack.metadata.items() if k != "skipped"},
            "licence": state.pack.metadata.get("licence", ""),
            "machine": f"{state.world.size} × {state.world.device} on {platform.machine()}",
            "torch": torch.__version__,
        }
        save_generator(self.path, served, state.pack.class_names, metadata=metadata)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Images [N, 3, R, R] in [-1, 1] as one PNG, row by row, a pixel apart."""
    side = images.shape[-1] + 1
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * side - 1, rows * side - 1), "white")
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        sheet.paste(Image.fromarray(image), (i % columns * side, i // columns * side))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_whole(path, content.getvalue())


def _variety(images: Tensor) -> float:
    """Mean over pixels of the standard deviation over images [N, 3, R, R]."""
    return float(images.std(dim=0).mean())


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after the state it resumes from."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if _step(line) <= step]
        write_whole(log, "".join(line + "\n" for line in lines).encode())


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by the kill
