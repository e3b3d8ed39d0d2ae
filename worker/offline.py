"""Images and attention maps straight from a checkpoint, without a service, for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.files import write_whole
from imaging.png import png, read_provenance
from imaging.sheets import sheet
from imaging.spec import ImageSpec, Provenance, SpecError
from jobs.classes import class_number, nearest_name
from jobs.job import AttentionMap
from model.errors import ModelError
from worker.engine import Engine, EngineError, choose_device


class OfflineError(Exception):
    """It cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Verdict:
    """An image made again, compared with the file."""

    same: bool  # to the last level of every pixel
    text: str


def write_samples(
    checkpoint: Path, class_name: str, out: Path, count: int, seed: int, truncation: float, device: str
) -> Iterator[Path]:
    """Write `count` PNGs with their provenance into `out`; yields each path. Raises OfflineError."""
    engine = _load(checkpoint, device)
    info = engine.info
    class_id = _class_id(engine, class_name)
    name = info.classes[class_id]
    for spec, pixels in _images(engine, class_id, seed, count, truncation):
        path = out / f"{info.name}-{name.replace(' ', '_')}-{seed}-{spec.index}.png"
        made = Provenance(info.name, info.hash, info.precision, name, spec)
        write_whole(path, png(pixels, made.to_json()))
        yield path


def write_sheet(
    checkpoint: Path, out: Path, columns: int, rows: int | None, seed: int, truncation: float, device: str
) -> None:
    """Write one PNG of images 0 to columns - 1 of `seed`, one class a row with its name.

    rows: number of classes, spread evenly over all; None: every class. Raises OfflineError.
    """
    engine = _load(checkpoint, device)
    names = engine.info.classes
    shown = min(rows or len(names), len(names))
    chosen = [round(row * (len(names) - 1) / max(shown - 1, 1)) for row in range(shown)]
    images = [
        pixels for class_id in chosen for _, pixels in _images(engine, class_id, seed, columns, truncation)
    ]
    write_whole(out, sheet(images, columns, [names[class_id] for class_id in chosen]))


def attend(
    checkpoint: Path,
    class_name: str,
    seed: int,
    index: int,
    truncation: float,
    layer: str | None,
    device: str,
) -> tuple[NDArray[np.uint8], AttentionMap]:
    """One image [R, R, 3] and the attention map of `layer`; None: the first. Raises OfflineError."""
    engine = _load(checkpoint, device)
    spec = ImageSpec(_class_id(engine, class_name), seed, index, truncation)
    if not engine.info.attention:
        raise OfflineError(f"{checkpoint} has no attention layer.")
    try:
        return engine.attention(spec, layer or engine.info.attention[0].name)
    except EngineError as error:
        raise OfflineError(str(error)) from None


def compare(image: Path, checkpoints: Path, device: str) -> Verdict:
    """Make the image of a PNG again from its provenance, and compare. Raises OfflineError."""
    try:
        wanted = read_provenance(image.read_bytes())
    except (OSError, SpecError) as error:
        raise OfflineError(f"{image}: {error}") from None
    engine = _load(checkpoints / f"{wanted.model}.safetensors", device, wanted.precision)
    if engine.info.hash != wanted.model_hash:
        raise OfflineError(
            f"{image} was made by another {wanted.model} than the one in {checkpoints}: sha256 "
            f"{wanted.model_hash[:12]}…, not {engine.info.hash[:12]}…."
        )
    made = engine.sample([wanted.image])[0]
    with Image.open(image) as opened:
        kept = np.asarray(opened.convert("RGB"))
    if kept.shape != made.shape:
        return Verdict(
            False, f"{image} is {kept.shape[1]}×{kept.shape[0]} px, the model makes {made.shape[0]}."
        )
    apart = np.abs(kept.astype(int) - made.astype(int))
    if not apart.any():
        return Verdict(True, f"{image}: the same, to the last level of every pixel.")
    return Verdict(
        False, f"{image}: {(apart > 0).mean():.2%} of its values differ, by {apart.max()} at most."
    )


def describe(folder: Path) -> Iterator[str]:
    """One line a checkpoint in `folder`: its model, or why it does not load."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            info = _load(path, "cpu", "float32").info
        except OfflineError as error:
            yield str(error)
        else:
            sites = ", ".join(f"{site.name} (γ {site.gamma:.3f})" for site in info.attention) or "none"
            yield (
                f"{info.name}: {info.resolution}×{info.resolution}, {len(info.classes)} classes, "
                f"attention {sites}, sha256 {info.hash[:12]}…"
            )


def _images(
    engine: Engine, class_id: int, seed: int, count: int, truncation: float
) -> Iterator[tuple[ImageSpec, NDArray[np.uint8]]]:
    """Images 0 to count - 1 of a seed, [R, R, 3]; one forward at a time."""
    for first in range(0, count, engine.max_batch):
        indices = range(first, min(first + engine.max_batch, count))
        specs = [ImageSpec(class_id, seed, k, truncation) for k in indices]
        yield from zip(specs, engine.sample(specs), strict=True)


def _load(path: Path, device: str, precision: str = "auto") -> Engine:
    try:
        return Engine.load(path, choose_device(device), precision)
    except (ModelError, EngineError) as error:
        raise OfflineError(str(error)) from None


def _class_id(engine: Engine, asked: str) -> int:
    names = engine.info.classes
    class_id = class_number(asked, names)
    if class_id is None:
        near = nearest_name(asked, names)
        hint = f"Did you mean {near!r}?" if near else f"It has 0 to {len(names) - 1}."
        raise OfflineError(f"{engine.info.name} has no class {asked!r}. {hint}")
    return class_id
