"""What a folder or zip of pictures says about its own licence, and what a person says of it."""

from __future__ import annotations

import codecs
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from train.data.sources.base import is_picture, set_apart
from train.data.sources.listing import DAMAGED, normal
from train.data.sources.recognise import archive_of
from train.errors import DataError

NAMES = ("license", "licence", "copying", "unlicense")  # of the file, whatever its ending
ENDINGS = ("", ".txt", ".md", ".rst")
NOT_STATED = "not stated"  # by the pictures, nor by who packed them
LONGEST = 300  # letters of it that go with a network; a page has no room for a whole licence
READ = 10_000  # bytes of the file, at most


def stated_licence(data: Path) -> str | None:
    """The first paragraph of the licence file for all of the pictures, and its name; None: there is none.

    It lies beside the classes or around them: in the folder given, or in the one folder that all is in. In a
    zip of which a folder is given it may also lie above that one. Nothing is raised for a damaged file.
    """
    try:
        if data.is_dir():
            for folder in _wrapping(data):
                for path in sorted(folder.iterdir()):
                    if _is_licence(path.name) and path.is_file():
                        with path.open("rb") as beside:
                            return _said(path.name, beside.read(READ))
            return None
        archive = archive_of(data)
        if archive is None or not zipfile.is_zipfile(archive):
            return None
        with zipfile.ZipFile(archive) as opened:
            names = {normal(name) or "": name for name in opened.namelist()}
            for name in _around(sorted(names), data.relative_to(archive).as_posix()):
                with opened.open(names[name]) as file:
                    return _said(PurePosixPath(name).name, file.read(READ))
    except (OSError, *DAMAGED):
        pass
    return None


def _wrapping(folder: Path) -> Iterator[Path]:
    """The folder, and those below it as long as there is nothing but one folder."""
    for _ in range(8):
        yield folder
        inside = [item for item in os.scandir(folder) if not set_apart([item.name])]
        folders = [item for item in inside if item.is_dir(follow_symlinks=False)]
        if len(folders) != 1 or any(is_picture(item.name) for item in inside):
            return
        folder = Path(folders[0].path)


def _around(names: list[str], under: str) -> Iterator[str]:
    """The licence files around the members below `under`, "." for all: from there up, then down."""
    start = PurePosixPath(under)
    inside = [p for p in map(PurePosixPath, names) if p.is_relative_to(start) and not set_apart(p.parts)]
    pictures = [path.parent.as_posix() for path in inside if is_picture(path.name)]
    common = PurePosixPath(os.path.commonpath(pictures) if pictures else under)
    below = [folder for folder in (common, *common.parents) if start in folder.parents]
    for folder in (start, *start.parents, *below[::-1]):
        yield from (n for n in names if PurePosixPath(n).parent == folder and _is_licence(n))


def given_licence(text: str) -> str:
    """A licence that was typed, on one line. Raises DataError where there is nothing to show of it."""
    line = " ".join(text.split())
    if not line:
        raise DataError("--licence says nothing: leave it out.")
    if not line.isprintable():  # nor are bytes that are no UTF-8
        raise DataError(f"--licence has letters that cannot be shown: {line[:LONGEST]!a}.")
    if len(line) > LONGEST:
        raise DataError(f"--licence has {len(line):,} letters, at most {LONGEST}: give its name and address.")
    return line


def _is_licence(name: str) -> bool:
    path = PurePosixPath(name.lower())
    return path.stem in NAMES and path.suffix in ENDINGS


def _said(name: str, content: bytes) -> str | None:
    paragraphs = re.split(r"\n\s*\n", _text(content).replace("\r\n", "\n").replace("\r", "\n").strip())
    if len(paragraphs) > 1 and re.sub("[^a-z]", "", paragraphs[0].lower()) in NAMES:  # a heading
        del paragraphs[0]
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in paragraphs[0]).split())
    if not text:
        return None
    return f"{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'} ({name})"


def _text(content: bytes) -> str:
    """A text that may be cut at its end, in UTF-8, or in what Windows writes."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="ignore")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=len(content) < READ)
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
