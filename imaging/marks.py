"""Which pictures are our own: a file of another's making is never written over."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image

from imaging.png import KEYWORD, with_text
from imaging.recipes import read_recipe
from imaging.spec import SpecError
from imaging.stills import MADE_BY


def marked(png: bytes) -> bytes:
    """A PNG that says who made it."""
    return with_text(png, "Software", MADE_BY)


def made_here(path: Path) -> bool:
    """Whether the file at `path` is a picture that a command of ours wrote, or an empty file."""
    try:
        if path.stat().st_size == 0:
            return True
        if path.suffix.lower() == ".mp4":
            read_recipe(path.read_bytes())
            return True
        with Image.open(path, formats=["PNG", "WEBP", "GIF"]) as image:
            exif = image.getexif().get(ExifTags.Base.Software)
            said = (image.info.get("Software"), image.info.get("comment"), exif)
            return KEYWORD in image.info or MADE_BY in said or MADE_BY.encode() in said
    except (OSError, SpecError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
