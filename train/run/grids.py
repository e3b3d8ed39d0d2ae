"""The pictures of a run: samples of one noise as it goes on, and the real ones as the network gets them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from imaging.files import write_whole
from imaging.levels import to_pixels
from imaging.sheets import sheet
from train.data.pack import Pack
from train.recipes.recipe import Recipe, comma_list
from train.run.augment import augment, draw, flip, to_network
from train.run.state import TrainingState

SAMPLES = "samples"  # in the run's folder: the grids
REAL = "real.png"  # there: real pictures as they are packed
AUGMENTED = "real-augmented.png"  # there: the same as the discriminator sees them
ROWS = 10  # classes in a grid, spread over all of them
COLUMNS = 10  # images a class
SETTLED = 30_000  # images seen; before them samples are grey because the run is young
LITTLE_VARIETY = 0.25  # share of the variety of real images; less is reported as a collapse
CERTAIN = 0.02  # discriminator loss; under it the generator learns nothing more


class Grids:
    """Sample grids of one noise by the averaged generator, every so often; a collapse shows here first.

    Real pictures of the same classes are drawn once, at the start. board: gets all of them too; None: no one.
    """

    def __init__(
        self, out: Path, pack: Pack, recipe: Recipe, console: Console, board: SummaryWriter | None = None
    ) -> None:
        self.folder, self.console, self.board = out / SAMPLES, console, board
        self.drawn: int | None = None  # the last step that was
        classes = len(pack.class_names)
        rows = min(ROWS, classes)
        self.classes = [round(i * (classes - 1) / max(rows - 1, 1)) for i in range(rows)]
        lots = torch.Generator().manual_seed(recipe.optimisation.seed)
        self.z = torch.randn(rows * COLUMNS, recipe.config(classes).latent, generator=lots)
        self.y = torch.tensor(self.classes).repeat_interleave(COLUMNS)
        self.names = [pack.class_names[i] for i in self.classes]
        here = pack.shards[0] if pack.shards else len(pack)  # other shards may be on other hosts
        reals = pack.images[torch.randperm(here, generator=lots)[:100]]
        self.real_variety = _variety(reals.float() / 127.5 - 1)
        self._draw_real(pack, recipe, here)

    def after(self, state: TrainingState) -> None:
        if state.due or state.step % state.recipe.schedule.grid_every == 0:
            self._draw(state)

    def close(self, state: TrainingState) -> None:
        if state.step:
            self._draw(state)

    def _draw(self, state: TrainingState) -> None:
        if state.step == self.drawn:
            return
        first = self.drawn is None
        self.drawn, path = state.step, self.folder / f"step-{state.step:07d}.png"
        with torch.no_grad():
            images = state.ema.network(self.z.to(state.world.device), self.y.to(state.world.device)).cpu()
        self._write(path, "samples", [*to_pixels(images).numpy()], state.step)
        if first:
            self._say(f"The first samples are in {path}, real pictures in {self.folder / REAL}.")
        if state.images_seen < SETTLED or not state.losses:  # none: a finished run that was resumed
            return
        if _variety(images) < LITTLE_VARIETY * self.real_variety:
            self._say(
                f"step {state.step}: the samples hardly differ from each other (mode collapse). "
                f"Look at {path}; lower the learning rates or go back to an earlier state.",
                style="yellow",
            )
        elif state.losses["discriminator"].item() < CERTAIN:
            self._say(
                f"step {state.step}: the discriminator tells real from fake with certainty, so the "
                "generator learns nothing. Lower discriminator_lr, or keep its spectral norm on.",
                style="yellow",
            )

    def _draw_real(self, pack: Pack, recipe: Recipe, here: int) -> None:
        """The first pictures of each class shown, of the first `here`; mirrored and augmented beside."""
        optimisation = recipe.optimisation
        of_class = [
            torch.nonzero(pack.labels[:here] == number).flatten()[:COLUMNS] for number in self.classes
        ]
        pixels = pack.images[torch.cat(of_class)]
        counts = [len(found) for found in of_class]
        self._write(self.folder / REAL, "real", _rows(_pictures(pixels), counts), 0)
        kinds = comma_list(optimisation.augment)
        if not kinds and not optimisation.flips:
            (self.folder / AUGMENTED).unlink(missing_ok=True)  # of a run here that had some
            return
        lots = torch.Generator().manual_seed(optimisation.seed)
        images = to_network(pixels)
        if optimisation.flips:
            images = flip(images, torch.rand(len(images), generator=lots) < 0.5)
        images = augment(images, draw(len(images), lots), kinds).clamp(-1, 1)
        self._write(
            self.folder / AUGMENTED, "real, augmented", _rows([*to_pixels(images).numpy()], counts), 0
        )

    def _write(self, path: Path, tag: str, images: Sequence[NDArray[np.uint8]], step: int) -> None:
        content = sheet(images, COLUMNS, self.names)
        write_whole(path, content)
        if self.board is not None:
            with Image.open(io.BytesIO(content)) as picture:
                self.board.add_image(tag, np.asarray(picture), step, dataformats="HWC")

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _pictures(pixels: Tensor) -> list[NDArray[np.uint8]]:
    """uint8 [N, 3, R, R] -> N of [R, R, 3]."""
    return [*pixels.permute(0, 2, 3, 1).contiguous().numpy()]


def _rows(images: Sequence[NDArray[np.uint8]], counts: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Images class by class, so many of each, as full rows: white where a class has no more."""
    blank = np.full_like(images[0], 255)
    coming = iter(images)
    return [next(coming) if column < count else blank for count in counts for column in range(COLUMNS)]


def _variety(images: Tensor) -> float:
    """Mean over pixels of the standard deviation over images [N, 3, R, R]."""
    return float(images.std(dim=0).mean())
