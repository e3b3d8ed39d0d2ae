"""Classes from a table beside the pictures: StyleGAN's dataset.json, labels.csv, metadata.csv or .jsonl."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from train.data.sources.base import Unreadable
from train.data.sources.listing import Listing, normal
from train.errors import DataError

FILE_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "image",
    "img",
    "image_name",
    "image_path",
    "image_id",
    "path",
    "id",
    "name",
)
LABEL_COLUMNS = (
    "class_name",
    "label_name",
    "category_name",
    "breed",
    "species",
    "class",
    "label",
    "labels",
    "category",
    "target",
    "class_id",
)
ANOTHER_WAY = "or say by --classes how to read the folders: one, or the depth of the class folders (1, 2, …)"


@dataclass(frozen=True)
class Labels:
    """What a table says."""

    table: str  # its name
    by: str  # what was read, for a person
    of: dict[str, str]  # picture -> name of its class
    missing: tuple[str, ...] = ()  # files that it names and that are not there
    none: bool = False  # it says that there are no classes


def read_labels(found: Listing) -> Labels | None:
    """The labels in the table that lies beside or above all pictures; None: there is no such table.

    Tables that are none of labels are told as left out. Raises DataError for one that cannot be understood,
    and for two that differ.
    """
    read: Labels | None = None
    for table in sorted(found.tables, key=lambda name: (name.count("/"), name.lower())):
        folder = table.rpartition("/")[0]
        if not all(name.startswith(f"{folder}/") for name in found.pictures) and folder:
            found.left_out.add("a table that lies beside some of the pictures only", table)
            continue
        labels = _labels(found, table)
        if labels is None:
            found.left_out.add("a table without labels", table)
        elif read is None:
            read = labels
        elif (labels.of, labels.none) != (read.of, read.none):
            raise DataError(
                f"{read.table} and {table} say different classes: take one of them away, {ANOTHER_WAY}."
            )
    return read


def maybe_labels(found: Listing) -> str | None:
    """A table of another name than those that are read which may say classes all the same; None: none may."""
    for table in found.other_tables:
        with suppress(DataError, ValueError):
            if _labels(found, table) is not None:
                return table
    return None


def _labels(found: Listing, table: str) -> Labels | None:
    """What a table says of classes; None: nothing. Raises DataError where it cannot be understood."""
    try:
        content = found.content(table)
        text = content.decode("utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig")
    except (Unreadable, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read ({error}): save it as UTF-8, {ANOTHER_WAY}.") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if table.lower().endswith(".json"):
        return _json(found, table, text)
    rows = _json_rows(table, text) if table.lower().endswith(".jsonl") else _csv_rows(table, text)
    return _columns(found, table, rows)


def _json(found: Listing, table: str, text: str) -> Labels | None:
    """`{"labels": [["00000/img00000000.png", 6], …]}` or `{"labels": {"a.png": 6}}`; null: no classes."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{table} is not JSON ({error}): mend it, {ANOTHER_WAY}.") from error
    if not isinstance(content, dict) or "labels" not in content:
        return None
    labels = content["labels"]
    if labels is None:
        return Labels(table, f"as {table} says that there are no classes", {}, none=True)
    rows = list(labels.items()) if isinstance(labels, dict) else labels
    if not isinstance(rows, list) or not all(
        isinstance(row, list | tuple)
        and len(row) == 2
        and isinstance(row[0], str)
        and isinstance(row[1], int | str)
        and not isinstance(row[1], bool)
        for row in rows
    ):
        raise DataError(
            f'{table} should have "labels": [["a/1.png", 0], …], a file and the number or name of its class '
            f"each: mend it, {ANOTHER_WAY}."
        )
    return _matched(found, table, f'by "labels" in {table}', ((file, str(label)) for file, label in rows))


def _json_rows(table: str, text: str) -> list[list[str]]:
    """Lines of `{"file_name": "a.png", "label": "cat"}` as rows under a head."""
    try:
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{table} is not JSON lines ({error}): mend it, {ANOTHER_WAY}.") from error
    if not all(isinstance(line, dict) for line in lines):
        raise DataError(f"{table} should have an object a line: mend it, {ANOTHER_WAY}.")
    head = list(dict.fromkeys(key for line in lines for key in line))
    said = [[line.get(key) for key in head] for line in lines]
    return [head, *(["" if cell is None else str(cell) for cell in row] for row in said)]


def _csv_rows(table: str, text: str) -> list[list[str]]:
    """The rows of a table separated by comma, semicolon or tab, or as its first line `sep=;` says."""
    first = text.partition("\n")[0]
    if re.fullmatch("sep=[,;\t]", first.lower()):
        delimiter, text = first[-1], text.partition("\n")[2]
    else:
        delimiter = max(",;\t", key=first.count)
    try:
        return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise DataError(f"{table} is not CSV ({error}): mend it, {ANOTHER_WAY}.") from error


def _columns(found: Listing, table: str, rows: list[list[str]]) -> Labels | None:
    """The labels in rows under a head, or in two columns without one; None: they have none."""
    head = [cell.strip().lower().replace(" ", "_") for cell in rows[0]] if rows else []
    file = next((head.index(name) for name in FILE_COLUMNS if name in head), None)
    label = next((head.index(name) for name in LABEL_COLUMNS if name in head), None)
    by = f"by {table}"
    if file is not None and label is not None:
        by += f", columns {rows[0][file].strip()} and {rows[0][label].strip()}"
        rows = rows[1:]
    elif len(head) == 2 and file is None and label is None and _Pictures(found, table).find(rows[0][0]):
        file, label = 0, 1
    elif PurePosixPath(table).name.lower().startswith("metadata."):
        return None
    else:
        raise DataError(
            f"{table} has the columns {', '.join(head) or 'none'}: it needs one of files (called "
            f"{', '.join(FILE_COLUMNS)}) and one of classes (called {', '.join(LABEL_COLUMNS)}), "
            f"{ANOTHER_WAY}."
        )
    pairs = ((row[file], row[label]) for row in rows if len(row) > max(file, label))
    return _matched(found, table, by, pairs)


def _matched(found: Listing, table: str, by: str, pairs: Iterable[tuple[str, str]]) -> Labels:
    """The pictures that the rows name. Raises DataError where it is not plain which, or of which class."""
    pictures = _Pictures(found, table)
    of: dict[str, str] = {}
    missing = []
    for file, label in _filled(pairs):
        candidates = pictures.find(file)
        if len(candidates) > 1:
            raise DataError(
                f"{table} names {file}, and there are {candidates[0]} and {candidates[1]}: write there "
                "the path of each, as from the table's own folder."
            )
        if not candidates:
            missing.append(file)
        elif of.setdefault(candidates[0], label) != label:
            raise DataError(
                f"{table} says that {file} is of class {of[candidates[0]]!r} and of {label!r}: leave one of "
                "these rows out."
            )
    if not of:
        raise DataError(
            f"{table} names none of the {len(found.pictures):,} pictures (its first is "
            f"{missing[0] if missing else 'missing'}): mend it, {ANOTHER_WAY}."
        )
    return Labels(table, by, of, tuple(missing))


def _filled(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for file, label in pairs:
        if file.strip() and label.strip():
            yield file.strip(), label.strip()


class _Pictures:
    """The pictures by what a table may call them: path, path without its ending, or the last part alone.

    As they are written, then in any case; letters composed or not. Of two paths the shorter one must be the
    end of the longer one: `train/1.png` is not `test/1.png`.
    """

    def __init__(self, found: Listing, table: str) -> None:
        folder = self._folder = table.rpartition("/")[0]
        self._by: tuple[dict[str, list[str]], ...] = ({}, {}, {}, {}, {}, {})
        for name in found.pictures:
            path = PurePosixPath(_composed(name)).relative_to(_composed(folder))
            whole = path.as_posix()
            keys = (whole, path.with_suffix("").as_posix(), path.name, path.stem)
            for place, key in zip(self._by, (*keys, whole.casefold(), path.name.casefold()), strict=True):
                place.setdefault(key, []).append(name)

    def find(self, file: str) -> list[str]:
        """The pictures that `file` may mean; several: it is not plain which."""
        path = normal(_composed(file.strip())) or ""
        last = PurePosixPath(path).name
        asked = (path, path, last, last, path.casefold(), last.casefold())
        for place, key in zip(self._by, asked, strict=True):
            if found := [name for name in place.get(key, ()) if self._alike(name, path)]:
                return found
        return []

    def _alike(self, name: str, path: str) -> bool:
        """Whether the folders of a picture end like those of `path`, as far as both have some."""
        ours, theirs = (
            PurePosixPath(_composed(one).casefold()).parent.parts[::-1]
            for one in (name.removeprefix(self._folder).lstrip("/"), path)
        )
        return all(one == other for one, other in zip(ours, theirs, strict=False))


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)
