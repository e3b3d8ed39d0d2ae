"""A picture's colours to sRGB, by the profile or the gamma that is in it."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

BROKEN = "the colour profile is broken, the colours were read as sRGB"
UNFIT = "the colour profile is for other pixels than these, the colours were read as sRGB"
NO_PROFILE = "CMYK without a colour profile, converted by rule of thumb"
UNTOLD = "the camera says Adobe RGB and gives no colour profile, the colours were read as sRGB"
_SAME = 2  # levels; a profile that moves no colour further is sRGB's own, and pixels stay as they are
_USUAL_GAMMA = 1 / 2.2  # a PNG's; within a twentieth of it pixels stay as they are, as in libpng
_INTEROPERABILITY, _ADOBE_RGB = 0xA005, "R03"  # EXIF
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


def to_srgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The loaded image as RGB in sRGB, transparency on white; and a remark where its colours are in doubt.

    Of 8 bits a channel or fewer.
    """
    profile = image.info.get("icc_profile")
    if image.mode in ("La", "RGBa"):  # multiplied by their alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = _without_alpha(image)
    remark = None
    if profile and plain.mode != "LAB":  # which is a space of its own, and Pillow knows it
        try:
            transform = _transform(bytes(profile), plain.mode)
            plain = plain if transform is None else _applied(plain, transform)
        except _Unfit:
            remark = UNFIT
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            remark = BROKEN
    elif plain.mode == "CMYK":
        remark = NO_PROFILE
    elif _says_adobe_rgb(image):
        remark = UNTOLD
    plain = plain.convert("RGB")
    gamma = image.info.get("gamma")
    if gamma and not profile and "srgb" not in image.info and not 0.95 < gamma / _USUAL_GAMMA < 1.05:
        plain = plain.point(
            [round(255 * (level / 255) ** (_USUAL_GAMMA / gamma)) for level in range(256)] * 3
        )
    if alpha is not None:
        plain = Image.composite(plain, Image.new("RGB", plain.size, "white"), alpha)
    return plain, remark


class _Unfit(Exception):
    """A profile of other channels than the picture's."""


def _says_adobe_rgb(image: Image.Image) -> bool:
    with suppress(Exception):  # a damaged EXIF block can raise anything, and says nothing
        return image.getexif().get_ifd(_INTEROPERABILITY).get(1) == _ADOBE_RGB
    return False


def _without_alpha(image: Image.Image) -> Image.Image:
    """The image in one of the modes that a profile can be of."""
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    return image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    return ImageCms.applyTransform(image, transform) or image


@lru_cache(64)  # photos of one camera have one profile
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """How pixels of this mode become sRGB; None: they are. Raises PyCMSError, OSError or _Unfit."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if opened.profile.xcolor_space != _SPACES[mode]:
        raise _Unfit
    transform = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode not in ("RGB", "L"):
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = (
        np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3) if mode == "RGB" else levels[None]
    )
    before = Image.fromarray(grid)
    moved = np.asarray(_applied(before, transform), int) - np.asarray(before.convert("RGB"), int)
    return None if np.abs(moved).max() <= _SAME else transform
