"""Small sources of pictures for tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

from train.data.sources import Reading, open_source


def picture(colour: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def class_folders(root: Path, count: int = 3) -> Path:
    for label, name in enumerate(("cat", "boat", "ant")):
        for index in range(count):
            write(root / name / f"{index}.png", encoded(picture((label * 80, index * 20, 7))))
    return root


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


IMAGE = encoded(picture())


def folder(root: Path, **counts: int) -> Path:
    """A folder with so many pictures at each path; `__` is a slash, "loose" the folder itself."""
    for at, count in counts.items():
        for number in range(count):
            write(root / (at.replace("__", "/") if at != "loose" else "") / f"{at}{number}.png", IMAGE)
    return root


def counts(source: Path, classes: str | None = None) -> dict[str, int]:
    with open_source(source, Reading(classes)) as found:
        labels = [entry.label for entry in found.entries]
        return {name: labels.count(number) for number, name in enumerate(found.class_names)}


def notes(source: Path, classes: str | None = None) -> str:
    with open_source(source, Reading(classes)) as found:
        return "\n".join(found.notes)
