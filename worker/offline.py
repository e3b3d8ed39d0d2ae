"""Images and attention maps straight from a checkpoint, without a service, for the command line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.files import write_whole
from imaging.marks import made_here, marked
from imaging.png import png
from imaging.recipes import Recipe, read_recipe
from imaging.sheets import sheet
from imaging.spec import ImageSpec, Provenance, SpecError
from jobs.classes import class_number, nearest_name
from jobs.job import AttentionMap
from model.errors import ModelError
from worker.engine import Engine, EngineError, NotAnImage, choose_device
from worker.offline_whole import whole_of

NAME_BYTES = (
    200  # of a picture's name; file systems allow 255, and a file that is not whole yet has a longer one
)


class OfflineError(Exception):
    """It cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Verdict:
    """An image made again, compared with the file."""

    same: bool  # to the last level of every pixel
    text: str


def write_samples(
    checkpoint: Path, class_name: str, out: Path, images: range, seed: int, truncation: float, device: str
) -> Iterator[Path]:
    """Write PNGs with their provenance into `out`; yields each path. Raises OfflineError.

    images: which of the seed.
    """
    engine = load(checkpoint, device)
    info = engine.info
    class_id = class_id_of(engine, class_name)
    name = info.classes[class_id]
    paths = [out / _file_name(engine, class_id, f"{seed}-{index}.png") for index in images]
    for path in paths:
        if path.exists() and not made_here(path):
            raise OfflineError(f"{path} is there already and was not made by sagan: choose another --out.")
    for path, (spec, pixels) in zip(paths, _images(engine, class_id, seed, images, truncation), strict=True):
        made = Provenance(info.name, info.hash, info.precision, name, spec)
        write_whole(path, png(pixels, made.to_json()))
        yield path


def write_sheet(
    checkpoint: Path, out: Path, columns: int, rows: int | None, seed: int, truncation: float, device: str
) -> None:
    """Write one PNG of images 0 to columns - 1 of `seed`, one class a row with its name.

    rows: number of classes, spread evenly over all; None: every class. Raises OfflineError.
    """
    engine = load(checkpoint, device)
    names = engine.info.classes
    shown = min(rows or len(names), len(names))
    chosen = [round(row * (len(names) - 1) / max(shown - 1, 1)) for row in range(shown)]
    images = [
        pixels
        for class_id in chosen
        for _, pixels in _images(engine, class_id, seed, range(columns), truncation)
    ]
    write_whole(out, marked(sheet(images, columns, [names[class_id] for class_id in chosen])))


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
    engine = load(checkpoint, device)
    spec = ImageSpec(class_id_of(engine, class_name), seed, index, truncation)
    if not engine.info.attention:
        raise OfflineError(f"{checkpoint} has no attention layer.")
    try:
        return engine.attention(spec, layer or engine.info.attention[0].name)
    except EngineError as error:
        raise OfflineError(str(error)) from None


def compare(image: Path, checkpoints: Path, device: str) -> Verdict:
    """Make what a file shows again from its recipe, enlarged if it is, and compare. Raises OfflineError.

    image: of one image, or of a whole job. checkpoints: the folder that has its model, under whatever name,
    or the model's own file.
    """
    try:
        recipe = read_recipe(image.read_bytes())
        if recipe.drawn() is not None:
            return _compared_whole(image, recipe, checkpoints, device)
        enlargement = recipe.enlargement()
        wanted = Provenance.from_json(recipe.text)
    except (OSError, SpecError) as error:
        raise OfflineError(f"{image}: {error}") from None
    engine = _engine_for([wanted], checkpoints, image, device)
    made = _sampled(engine, [wanted.image])[0]
    if enlargement is not None:
        made = enlargement.of(made)
    try:
        with Image.open(image) as opened:
            kept = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise OfflineError(f"{image}: its pixels cannot be read ({error}).") from None
    if kept.shape != made.shape:
        return Verdict(
            False, f"{image} is {kept.shape[1]}×{kept.shape[0]} px, its recipe makes {made.shape[0]}."
        )
    apart = Apart()
    apart.add(kept, made)
    return apart.verdict(str(image), recipe)


def _compared_whole(image: Path, recipe: Recipe, checkpoints: Path, device: str) -> Verdict:
    """As compare, of a grid, strip or film. Raises SpecError too."""
    whole = whole_of(recipe)
    if recipe.kind == "MP4":
        raise OfflineError(
            f"{image}: an MP4 is lossy, and its frames are not compared. It was made from {recipe.text}"
        )
    wanted = [whole.provenance(k) for k in range(whole.spec.count)]
    engine = _engine_for(wanted, checkpoints, image, device)
    made = list(made_of(engine, [one.image for one in wanted]))
    apart = Apart()
    try:
        for index, kept in whole.shown(image, engine.info.resolution):
            enlargement = whole.enlargement
            apart.add(kept, made[index] if enlargement is None else enlargement.of(made[index]))
    except (ValueError, SyntaxError, EOFError) as error:
        raise OfflineError(f"{image}: its pixels cannot be read ({error}).") from None
    return apart.verdict(f"{image}, a {whole.how} of {whole.spec.count} images", recipe)


def _engine_for(wanted: Sequence[Provenance], checkpoints: Path, image: Path, device: str) -> Engine:
    """The engine that made these images, all of one job. Raises OfflineError."""
    engine = load(_by_hash(wanted[0], checkpoints, image), device, wanted[0].precision)
    classes = len(engine.info.classes)
    last = max(class_id for one in wanted for class_id, _ in one.image.classes)
    if last >= classes:
        raise OfflineError(f"{image} says class {last}, and {engine.info.name} has 0 to {classes - 1}.")
    return engine


@dataclass
class Apart:
    """How far pixels are from those that were made again."""

    values: int = 0
    differ: int = 0
    levels: int = 0  # of all values together
    most: int = 0

    def add(self, kept: NDArray[np.uint8], made: NDArray[np.uint8]) -> None:
        """Of the same shape."""
        apart = np.abs(kept.astype(int) - made)
        self.values += apart.size
        self.differ += int((apart > 0).sum())
        self.levels += int(apart.sum())
        self.most = max(self.most, int(apart.max()))

    def verdict(self, what: str, recipe: Recipe) -> Verdict:
        if not recipe.lossless:
            mean = self.levels / self.values
            return Verdict(
                False,
                f"{what}: its values are {mean:.2f} of 255 levels apart on average, {self.most} at most. "
                f"A lossy {recipe.kind} cannot be exact: ask for PNG, or WebP without quality.",
            )
        if not self.differ:
            return Verdict(True, f"{what}: the same, to the last level of every pixel.")
        return Verdict(
            False, f"{what}: {self.differ / self.values:.2%} of its values differ, by {self.most} at most."
        )


def describe(folder: Path) -> Iterator[str]:
    """One line a checkpoint in `folder`: its model, or why it does not load."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            info = load(path, "cpu", "float32").info
        except OfflineError as error:
            yield str(error)
        else:
            sites = ", ".join(f"{site.name} (γ {site.gamma:.3f})" for site in info.attention) or "none"
            yield (
                f"{info.name}: {info.resolution}×{info.resolution}, {len(info.classes)} classes, "
                f"attention {sites}, sha256 {info.hash[:12]}…"
            )


def _images(
    engine: Engine, class_id: int, seed: int, images: range, truncation: float
) -> Iterator[tuple[ImageSpec, NDArray[np.uint8]]]:
    """Images of a seed, [R, R, 3]."""
    specs = [ImageSpec(class_id, seed, k, truncation) for k in images]
    return zip(specs, made_of(engine, specs), strict=True)


def made_of(engine: Engine, specs: Sequence[ImageSpec]) -> Iterator[NDArray[np.uint8]]:
    """The image of each spec, [R, R, 3]; one forward at a time. Raises OfflineError."""
    for first in range(0, len(specs), engine.max_batch):
        yield from _sampled(engine, specs[first : first + engine.max_batch])


def _sampled(engine: Engine, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
    try:
        return engine.sample(specs)
    except NotAnImage as error:
        raise OfflineError(f"{engine.info.name}: {error}") from None


def _file_name(engine: Engine, class_id: int, end: str) -> str:
    """A name that every file system takes, whatever the class is called."""
    name = engine.info.classes[class_id]
    spoken = "".join(letter if _fits_name(letter) else "_" for letter in name)
    whole = f"{engine.info.name}-{spoken}-{end}"
    if len(os.fsencode(whole)) <= NAME_BYTES:
        return whole
    cut = f"{engine.info.name}-{spoken}".encode(errors="replace")[: NAME_BYTES - 30 - len(end)]
    return f"{cut.decode(errors='ignore')}…-{class_id}-{end}"  # two names may begin alike


def _fits_name(letter: str) -> bool:
    """Whether a letter may be in a file's name, here and where it is copied to."""
    try:
        os.fsencode(letter)
    except UnicodeEncodeError:  # the locale's encoding does not have it
        return False
    return letter.isprintable() and letter not in "/\\ "


def _by_hash(wanted: Provenance, checkpoints: Path, image: Path) -> Path:
    """The checkpoint that made `image`: of its name, or of any other. Raises OfflineError."""
    if checkpoints.is_file():
        found = [checkpoints]
    elif checkpoints.is_dir():
        # that of its name first: so a folder of many is seldom read whole
        found = sorted(checkpoints.glob("*.safetensors"), key=lambda path: (path.stem != wanted.model, path))
    else:
        raise OfflineError(f"{checkpoints}: no such file or folder of checkpoints.")
    for path in found:
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == wanted.model_hash:
                    return path
        except OSError:
            continue  # it may be gone by now, or not be ours to read
    namesake = any(path.stem == wanted.model for path in found)
    raise OfflineError(
        f"{image} was made by {'another' if namesake else 'a model'} {wanted.model}: none of the "
        f"{len(found)} checkpoints in {checkpoints} has its sha256 {wanted.model_hash[:12]}…."
    )


def load(path: Path, device: str, precision: str = "auto") -> Engine:
    """Raises OfflineError."""
    try:
        return Engine.load(path, choose_device(device), precision)
    except (ModelError, EngineError) as error:
        raise OfflineError(str(error)) from None


def class_id_of(engine: Engine, asked: str) -> int:
    """Raises OfflineError."""
    names = engine.info.classes
    class_id = class_number(asked, names)
    if class_id is None:
        near = nearest_name(asked, names)
        hint = f"Did you mean {near!r}?" if near else f"It has 0 to {len(names) - 1}."
        raise OfflineError(f"{engine.info.name} has no class {asked!r}. {hint}")
    return class_id
