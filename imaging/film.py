"""Pictures of one run as a film: an animated WebP or GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import ExifTags, Image

from imaging.marks import MADE_BY

LONGEST_SIDE: Final = 1000  # px; larger pictures are made smaller
FRAMES: Final = 150  # at most, evenly spread; the first and the last are always among them
LENGTH: Final = 12_000  # ms of the whole, about
SHORTEST: Final = 80  # ms of a frame
LONGEST: Final = 800  # ms of a frame
HOLD: Final = 2_500  # ms of the last frame


def chosen(pictures: Sequence[Path]) -> list[Path]:
    """At most FRAMES of them, the first and the last among them."""
    count = min(FRAMES, len(pictures))
    return [pictures[round(i * (len(pictures) - 1) / max(count - 1, 1))] for i in range(count)]


def film(pictures: Sequence[Path], kind: str) -> bytes:
    """An animation of picture files, all of the size of the last. kind: "WEBP" or "GIF".

    Raises ValueError, naming it, for a file that is no picture.
    """
    frames = [_frame(path) for path in pictures]
    frames = [frame if frame.size == frames[-1].size else frame.resize(frames[-1].size) for frame in frames]
    each = min(max(LENGTH // len(frames), SHORTEST), LONGEST)
    content = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = MADE_BY
    marks = {"exif": exif} if kind == "WEBP" else {"comment": MADE_BY}
    frames[0].save(
        content,
        kind,
        save_all=True,
        append_images=frames[1:],
        duration=[each] * (len(frames) - 1) + [HOLD],
        loop=0,
        quality=80,  # of WebP
        method=4,
        **marks,
    )
    return content.getvalue()


def _frame(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            frame = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}).") from error
    frame.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    return frame
