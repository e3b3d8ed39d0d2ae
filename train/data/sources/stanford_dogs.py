"""Stanford Dogs as its authors ship it: images and XML annotations, as folders or as two tar files.

Each annotated box is one picture: a square around it (see train.data.pictures).
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from PIL import Image

from train.data.sources.base import (
    MAX_FILE_BYTES,
    Box,
    Entry,
    Source,
    class_order,
    is_picture,
    open_picture,
    set_apart,
    spoken,
)
from train.errors import DataError, NoImages

LICENCE = "Stanford Dogs (Khosla et al. 2011): the images are ImageNet's, for non-commercial research only."
_CROP = "square around each annotated box, inside the picture"
_MAX_XML_BYTES = 2**20


@contextmanager
def open_stanford_dogs(path: Path) -> Iterator[Source]:
    """`Images/n02085620-Chihuahua/*.jpg` and `Annotation/n02085620-Chihuahua/n02085620_10621`, or tars."""
    with ExitStack() as stack:
        images, read_image = _tree(path, "Images", "images.tar", stack)
        annotations, read_xml = _tree(path, "Annotation", "annotation.tar", stack)
        names = [name for name in images if is_picture(name)]
        if not names:
            raise NoImages(f"There is no image in Stanford Dogs at {path.name}.")
        folders = {PurePosixPath(name).parts[0] for name in names}
        breeds = _breeds(folders)
        class_names = class_order(breeds.values())
        number = {folder: class_names.index(breed) for folder, breed in breeds.items()}
        known = set(annotations)

        entries: list[Entry] = []
        without: list[str] = []
        for name in sorted(names, key=lambda name: (number[PurePosixPath(name).parts[0]], name)):
            annotation = PurePosixPath(name).with_suffix("").as_posix()
            boxes = _boxes(read_xml(annotation)) if annotation in known else []
            if not boxes:
                without.append(name)
            label = number[PurePosixPath(name).parts[0]]
            entries += [Entry(f"{name}#{index}", label, box) for index, box in enumerate(boxes)]

        def read(entry: Entry) -> Image.Image:
            name = entry.name.rpartition("#")[0]
            return open_picture(read_image(name), name)

        notes = []
        if without:
            shown = ", ".join(without[:5]) + (", …" if len(without) > 5 else "")
            notes.append(f"{len(without):,} images without a readable box were left out ({shown})")
        names_shown = spoken(class_names)  # the numbers stay those of the folders' own names in order
        yield Source(path.name, "stanford-dogs", names_shown, entries, read, LICENCE, _CROP, tuple(notes))


def _breeds(folders: set[str]) -> dict[str, str]:
    """n02085620-Chihuahua -> Chihuahua; the whole folder name where two breeds would have the same."""
    breeds = {folder: folder.partition("-")[2] or folder for folder in folders}
    count = Counter(breed.casefold() for breed in breeds.values())
    return {folder: breed if count[breed.casefold()] == 1 else folder for folder, breed in breeds.items()}


def _tree(path: Path, folder: str, tar: str, stack: ExitStack) -> tuple[list[str], Callable[[str], bytes]]:
    """Names `breed/file` in a folder, or in a tar of it, and a function that reads one."""
    root = path if path.is_dir() else path.parent
    if path.is_dir() and (root / folder).is_dir():
        base = root / folder
        names = [
            (Path(at).relative_to(base) / file).as_posix() for at, _, files in os.walk(base) for file in files
        ]

        def read(name: str) -> bytes:
            with (base / name).open("rb") as file:
                return file.read(MAX_FILE_BYTES + 1)

        return _visible(names), read

    archive = root / tar
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(archive, "r:") as opened:
            for member in opened:
                parts = PurePosixPath(member.name).parts
                if member.isreg() and not member.issparse() and folder in parts:
                    inner = "/".join(parts[parts.index(folder) + 1 :])
                    places[inner] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"Stanford Dogs needs {tar} as its authors ship it beside the images ({error})."
        ) from error
    handle = os.open(archive, os.O_RDONLY)
    stack.callback(os.close, handle)

    def read_at(name: str) -> bytes:
        offset, size = places[name]
        # pread: several threads read one file at once
        return os.pread(handle, min(size, MAX_FILE_BYTES + 1), offset)

    return _visible(list(places)), read_at


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if len(parts := PurePosixPath(name).parts) == 2 and not set_apart(parts)]


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type: without one no entity can be declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a document type is not allowed in an annotation")


def _boxes(content: bytes) -> list[Box]:
    """Every valid box of an annotation; an unreadable one has none."""
    if len(content) > _MAX_XML_BYTES:
        return []
    try:
        tree = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
        width, height = (int(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        boxes = []
        for item in tree.iter("object"):
            left, top, right, bottom = (
                round(float(item.findtext(f"bndbox/{side}", ""))) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append(Box(left, top, right, bottom, width, height))
    except (ElementTree.ParseError, ValueError, OverflowError):
        return []
    return [box for box in boxes if box.left < box.right and box.top < box.bottom]
