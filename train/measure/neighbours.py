"""Which real images generated ones come closest to, in a pretrained network's features: copies would show.

The measure is how close real images come to each other. An image that is merely plain lies nearer to the
others than a real one as well, so that a ratio somewhat below 1 is no copying; half is.
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
from train.measure.features import Seen, look
from train.measure.metrics import Sampler, check_classes, generate, some, stratified

SAMPLES = 1000  # generated images, unless told; of real ones the same number
_TILE = 96  # px, about: smaller images are drawn at a multiple of their size
_CAPTION = 14  # px below a tile
_GAP = 4
_APART = 12  # px more between a generated image and the real ones


@dataclass(frozen=True)
class Neighbours:
    """What was found, and drawn."""

    picture: bytes  # PNG
    samples: int
    generated: float  # median distance of a generated image to the nearest real one
    real: float  # the same of a real one to the nearest other

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
    samples: int = SAMPLES,
    columns: int = 8,
    rows: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Neighbours:
    """A row a generated image, the real ones of the whole pack that are nearest to it beside it.

    The rows are evenly spread over `samples` images of all classes, not picked; the last is that of the
    image which comes closest of all. Raises FeaturesError where classes, sizes or numbers do not fit.
    """
    pack = eye.pack
    check_classes("reference", pack.class_names, "generator", sampler.class_names)
    if len(pack) < 2:
        raise FeaturesError("A pack of one image has no other to compare it with.")
    samples = min(samples, len(pack))
    asked = stratified(pack.labels.numpy(), samples)
    made: list[Tensor] = []
    seen: list[Seen] = []

    def keep(images: Tensor, labels: Labels) -> None:
        made.append(images)
        seen.append(look(eye.extractor, images, labels, eye.device))

    generate(sampler, asked, seed, keep, progress)
    everything = np.arange(len(pack))
    known = eye.see(everything).features
    distances, found = nearest(Seen.joined(seen).features, known, min(columns, len(pack)), eye.device)
    compared = some(everything, samples)
    others, _ = nearest(known[compared], known, 1, eye.device, compared)
    shown = np.unique(np.linspace(0, samples - 1, min(rows, samples)).round().astype(np.int64))
    closest = int(distances[:, 0].argmin())
    images = torch.cat(made)
    sheet = []
    for number in (*shown, closest):
        title = pack.class_names[asked[number]]
        line = [_Tile(_pixels(images[number]), title)]
        for index, distance in zip(found[number], distances[number], strict=True):
            real = pack.images[torch.tensor([index])][0]
            line.append(_Tile(_pixels(real), f"{distance:.1f}  {pack.class_names[pack.labels[index]]}"))
        sheet.append(line)
    medians = float(np.median(distances[:, 0])), float(np.median(others))
    last = f"The last row: the closest of {samples:,}."
    result = Neighbours(b"", samples, *medians)
    return replace(result, picture=_drawn(sheet, [last, result.line()]))


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
    """As much of it as there is room for."""
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
