"""A picture of a whole job, a grid, strip or film, made again from its recipe and compared image by image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.recipes import LARGEST, Enlargement, Recipe
from imaging.spec import MOST_CLASSES, MOST_ENDS, Provenance, SpecError
from jobs.job import Draw, JobSpec
from worker.pending import class_name, image_spec

Pixels = NDArray[np.uint8]  # [H, W, 3]

MOST: Final = 256  # images of a job
GRID_GAP: Final = 2  # pixels between the images of a grid


@dataclass(frozen=True)
class Whole:
    """How the images of a job stand in a picture."""

    spec: JobSpec
    how: str  # "grid", "strip" or "film"
    enlargement: Enlargement | None
    columns: int | None  # of a strip
    bounce: bool  # of a film

    def provenance(self, image: int) -> Provenance:
        """Of an image of the job. Raises SpecError for what no image has."""
        spec = self.spec
        try:
            name, made = class_name(spec, image), image_spec(spec, image)
        except (TypeError, ValueError) as error:  # no weight, or another number of weights than of ends
            raise _of_no_job(error) from None
        told = Provenance(spec.model, spec.model_hash, spec.precision, name, made).to_json()
        return Provenance.from_json(told)

    def shown(self, path: Path, resolution: int) -> Iterator[tuple[int, Pixels]]:
        """Each image of the job that a file shows, and its pixels there. Raises SpecError."""
        side = self.enlargement.size if self.enlargement is not None else resolution
        with Image.open(path) as picture:
            if self.how == "film":
                yield from self._frames(picture, side)
            else:
                yield from self._cells(picture, side)

    def _frames(self, film: Image.Image, side: int) -> Iterator[tuple[int, Pixels]]:
        order = [*range(self.spec.count), *(range(self.spec.count - 2, 0, -1) if self.bounce else ())]
        frames = getattr(film, "n_frames", 1)
        if film.size != (side, side) or frames != len(order):
            raise SpecError(
                f"It has {frames} frames of {film.width}×{film.height} px, its recipe {len(order)} of {side}."
            )
        for place, image in enumerate(order):
            film.seek(place)
            yield image, np.asarray(film.convert("RGB"))

    def _cells(self, picture: Image.Image, side: int) -> Iterator[tuple[int, Pixels]]:
        count = self.spec.count
        gap = GRID_GAP if self.how == "grid" else 0
        columns = self.columns or math.ceil(math.sqrt(count))
        rows = math.ceil(count / columns)
        size = columns * (side + gap) - gap, rows * (side + gap) - gap
        if picture.size != size:
            raise SpecError(
                f"It has {picture.width}×{picture.height} px, and its recipe {size[0]}×{size[1]}."
            )
        whole = np.asarray(picture.convert("RGB"))
        for image in range(count):
            top, left = image // columns * (side + gap), image % columns * (side + gap)
            yield image, whole[top : top + side, left : left + side]


def whole_of(recipe: Recipe) -> Whole:
    """What a recipe says of a picture of a whole job. Raises SpecError."""
    values = recipe.values()
    try:
        return _whole(values)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _of_no_job(error) from None


def _of_no_job(error: Exception) -> SpecError:
    return SpecError(f"The recipe in this file is of no job that this version makes ({error!r}).")


def _whole(values: dict[str, Any]) -> Whole:
    drawn = values["drawn"]
    how, size, columns = drawn["as"], drawn.get("size"), drawn.get("columns")
    if how not in ("grid", "strip", "film"):
        raise ValueError(f"drawn as {str(how)[:40]!r}")
    if "attention" in drawn:
        raise SpecError("Attention is painted over its images: ask for it without, or for its archive.")
    if size is not None and not 1 <= size <= LARGEST:
        raise ValueError("size")
    if columns is not None and not 1 <= columns <= MOST:
        raise ValueError("columns")
    enlargement = None if size is None else Enlargement(int(size), _resample(drawn))
    return Whole(_spec(values), how, enlargement, columns, drawn.get("bounce") is True)


def _resample(drawn: dict[str, Any]) -> Any:
    if (resample := drawn["resample"]) not in ("nearest", "lanczos"):
        raise ValueError("resample")
    return resample


def _spec(values: dict[str, Any]) -> JobSpec:
    count, morph, mixture = values["count"], values.get("morph"), values.get("class_weights")
    if not 1 <= count <= MOST:
        raise ValueError("count")
    ends: tuple[Draw, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()
    if mixture is not None:
        ends = (Draw(_classes(mixture), values["class_name"], values["seed"], values["start"]),)
    if morph is not None:
        ends = tuple(
            Draw(_classes(end["class_weights"]), end["class_name"], end["seed"], end["index"])
            for end in morph["ends"]
        )
        weights = tuple(tuple(map(float, row)) for row in morph.get("weights") or ())
        if not 2 <= len(ends) <= MOST_ENDS or (weights and len(weights) != count):
            raise ValueError("morph")
    return JobSpec(
        model=values["model"],
        model_hash=values["model_hash"],
        precision=values["precision"],
        class_id=values["class_id"],
        class_name=values["class_name"],
        count=count,
        seed=values["seed"],
        truncation=values["truncation"],
        start=values.get("start", 0),
        ends=ends,
        loop=bool(morph and morph["loop"]),
        weights=weights,
    )


def _classes(weights: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if not 1 <= len(weights) <= MOST_CLASSES:
        raise ValueError("class_weights")
    found = tuple((int(number), float(weight)) for number, weight in weights.items())
    if not all(weight > 0 for _, weight in found):
        raise ValueError("class_weights")
    return found
