"""The kind of source at a path."""

from __future__ import annotations

import tarfile
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path

from train.data.sources import cifar10
from train.data.sources.base import AS_IT_IS, Reading, Source
from train.data.sources.cifar10 import open_cifar10
from train.data.sources.folders import open_folder, open_zip
from train.data.sources.formats import START, why_not
from train.data.sources.stanford_dogs import open_stanford_dogs
from train.errors import DataError, UnknownSource

KNOWN = (
    "a folder with a folder of images for each class (or the images of one class, or images beside a "
    "labels.csv or dataset.json), a zip of that, "
    "CIFAR-10 for Python (cifar-10-batches-py or its tar.gz), or Stanford Dogs "
    "(Images and Annotation, or images.tar and annotation.tar)"
)


def open_source(path: Path, reading: Reading = AS_IT_IS) -> AbstractContextManager[Source]:
    """The pictures at a path, for a `with`. Raises UnknownSource where no kind fits."""
    if reading.classes is not None and _has_own_classes(path):
        raise DataError(f"{path} says itself which class each picture is of: leave --classes out.")
    if path.is_dir():
        if (path / cifar10.BATCHES[0]).is_file():
            return open_cifar10(path)
        if (path / cifar10.FOLDER / cifar10.BATCHES[0]).is_file():
            return open_cifar10(path / cifar10.FOLDER)
        if _has_dogs(path):
            return open_stanford_dogs(path)
        return open_folder(path, reading)
    if not path.is_file():
        if (archive := archive_of(path)) is not None and zipfile.is_zipfile(archive):
            return open_zip(archive, reading, path.relative_to(archive).as_posix())
        raise UnknownSource(f"There is nothing at {path}. It should be {KNOWN}.")
    if path.name in (*cifar10.BATCHES, cifar10.TEST_BATCH):
        return open_cifar10(path)
    start = _start(path)
    if zipfile.is_zipfile(path) or start.startswith(b"PK\3\4"):  # the latter alone: cut short, which is told
        return open_zip(path, reading)
    if path.name in ("images.tar", "annotation.tar"):
        return open_stanford_dogs(path)
    if "cifar" in path.name.lower() and tarfile.is_tarfile(path):
        return open_cifar10(path)
    what = why_not(path.name, start) or "one picture alone: give its folder"
    raise UnknownSource(f"{path.name} is nothing that can be packed ({what}). It should be {KNOWN}.")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(START)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _has_own_classes(path: Path) -> bool:
    """Whether there is CIFAR-10 or Stanford Dogs as their authors ship them."""
    if path.is_dir():
        batches = (path / cifar10.BATCHES[0], path / cifar10.FOLDER / cifar10.BATCHES[0])
        return any(batch.is_file() for batch in batches) or _has_dogs(path)
    return path.is_file() and not zipfile.is_zipfile(path)


def archive_of(path: Path) -> Path | None:
    """The file that `path` is, or is a folder in (`photos.zip/train`); None: there is none."""
    return next((at for at in (path, *path.parents) if at.is_file()), None)


def _has_dogs(path: Path) -> bool:
    folders = (path / "Images").is_dir() or (path / "images.tar").is_file()
    return folders and ((path / "Annotation").is_dir() or (path / "annotation.tar").is_file())
