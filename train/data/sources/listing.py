"""What lies in a folder or a zip file: its pictures, its tables of labels, and what is left out and why."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from train.data.sources.base import MAX_FILE_BYTES, LeftOut, Unreadable, is_picture, set_apart
from train.data.sources.formats import START, why_not
from train.errors import DataError

# that may say which class a picture is of
TABLES = ("dataset.json", "labels.csv", "labels.tsv", "metadata.csv", "metadata.jsonl")
OTHER_TABLES = (".csv", ".tsv", ".jsonl")  # endings of tables that may as well, and are not read

# what reading a member of a zip raises: a wrong checksum, a password or unknown method, an early end
DAMAGED = (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error)


@dataclass
class Listing:
    """Names are relative to the folder or the archive, written `a/b/c.jpg`."""

    name: str
    kind: str  # "folder" or "zip"
    content: Callable[[str], bytes]  # of a file; raises Unreadable or OSError
    start: Callable[[str], bytes]  # its first 64 bytes; raises as well
    pictures: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    other_tables: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    left_out: LeftOut = field(default_factory=LeftOut)

    def add(self, name: str) -> None:
        """Take a file in, as what it is."""
        parts = PurePosixPath(name).parts
        self.folders.update(
            "/".join(parts[:end]) for end in range(1, len(parts)) if not set_apart(parts[:end])
        )
        if apart := set_apart(parts):
            folder = parts.index(apart) < len(parts) - 1
            kind = (
                "in a folder that is hidden or keeps thumbnails or metadata"
                if folder
                else "a hidden or system file"
            )
            self.left_out.add(kind, "/".join(parts[: parts.index(apart) + 1]))
        elif parts[-1].lower() in TABLES:
            self.tables.append(name)
        elif is_picture(name):
            self.pictures.append(name)
        else:
            try:
                reason = why_not(name, self.start(name))
            except (Unreadable, OSError) as error:
                reason = f"not a picture, and cannot be read ({getattr(error, 'strerror', None) or error})"
            if reason is None:
                self.pictures.append(name)
            else:
                self.left_out.add(reason, name)
                if parts[-1].lower().endswith(OTHER_TABLES):
                    self.other_tables.append(name)


def list_folder(path: Path) -> Listing:
    """The files below a folder. Folders at its top may be links; deeper ones are not followed."""

    def read(name: str, size: int) -> bytes:
        file = path / name
        if not file.is_file():
            raise Unreadable("not a plain file")  # to read from a pipe would wait for ever
        with file.open("rb") as opened:
            return opened.read(size)

    found = Listing(
        Path(os.path.abspath(path)).name,  # "." has no name of its own
        "folder",
        lambda name: read(name, MAX_FILE_BYTES + 1),
        lambda name: read(name, START),
    )
    try:
        tops = sorted(os.scandir(path), key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    for top in tops:
        if not os.path.isdir(top.path):  # top.is_dir() raises for a link that leads to itself
            found.add(top.name)
        elif not set_apart([top.name]) and _leads_back(path, top):
            found.left_out.add("a link to a folder that is read anyway, or that this one lies in", top.name)
        else:
            for name in _below(path, top, found):
                found.add(name)
    return found


def _leads_back(path: Path, top: os.DirEntry[str]) -> bool:
    if not top.is_symlink():
        return False
    target, here = Path(top.path).resolve(), path.resolve()
    return target.is_relative_to(here) or here.is_relative_to(target)


def _below(path: Path, top: os.DirEntry[str], found: Listing) -> Iterator[str]:
    """Names of the files below one folder; folders that are links or cannot be read are told."""

    def unreadable(error: OSError) -> None:
        at = Path(error.filename).relative_to(path).as_posix()
        found.left_out.add(f"a folder that cannot be read ({error.strerror})", at)

    for folder, folders, files in os.walk(top.path, onerror=unreadable):
        inside = Path(folder).relative_to(path)
        if not set_apart(inside.parts):
            found.folders.add(inside.as_posix())
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                found.left_out.add(
                    "a linked folder inside another is not followed", (inside / name).as_posix()
                )
        yield from ((inside / file).as_posix() for file in sorted(files))


def list_zip(path: Path, archive: zipfile.ZipFile, under: str = "") -> Listing:
    """The members of a zip file, or of a folder in it, each by one name however its path is written."""
    members: dict[str, zipfile.ZipInfo] = {}

    def read(name: str, size: int) -> bytes:
        info = members[name]
        if info.file_size > MAX_FILE_BYTES:
            raise Unreadable(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        try:
            with archive.open(info) as opened:
                return opened.read(size)
        except DAMAGED as error:
            raise Unreadable(str(error)) from error

    found = Listing(
        (path / under).name,
        "zip",
        lambda name: read(name, MAX_FILE_BYTES + 1),
        lambda name: read(name, START),
    )
    decoded = _decoder(archive, found)
    for info in archive.infolist():
        name = normal(decoded(info))
        if name is not None and under:
            if not name.startswith(f"{under}/"):
                continue
            name = name.removeprefix(f"{under}/")
        if name is None:
            found.left_out.add("a path that leads out of the archive", info.filename)
        elif name and (info.is_dir() or info.filename.endswith("\\")):
            if not set_apart(PurePosixPath(name).parts):
                found.folders.add(name)
        elif name:
            if name in members:
                found.left_out.add("in the archive twice under one name, the later is used", name)
            members[name] = info
    for name in members:
        found.add(name)
    return found


def normal(path: str) -> str | None:
    """A path `a/b/c` whatever way it is written; None: it leads out of where it starts."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if parts and re.fullmatch("[A-Za-z]:", parts[0]):
        del parts[0]
    return None if ".." in parts else "/".join(parts)


def _decoder(archive: zipfile.ZipFile, found: Listing) -> Callable[[zipfile.ZipInfo], str]:
    """How names are to be read that are not marked as UTF-8, which `zipfile` takes for CP437."""
    unmarked = [i for i in archive.infolist() if not i.flag_bits & 0x800 and not i.orig_filename.isascii()]
    raw = [info.orig_filename.encode("cp437") for info in unmarked]
    if not raw:
        return lambda info: info.filename
    if (names := _all_in(raw, "utf-8")) is None:
        names, called = _all_in(raw, "cp932"), "Shift-JIS"
        if names is None or not all(map(_is_japanese, names)):
            names, called = [info.orig_filename for info in unmarked], "CP437"
        found.left_out.remark(
            f"{len(raw):,} names in the archive do not say how they are encoded and were read as {called} "
            f"({names[0]}): if they are wrong, make the zip again with names in UTF-8"
        )
    other = {id(info): name for info, name in zip(unmarked, names, strict=True)}
    return lambda info: other.get(id(info), info.filename)


def _all_in(raw: list[bytes], encoding: str) -> list[str] | None:
    try:
        return [name.decode(encoding) for name in raw]
    except UnicodeDecodeError:
        return None


def _is_japanese(path: str) -> bool:
    """Whether each part of a path that is not ASCII is at least half kana and kanji, and has no odd letters.

    By chance Latin letters of CP437 are Shift-JIS as well, but then few of them stand among many of ASCII.
    """
    for part in re.split(r"[/\\]", path):
        if not part.isascii():
            japanese = sum("\u3040" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" for c in part)
            if 2 * japanese < len(PurePosixPath(part).stem):
                return False
    return True
