"""Which files are pictures, and how Pillow opens them: by what is in them, not by what they are called."""

from __future__ import annotations

import importlib
import io
from contextlib import suppress
from functools import cache
from pathlib import PurePosixPath

from PIL import Image, UnidentifiedImageError

MAX_FILE_BYTES = 256 * 2**20  # one image file, uncompressed; larger ones are not read at all
START = 64  # bytes that a file is recognised by
# they start another program (EPS), need another program's reader, or are no pictures at all (MPEG)
_NEVER = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
_USUAL = frozenset({"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"})
_PLAIN = ("GIF", "JPEG", "PNG", "WEBP")  # a file that begins like one of these is one, also as .heic or .txt
_RAW = "a camera's raw file: save it as JPEG or PNG"
_HEIF = "HEIC, for which Pillow needs a package: pip install pillow-heif, or save it as JPEG"
_NOT_READ = {
    f".{ending}": reason
    for endings, reason in (
        ("heic heif hif heics heifs", _HEIF),
        ("arw cr2 cr3 crw dng nef nrw orf pef raf raw rw2 srw", _RAW),
        ("jxl", "JPEG XL, which Pillow does not read: save it as JPEG or PNG"),
        ("ai emf eps pdf ps svg svgz wmf", "a drawing or a document: save it as PNG"),
        ("3gp avi m4v mkv mov mp4 mpeg mpg webm", "a video"),
        ("dcm h5 hdf mat nii npy npz", "an array: save it as PNG"),
        ("7z bz2 gz rar tar tgz xz zip zst", "an archive that is not read: unpack it"),
        (
            "arrow csv json jsonl parquet tsv xls xlsx",
            "a table that is not read: if it says the classes, make a labels.csv of it",
        ),
    )
    for ending in endings.split()
}


class Unreadable(Exception):
    """One picture cannot be used; the message is the reason that the report gives."""


@cache
def _formats() -> tuple[str, ...]:
    """What Pillow opens here without another program, also by an installed pillow-heif."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(form for form in Image.OPEN if form not in _NEVER)


@cache
def _suffixes() -> dict[str, str]:
    known = set(_formats())
    return {suffix: form for suffix, form in Image.registered_extensions().items() if form in known}


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture which Pillow may read."""
    return _suffix(name) in _suffixes()


def why_not(name: str, start: bytes) -> str | None:
    """Why a file is no picture, by its name and first bytes; None: it is one, of an odd name."""
    reason = _NOT_READ.get(_suffix(name))
    if reason is not None and (reason == _RAW or not any(_begins(form, start) for form in _PLAIN)):
        return reason
    if any(form in _USUAL and _begins(form, start) for form in _formats()):
        return None
    return _known_start(start) or "not a picture"


def open_picture(content: bytes, name: str = "") -> Image.Image:
    """Pillow's image of a file's content, not yet decoded. Raises Unreadable or one of Pillow's errors.

    name: the file's; a format whose files begin like any others is tried for its own suffix alone.
    """
    if len(content) > MAX_FILE_BYTES:
        raise Unreadable(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    own = _suffixes().get(_suffix(name))
    try:
        return Image.open(
            io.BytesIO(content),
            formats=[form for form in _formats() if form == own or Image.OPEN[form][1] is not None],
        )
    except UnidentifiedImageError:
        raise Unreadable(_known_start(content) or "not an image of a known format") from None


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _begins(form: str, start: bytes) -> bool:
    accepts = Image.OPEN[form][1]
    with suppress(Exception):  # some of them index into what may be too short
        return accepts is not None and accepts(start) is True
    return False


def _known_start(content: bytes) -> str | None:
    """What a file is that Pillow does not open, where that is well known."""
    start = content[:START]
    if not start:
        return "an empty file"
    if start[4:8] == b"ftyp":
        heif = start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
        return _HEIF if heif else "a video"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return _NOT_READ[".jxl"]
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page: the download failed"
    if text.startswith((b"<svg", b"<?xml", b"%pdf", b"%!ps")):
        return _NOT_READ[".svg"]
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: fetch the file itself by `git lfs pull`"
    return None
