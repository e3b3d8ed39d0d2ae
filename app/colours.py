"""Attention as colours: colormaps, and a row of a map as a smooth picture."""

from typing import Literal

import numpy as np
from PIL import Image

from app.pictures import Pixels
from app.points import Floats

Rgb = tuple[int, int, int]
Colormap = Literal["inferno", "magma", "viridis", "turbo", "grey"]

PAPER, DARK = (255, 255, 255), (15, 15, 15)
INK, FAINT, RULE, AMBER = (28, 30, 34), (105, 110, 118), (222, 224, 228), (176, 80, 0)

# Okabe and Ito's colours, which the colour-blind can tell apart; ordered so that the first five differ most
POINT_COLOURS: tuple[Rgb, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (60, 60, 60),
)
# Anchors spread evenly over 0..1, straight lines between them
_ANCHORS: dict[Colormap, str] = {
    "inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    "magma": "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
    "viridis": "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
    "turbo": "30123b 4145ab 4675ed 39a2fc 1bcfd4 24eca6 61fc6c a4fc3b d1e834 f3c63a fe9b2d f36315 d93806 "
    "b11901 7a0402",
    "grey": "000000 ffffff",
}


def colours(name: Colormap) -> Pixels:
    """Colormap as a table [256, 3]."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[name].split()])
    at = np.linspace(0, 1, len(anchors))
    steps = np.linspace(0, 1, 256)
    table = np.stack([np.interp(steps, at, anchors[:, channel]) for channel in range(3)], axis=1)
    levels: Pixels = np.rint(table).astype(np.uint8)
    return levels


def heat(values: Floats, name: Colormap) -> Pixels:
    """[H, W] of 0..1 -> [H, W, 3]."""
    painted: Pixels = colours(name)[np.rint(values * 255).astype(np.uint8)]
    return painted


def upsample(row: Floats, side: int) -> Floats:
    """`row` [h, w] as a smooth [side, side] picture whose peak is 1.

    Pillow aligns pixel centres, so the hottest place of the picture is the centre of the hottest cell.
    """
    smooth: Floats = np.asarray(Image.fromarray(row).resize((side, side), Image.Resampling.BICUBIC))
    smooth = np.maximum(smooth, 0)  # bicubic undershoots beside a steep peak
    scaled: Floats = smooth / max(float(smooth.max()), 1e-12)
    return scaled
