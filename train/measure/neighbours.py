"""The real images nearest to generated ones, in a pretrained network's features: copies would show.

The yardstick is the distance of real images to each other. A merely plain image also lies nearer to others
than a real one does: a ratio somewhat below 1 is no copying, half is.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.progress import Progress
from torch import Tensor

from train.errors import FeaturesError
from train.measure.distances import Labels, nearest
from train.measure.eye import PretrainedEye
from train.measure.features import FeatureSet, look
from train.measure.metrics import Sampler, check_classes, generate, some, stratified

_TILE = 96  # px, about: smaller images are drawn at a multiple of their size
_CAPTION = 14  # px below a tile
_GAP = 4
_APART = 12  # px more between a generated image and the real ones


@dataclass(frozen=True)
class Sheet:
    """How many images are measured and shown."""

    samples: int = 1000  # generated images measured, beside as many real ones
    columns: int = 8  # real images beside a generated one
    rows: int = 10  # generated images shown


@dataclass(frozen=True)
class Neighbours:
    """The distances to the nearest real images, and the sheet that shows them."""

    picture: bytes  # PNG
    samples: int
    generated: float  # median distance of a generated image to the nearest real one
    real: float  # median distance of a real image to the nearest other

    @property
    def ratio(self) -> float | None:
        """generated / real; None: most real images have a twin."""
        return self.generated / self.real if self.real > 0 else None

    def line(self) -> str:
        share = "no ratio" if self.ratio is None else f"ratio {self.ratio:.3f}"
        return (
            f"Median distance to the nearest real image: {self.generated:.3f} from {self.samples:,} "
            f"generated images, {self.real:.3f} from as many real ones to another; {share}."
        )


def find_neighbours(
    sampler: Sampler,
    eye: PretrainedEye,
    sheet: Sheet,
    seed: int = 0,
    progress: Progress | None = None,
) -> Neighbours:
    """A row for each generated image shown, with the nearest real images of the whole pack beside it.

    The rows are evenly spread over `samples` images of all classes, not picked; the last row is the image
    that comes closest of all. Raises FeaturesError where classes, sizes or numbers do not fit.
    """
    pack = eye.pack
    check_classes("reference", pack.class_names, "generator", sampler.class_names)
    if len(pack) < 2:
        raise FeaturesError("A pack of one image has no other to compare it with.")
    samples = min(sheet.samples, len(pack))
    asked = stratified(pack.labels.numpy(), samples)
    made: list[Tensor] = []
    seen: list[FeatureSet] = []

    def keep(images: Tensor, labels: Labels) -> None:
        made.append(images)
        seen.append(look(eye.extractor, images, labels, eye.device))

    generate(sampler, asked, seed, keep, progress)
    everything = np.arange(len(pack))
    known = eye.see(everything).features
    distances, found = nearest(
        FeatureSet.joined(seen).features, known, min(sheet.columns, len(pack)), eye.device
    )
    compared = some(everything, samples)
    others, _ = nearest(known[compared], known, 1, eye.device, compared)
    shown = np.unique(np.linspace(0, samples - 1, min(sheet.rows, samples)).round().astype(np.int64))
    closest = int(distances[:, 0].argmin())
    images = torch.cat(made)
    drawn = []
    for number in (*shown, closest):
        title = pack.class_names[asked[number]]
        line = [_Tile(_pixels(images[number]), title)]
        for index, distance in zip(found[number], distances[number], strict=True):
            real = pack.images[torch.tensor([index])][0]
            line.append(_Tile(_pixels(real), f"{distance:.1f}  {pack.class_names[pack.labels[index]]}"))
        drawn.append(line)
    medians = float(np.median(distances[:, 0])), float(np.median(others))
    last = f"The last row: the closest of {samples:,}."
    result = Neighbours(b"", samples, *medians)
    return replace(result, picture=_drawn(drawn, [last, result.line()]))


@dataclass(frozen=True)
class _Tile:
    pixels: npt.NDArray[np.uint8]  # [R, R, 3]
    caption: str


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return pixels


def _drawn(sheet: list[list[_Tile]], lines: list[str]) -> bytes:
    own = len(sheet[0][0].pixels)
    side = own * max(1, round(_TILE / own))
    height = side + _CAPTION + _GAP
    width = len(sheet[0]) * (side + _GAP) - _GAP + _APART
    font = ImageFont.load_default(11)
    wrapped = [part for line in lines for part in _wrapped(line, font, width - _GAP)]
    picture = Image.new("RGB", (width, len(sheet) * height + len(wrapped) * _CAPTION + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    for row, tiles in enumerate(sheet):
        for column, tile in enumerate(tiles):
            at = (column * (side + _GAP) + (_APART if column else 0), row * height)
            image = Image.fromarray(np.ascontiguousarray(tile.pixels))
            picture.paste(image.resize((side, side), Image.Resampling.NEAREST), at)
            draw.text((at[0], at[1] + side), _fitting(tile.caption, font, side), "black", font)
    for number, line in enumerate(wrapped):
        draw.text((0, len(sheet) * height + number * _CAPTION), line, "black", font)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _fitting(text: str, font: _Font, width: int) -> str:
    """The text, cut to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
