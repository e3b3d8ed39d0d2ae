"""What the service makes, made by hand: images, an attention map, and an image again from its PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.checkpoint import write_whole
from model.errors import ModelError
from worker.classes import class_number, nearest_name
from worker.encode import RecipeError, png, read_recipe, recipe_json
from worker.engine import Engine, EngineError, choose_device
from worker.jobs import AttentionMap, JobSpec, Recipe, recipe

_NAME_SIZE = 13  # px, of the class names on a sheet


class OfflineError(Exception):
    """What was asked for cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Verdict:
    """How an image made again compares with the file."""

    same: bool  # to the last level of every pixel
    text: str


def write_samples(
    checkpoint: Path, class_name: str, out: Path, count: int, seed: int, truncation: float, device: str
) -> Iterator[Path]:
    """Write `count` PNGs with their recipes inside into `out`, and tell each path. Raises OfflineError."""
    engine = _load(checkpoint, device)
    spec = _spec(engine, class_name, count, seed, truncation)
    for k, pixels in enumerate(_images(engine, spec)):
        path = out / f"{spec.model}-{spec.class_name.replace(' ', '_')}-{seed}-{k}.png"
        write_whole(path, png(pixels, recipe_json(spec, k)))
        yield path


def write_sheet(
    checkpoint: Path, out: Path, columns: int, rows: int | None, seed: int, truncation: float, device: str
) -> None:
    """Write one PNG of images 0 to columns - 1 of `seed`, a class a row, its name before it.

    rows: so many classes, spread evenly over all; None: every class. Raises OfflineError.
    """
    engine = _load(checkpoint, device)
    side, names = engine.info.resolution, engine.info.classes
    shown = min(rows or len(names), len(names))
    chosen = [names[round(row * (len(names) - 1) / max(shown - 1, 1))] for row in range(shown)]
    font = ImageFont.load_default(_NAME_SIZE)
    left = math.ceil(max(font.getlength(name) for name in chosen)) + _NAME_SIZE
    sheet = Image.new("RGB", (left + columns * (side + 1) - 1, shown * (side + 1) - 1), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(chosen):
        top = row * (side + 1)
        draw.text((left - _NAME_SIZE / 2, top + side / 2), name, "black", font, anchor="rm")
        spec = _spec(engine, name, columns, seed, truncation)
        for k, pixels in enumerate(_images(engine, spec)):
            sheet.paste(Image.fromarray(pixels), (left + k * (side + 1), top))
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    write_whole(out, content.getvalue())


def attend(
    checkpoint: Path,
    class_name: str,
    seed: int,
    index: int,
    truncation: float,
    layer: str | None,
    device: str,
) -> tuple[NDArray[np.uint8], AttentionMap]:
    """One image [R, R, 3] and what `layer` (None: the first) attended to. Raises OfflineError."""
    engine = _load(checkpoint, device)
    spec = _spec(engine, class_name, index + 1, seed, truncation)
    if not engine.info.attention:
        raise OfflineError(f"{checkpoint} has no attention layer.")
    try:
        return engine.attention(recipe(spec, index), layer or engine.info.attention[0].name)
    except EngineError as error:
        raise OfflineError(str(error)) from None


def compare(image: Path, checkpoints: Path, device: str) -> Verdict:
    """Make the image in a PNG again from its recipe, and compare. Raises OfflineError."""
    try:
        wanted = read_recipe(image.read_bytes())
    except (OSError, RecipeError) as error:
        raise OfflineError(f"{image}: {error}") from None
    engine = _load(checkpoints / f"{wanted['model']}.safetensors", device, str(wanted["precision"]))
    if engine.info.hash != wanted["model_hash"]:
        raise OfflineError(
            f"{image} was made by another {wanted['model']} than the one in {checkpoints}: sha256 "
            f"{str(wanted['model_hash'])[:12]}…, not {engine.info.hash[:12]}…."
        )
    class_id, seed, index = (int(str(wanted[name])) for name in ("class_id", "seed", "index"))
    made = engine.sample([Recipe(class_id, seed, index, float(str(wanted["truncation"])))])[0]
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
    """A line a checkpoint in `folder`: what it makes, or why it does not load."""
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


def _images(engine: Engine, spec: JobSpec) -> Iterator[NDArray[np.uint8]]:
    """Every image of a job [R, R, 3], a forward at a time."""
    for first in range(0, spec.count, engine.rows):
        indices = range(first, min(first + engine.rows, spec.count))
        yield from engine.sample([recipe(spec, k) for k in indices])


def _load(path: Path, device: str, precision: str = "auto") -> Engine:
    try:
        return Engine.load(path, choose_device(device), precision)
    except (ModelError, EngineError) as error:
        raise OfflineError(str(error)) from None


def _spec(engine: Engine, asked: str, count: int, seed: int, truncation: float) -> JobSpec:
    names = engine.info.classes
    class_id = class_number(asked, names)
    if class_id is None:
        near = nearest_name(asked, names)
        hint = f"Did you mean {near!r}?" if near else f"It has 0 to {len(names) - 1}."
        raise OfflineError(f"{engine.info.name} has no class {asked!r}. {hint}")
    if not 0 < truncation <= 1:
        raise OfflineError(f"truncation is {truncation}; it must be above 0 and at most 1.")
    return JobSpec(
        model=engine.info.name,
        model_hash=engine.info.hash,
        precision=engine.info.precision,
        class_id=class_id,
        class_name=names[class_id],
        count=count,
        seed=seed,
        truncation=truncation,
        priority=5,
    )
