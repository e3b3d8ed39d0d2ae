"""A checkpoint as a ready sampler whose pixels do not depend on what else is in the batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import Checkpoint, load_generator
from model.errors import ModelError
from model.fused import FusedGenerator
from worker.jobs import AttentionMap, AttentionSite, ModelInfo, Recipe
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

# EngineError
# ├── UnknownLayer    no attention of that name in this model
# ├── NoDevice        the device that was asked for is not there
# └── NoModel         no checkpoint could be loaded

# Rows of a forward, by type of device. Every forward has exactly so many, the last ones repeated where there
# is less to do: kernels are chosen by size, and on the CPU in float32 one image in seven came out one level
# different in forwards of 8 or 16 rows, while with four rows 144 images were the same at every position.
# Four rows cost a CPU at most a third more an image than sixteen, and one image alone takes as long as four.
ROWS: Final = {"cpu": 4, "cuda": 32}

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class EngineError(Exception):
    """Root of what this module raises on purpose."""


class UnknownLayer(EngineError):
    """No attention layer of that name in this model."""


class NoDevice(EngineError):
    """The device that was asked for is not there."""


class NoModel(EngineError):
    """No checkpoint could be loaded."""


def noise(recipe: Recipe, latent: int) -> NDArray[np.float32]:
    """z of one image, [latent]: from a stream of its own, keyed by (seed, index), scaled by truncation."""
    stream = np.random.Generator(np.random.Philox(key=[recipe.seed, recipe.index]))
    return (stream.standard_normal(latent) * recipe.truncation).astype(np.float32)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """[B, 3, R, R] in [-1, 1] -> uint8 [B, R, R, 3]."""
    levels = ((images.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


class Engine:
    """One model on one device. Use it from the thread that made it."""

    def __init__(self, checkpoint: Checkpoint, name: str, device: torch.device, precision: str) -> None:
        """precision: "float32" or "bfloat16"."""
        config = checkpoint.config
        self._network = FusedGenerator(checkpoint.generator).to(device, DTYPES[precision])
        self._device = device
        self.device = str(device)
        self._dtype = DTYPES[precision]
        self._latent = config.latent
        self.rows = ROWS.get(device.type, 32)
        self.info = ModelInfo(
            name=name,
            hash=checkpoint.sha256,
            precision=precision,
            resolution=config.resolution,
            classes=checkpoint.class_names,
            metrics=dict(checkpoint.metrics),
            licence=str(checkpoint.metadata.get("licence", "")),
            description=str(checkpoint.metadata.get("description", "")),
        )
        sites = self._look()
        self.info = replace(self.info, attention=sites)

    @classmethod
    def load(cls, path: Path, device: torch.device, precision: str = "float32") -> Engine:
        """The model in `path`, named by its stem. Raises model.errors.ModelError for any other file."""
        return cls(load_generator(path), path.stem, device, precision)

    def sample(self, recipes: Sequence[Recipe]) -> NDArray[np.uint8]:
        """uint8 [N, R, R, 3], one image a recipe, the same whatever the others are; N at most `rows`."""
        with torch.inference_mode():
            images = self._network(*self._inputs(recipes))
            return to_pixels(images[: len(recipes)])

    def attention(self, recipe: Recipe, layer: str) -> tuple[NDArray[np.uint8], AttentionMap]:
        """The image again [R, R, 3], and the map of one layer. Raises UnknownLayer."""
        if layer not in {site.name for site in self.info.attention}:
            names = ", ".join(site.name for site in self.info.attention) or "none"
            raise UnknownLayer(f"Model {self.info.name!r} has no attention layer {layer!r}; it has: {names}.")
        with torch.inference_mode():
            images, traces = self._network.forward_with_attention(*self._inputs([recipe]))
            trace = next(trace for trace in traces if trace.name == layer)
            return to_pixels(images[:1])[0], AttentionMap(
                layer=layer,
                query_grid=trace.query_grid,
                key_grid=trace.key_grid,
                gamma=float(trace.gamma),
                share=float(trace.share[0]),
                map=trace.map[0].to(torch.float16).cpu().numpy(),
            )

    def _inputs(self, recipes: Sequence[Recipe]) -> tuple[Tensor, Tensor]:
        """z [rows, latent] and y [rows]; the rows after the recipes repeat the first."""
        rows = [*recipes, *[recipes[0]] * (self.rows - len(recipes))]
        z = torch.from_numpy(np.stack([noise(row, self._latent) for row in rows]))
        y = torch.tensor([row.class_id for row in rows])
        return z.to(self._device, self._dtype), y.to(self._device)

    def _look(self) -> tuple[AttentionSite, ...]:
        """Run once, as a warm-up, and see which layers attend."""
        first = Recipe(class_id=0, seed=0, index=0, truncation=1.0)
        with torch.inference_mode():
            _, traces = self._network.forward_with_attention(*self._inputs([first]))
        self.sample([first])
        return tuple(AttentionSite(t.name, t.query_grid[0], float(t.gamma)) for t in traces)


def choose_device(wanted: str) -> torch.device:
    """The torch device of a setting. Raises NoDevice."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NoDevice(
            f'There is no device {wanted!r} here ({error}). "auto" takes what there is.'
        ) from error
    return device


def load_engines(settings: WorkerSettings) -> dict[str, Engine]:
    """Every model in the checkpoints folder, by name. One that is no good is told about and left out.

    Raises NoModel when none is left, NoDevice.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    # Pixels must not depend on which kernel a heuristic finds fastest today, nor on TF32's short mantissa.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    device = choose_device(settings.device)
    precision = "float32" if settings.precision == "auto" else settings.precision
    engines = {}
    paths = sorted(settings.checkpoints.glob("*.safetensors"))
    for path in paths:
        try:
            engines[path.stem] = Engine.load(path, device, precision)
        except ModelError as error:
            log.error("refused: %s", error)
        else:
            log.info("loaded %s on %s", path.stem, device)
    if not engines:
        found = (
            f"none of the {len(paths)} in it can be loaded" if paths else "there is no *.safetensors in it"
        )
        raise NoModel(
            f"No model to serve from {settings.checkpoints}: {found}. Train one with `sagan train`, "
            "or point SAGAN_CHECKPOINTS to a folder of checkpoints."
        )
    return engines
