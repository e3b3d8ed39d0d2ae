"""What a folder or zip of pictures says about its own licence, and what a person says of it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from train.errors import DataError

NAMES = ("license", "licence", "copying", "unlicense")  # of the file, whatever its ending
ENDINGS = ("", ".txt", ".md", ".rst")
LONGEST = 300  # letters of it that go with a network; a page has no room for a whole licence
READ = 10_000  # bytes of the file, at most


def stated_licence(data: Path) -> str | None:
    """The first paragraph of the licence file beside the classes, and its name; None: there is none."""
    try:
        if data.is_dir():
            found = sorted(path for path in data.iterdir() if _is_licence(path.name) and path.is_file())
            if not found:
                return None
            with found[0].open("rb") as beside:
                return _said(found[0].name, beside.read(READ))
        if not zipfile.is_zipfile(data):
            return None
        with zipfile.ZipFile(data) as archive:
            # at the top, or in the one folder that everything is in
            names = [n for n in archive.namelist() if _is_licence(PurePosixPath(n).name) and n.count("/") < 2]
            names.sort(key=lambda name: (name.count("/"), name))
            if not names:
                return None
            with archive.open(names[0]) as file:
                return _said(PurePosixPath(names[0]).name, file.read(READ))
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, zlib.error):  # damaged, or under a password
        return None


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
    paragraphs = content.decode(errors="replace").replace("\r\n", "\n").strip("\ufeff \n\t").split("\n\n")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in paragraphs[0]).split())
    if not text:
        return None
    return f"{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'} ({name})"
