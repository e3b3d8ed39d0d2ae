"""Folders named by class with images inside, on disk or in a zip file (nothing is extracted)."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image

from train.data.sources.base import (
    MAX_FILE_BYTES,
    SUFFIXES,
    Entry,
    Source,
    Unreadable,
    class_order,
    is_hidden,
    open_picture,
    spoken,
)
from train.errors import DataError, NoImages

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


@contextmanager
def open_folder(path: Path) -> Iterator[Source]:
    """`path/class_name/**/image.jpg`, as torchvision's ImageFolder reads it."""

    def read(entry: Entry) -> Image.Image:
        file = path / entry.name
        if not file.is_file():
            raise Unreadable("not a plain file")  # to read from a pipe would wait for ever
        with file.open("rb") as opened:
            return open_picture(opened.read(MAX_FILE_BYTES + 1))

    # a class folder may be a link: data sets are often made so; deeper links are not followed, as they may go
    # round in a circle
    names: list[str] = []
    try:
        tops = sorted(os.scandir(path), key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    for top in tops:
        if top.is_dir() and not is_hidden([top.name]):
            for folder, _, files in os.walk(top.path):
                inside = Path(folder).relative_to(path)
                names += [(inside / file).as_posix() for file in files]
        else:
            names.append(top.name)
    yield _arrange(path, "folder", names, read)


@contextmanager
def open_zip(path: Path) -> Iterator[Source]:
    """A zip of such folders. Members are read one by one into memory, so no path in it can lead anywhere."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a whole zip file ({error}): copy or download it again."
        ) from error
    with archive:
        members = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.is_dir()}

        def read(entry: Entry) -> Image.Image:
            info = members[entry.name]
            if info.file_size > MAX_FILE_BYTES:
                raise Unreadable(f"larger than {MAX_FILE_BYTES >> 20} MiB")
            try:
                content = archive.read(info)
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
                raise Unreadable(str(error)) from error  # a wrong checksum, a password, an unknown method
            return open_picture(content)

        yield _arrange(path, "zip", list(members), read)


def _arrange(path: Path, kind: str, names: list[str], read: Callable[[Entry], Image.Image]) -> Source:
    """The images of each class. A folder that wraps all classes is no class itself."""
    visible = [parts for name in names if not is_hidden(parts := PurePosixPath(name).parts)]
    images = [parts for parts in visible if PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES]
    if not images:
        raise NoImages(
            f"There is no image in {path}: it needs images, or a folder for each class with the images in it."
        )
    depth = 0  # of the class folder
    while len({parts[depth] for parts in images if len(parts) > depth}) == 1 and all(
        len(parts) > depth + 2 for parts in images
    ):
        depth += 1
    inside = [parts for parts in images if len(parts) > depth + 1]
    if not inside:
        return _one_class(path, kind, images, len(visible) - len(images), read)
    class_names = class_order({parts[depth] for parts in inside})
    if {name.lower() for name in class_names} <= _SPLITS and len(class_names) > 1:
        raise DataError(
            f"{path.name} holds splits ({', '.join(class_names)}), not classes: "
            f"give one of its folders, such as {path.name}/{class_names[0]}."
        )
    number = {name: label for label, name in enumerate(class_names)}
    entries = sorted(Entry("/".join(parts), number[parts[depth]]) for parts in inside)
    notes = _others(len(visible) - len(images))
    if loose := len(images) - len(inside):
        notes.append(f"{loose:,} images outside any class folder were left out")
    return Source(path.name, kind, spoken(class_names), entries, read, notes=tuple(notes))


def _one_class(
    path: Path, kind: str, images: list[tuple[str, ...]], others: int, read: Callable[[Entry], Image.Image]
) -> Source:
    """Pictures side by side: one class, named after their folder or archive."""
    at = path.resolve()
    class_names = class_order([at.name if kind == "folder" else at.stem])
    entries = sorted(Entry("/".join(parts), 0) for parts in images)
    return Source(path.name, kind, spoken(class_names), entries, read, notes=tuple(_others(others)))


def _others(count: int) -> list[str]:
    if count == 1:
        return ["1 file that is not an image was left out"]
    return [f"{count:,} files that are not images were left out"] if count else []
