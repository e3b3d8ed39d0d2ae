"""Folders named by class with images inside, on disk or in a zip file (nothing is extracted)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from train.data.sources.base import Entry, Reading, Source, open_picture
from train.data.sources.layouts import arrange
from train.data.sources.listing import Listing, list_folder, list_zip
from train.errors import DataError


@contextmanager
def open_folder(path: Path, reading: Reading) -> Iterator[Source]:
    """`path/class_name/**/image.jpg`, as torchvision's ImageFolder reads it, or pictures with a table."""
    yield _source(path, list_folder(path), reading)


@contextmanager
def open_zip(path: Path, reading: Reading, under: str = "") -> Iterator[Source]:
    """A zip of such folders, or one folder `under` in it.

    Members are read one by one into memory, so no path in it can lead anywhere.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a whole zip file ({error}): copy or download it again."
        ) from error
    with archive:
        yield _source(path / under, list_zip(path, archive, under), reading)


def _source(path: Path, found: Listing, reading: Reading) -> Source:
    def read(entry: Entry) -> Image.Image:
        return open_picture(found.content(entry.name), entry.name)

    return arrange(path, found, read, reading)
