"""Which class each picture is of: by a table, or by its folders; refused where that is not plain."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from train.data.sources.base import Entry, Reading, Source, class_order, printable, spoken
from train.data.sources.listing import Listing
from train.data.sources.names import cleaned, shorten
from train.data.sources.tables import Labels, maybe_labels, read_labels
from train.errors import DataError, NoImages

Parts = tuple[str, ...]
LOOSE = "outside any class folder"
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_BESIDE = {
    "dev",
    "eval",
    "extra",
    "gallery",
    "holdout",
    "pred",
    "predict",
    "prediction",
    "query",
    "unlabeled",
    "unlabelled",
}
_PLAIN = {"image", "images", "img", "imgs", "jpegimages"}
_DRAWN = {"annotations", "depth", "labels", "mask", "masks", "segmentation", "segmentationclass"}


def arrange(path: Path, found: Listing, read: Callable[[Entry], Image.Image], reading: Reading) -> Source:
    """The pictures with their classes. Raises DataError with the readings where several are possible."""
    if not found.pictures:
        needs = "it needs images, or a folder for each class with the images in it"
        raise NoImages(
            "; ".join([f"There is no image in {path}: {needs}", *found.left_out.notes()[:5]]) + "."
        )
    wanted = reading.classes
    if wanted is not None and wanted not in ("labels", "one") and not re.fullmatch("[1-9]", wanted):
        raise DataError(
            f"--classes {wanted}: give labels (the table beside the pictures), one (all are one "
            "class) or the depth of the class folders, from 1."
        )
    labels = read_labels(found) if wanted in (None, "labels") else None
    if wanted == "labels" and labels is None:
        raise DataError(
            f"There is no dataset.json, labels.csv or metadata.csv with labels beside {path}'s pictures."
        )
    images = sorted(PurePosixPath(name).parts for name in found.pictures)
    if labels is not None and not labels.none:
        if wanted is None and not labels.table.lower().endswith(".json"):
            _check_agree(found.name, labels, images)
        return _by_table(found, labels, read)
    if labels is not None or wanted == "one":
        return _one_class(path, found, images, read, labels.by if labels else "as --classes one says")
    depth = int(wanted) - 1 if wanted is not None else class_depth(found.name, images)
    if depth is None:
        if table := maybe_labels(found):
            raise DataError(
                f"{found.name} has its pictures side by side, and {table} may say their classes. Does it? "
                "Then call it labels.csv. Are all of one class? Then add --classes one."
            )
        return _one_class(path, found, images, read, "pictures side by side")
    return _by_folders(found, images, depth, read)


def class_depth(where: str, pool: Sequence[Parts], depth: int = 0) -> int | None:
    """How deep below the source the folders of classes lie; None: there are none, pictures lie side by side.

    where: the source, for messages. pool: the pictures' paths. depth: of the folders to look at, from 0.
    Raises DataError where the folders could be read in two ways.
    """
    tops = _folders(pool, depth)
    loose = len(pool) - sum(map(len, tops.values()))
    if not tops:
        return None
    if not _few(loose, len(pool)) or 2 * loose >= len(pool):
        raise DataError(
            f"{where} has {loose:,} pictures and {_called(tops)} beside them. Are all of one class? Then add "
            f"--classes one. Are the folders the classes, and those pictures not wanted? Then add "
            f"--classes {depth + 1}, or give one folder alone."
        )
    if len(tops) == 1:
        ((top, inner),) = tops.items()
        below = _folders(inner, depth + 1)
        if len(below) > 1 or sum(map(len, below.values())) == len(inner):
            return class_depth(f"{where}/{top}", inner, depth + 1)
        return None if not loose and (top.lower() in _PLAIN or _words(top) & _SPLITS) else depth
    _check_splits(where, tops, depth)
    nested = [len(_folders(inner, depth + 1)) for inner in tops.values()]
    direct = sum(len(parts) == depth + 2 for inner in tops.values() for parts in inner)
    if max(nested) > 1 and _few(direct, len(pool)):
        inner_names = sorted({name for inner in tops.values() for name in _folders(inner, depth + 1)})
        raise DataError(
            f"{where} has folders in folders. Are the classes {_shown(tops)}? Then add --classes "
            f"{depth + 1}. Or {_shown(inner_names)}? Then add --classes {depth + 2}."
        )
    return depth


def _check_splits(where: str, tops: dict[str, list[Parts]], depth: int) -> None:
    """Raises DataError for folders that are called like the parts of a data set rather than like classes."""
    tokens = {top: _words(top) for top in tops}
    parts = {top for top, words in tokens.items() if words & _SPLITS}
    others = {top for top, words in tokens.items() if words & _BESIDE} | parts
    holds_classes = any(
        len(_folders(tops[top], depth + 1)) > 1 and not any(len(p) == depth + 2 for p in tops[top])
        for top in parts
    )
    lower = {top.lower() for top in tops}
    if len(parts) > 1 or (parts and len(others) == len(tops)) or holds_classes:
        first = min(parts, key=lambda top: (not tokens[top] & {"train", "training"}, top))
        raise DataError(
            f"{where} holds splits ({_shown(tops)}), not classes: give one of its folders, such as "
            f"{where}/{first}. If they are classes all the same, add --classes {depth + 1}."
        )
    if lower & _PLAIN and lower & _DRAWN and lower <= _PLAIN | _DRAWN:
        raise DataError(
            f"{where} holds pictures and what was drawn for them ({_shown(tops)}), not classes: give the "
            f"folder of the pictures alone. If they are classes all the same, add --classes {depth + 1}."
        )


def _words(name: str) -> set[str]:
    """The words in a folder's name, of "trainA", "test_images" and "valset" as well."""
    found = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    return {re.sub("(?<=.)(set|data|imgs|images)$", "", word) for word in found}


def _check_agree(where: str, labels: Labels, images: Sequence[Parts]) -> None:
    """Raises DataError where folders are plainly classes too, of other pictures or other than the table's."""
    try:
        depth = class_depth(where, images)
    except DataError:
        return  # folders that say nothing plain do not contradict
    if depth is None:
        return
    inside = [parts for parts in images if len(parts) > depth + 1]
    pairs = {(parts[depth], labels.of.get("/".join(parts))) for parts in inside}
    folders, classes = {folder for folder, _ in pairs}, {name for _, name in pairs if name is not None}
    without = sum("/".join(parts) not in labels.of for parts in inside)
    same = len(folders) == len(classes) == sum(name is not None for _, name in pairs)
    if len(folders) > 1 and not (same and _few(without, len(inside))):
        lacks = f"; {without:,} pictures have none" if without else ""
        raise DataError(
            f"{where} has classes in {labels.table} ({_shown(classes)}{lacks}) and others by its folders "
            f"({_shown(folders)}). Add --classes labels for the first, --classes {depth + 1} for the second."
        )


def _by_table(found: Listing, labels: Labels, read: Callable[[Entry], Image.Image]) -> Source:
    cleanly = {
        label: cleaned(label) for label in set(labels.of.values())
    }  # of a table's labels some may be alike
    class_names = class_order(set(cleanly.values()))
    number = {name: label for label, name in enumerate(class_names)}
    entries = sorted(Entry(name, number[cleanly[label]]) for name, label in labels.of.items())
    for name in found.pictures:
        if name not in labels.of:
            found.left_out.add(f"without a label in {labels.table}", name)
    for name in labels.missing:
        found.left_out.add(f"named in {labels.table}, and there is no such picture", name)
    return Source(
        found.name, found.kind, spoken(class_names), entries, read, notes=found.left_out.notes(), by=labels.by
    )


def _by_folders(
    found: Listing, images: Sequence[Parts], depth: int, read: Callable[[Entry], Image.Image]
) -> Source:
    inside = [parts for parts in images if len(parts) > depth + 1]
    for parts in images:
        if len(parts) <= depth + 1:
            found.left_out.add(LOOSE, "/".join(parts))
    if not inside:
        raise NoImages(
            f"There is no image {depth + 1} folders deep in {found.name}: give a lesser --classes."
        )
    wraps = {parts[:depth] for parts in inside}
    empty = {
        parts[depth]
        for name in found.folders
        if len(parts := PurePosixPath(name).parts) == depth + 1 and parts[:depth] in wraps
    }
    folders = {parts[depth] for parts in inside}
    if len(folders) == 1:
        _remark_prefixes(found, inside)
    # a folder without pictures is a class as well, until packing finds and names it as empty
    class_names = class_order(folders | {name for name in empty if not _clashes(name, folders)})
    number = {name: label for label, name in enumerate(class_names)}
    entries = sorted(Entry("/".join(parts), number[cleaned(parts[depth])]) for parts in inside)
    by = "one a folder" + (f" {depth + 1} deep" if depth else "")
    return Source(
        found.name, found.kind, spoken(class_names), entries, read, notes=found.left_out.notes(), by=by
    )


def _clashes(name: str, folders: set[str]) -> bool:
    """Whether a folder without pictures cannot be a class of its own beside these."""
    if name in folders:
        return False
    try:
        key = cleaned(name).casefold()
    except DataError:
        return True
    return any(cleaned(folder).casefold() == key for folder in folders)


def _one_class(
    path: Path, found: Listing, images: Sequence[Parts], read: Callable[[Entry], Image.Image], by: str
) -> Source:
    """All pictures are one class, named after their folder or archive."""
    name = Path(os.path.abspath(path)).name  # of a link its own
    class_names = class_order([name if found.kind == "folder" else re.sub("(?i)(?<=.)[.]zip$", "", name)])
    entries = sorted(Entry("/".join(parts), 0) for parts in images)
    _remark_prefixes(found, images)
    return Source(
        found.name, found.kind, spoken(class_names), entries, read, notes=found.left_out.notes(), by=by
    )


def _remark_prefixes(found: Listing, images: Sequence[Parts]) -> None:
    """Tell where pictures of one class are called as if of several: cat.0.jpg, dog.0.jpg."""
    matches = [re.match(r"([^\W\d_]+)[ ._-]*\d+$", PurePosixPath(parts[-1]).stem) for parts in images]
    prefixes = Counter(match[1] for match in matches if match)
    if prefixes.total() == len(images) and len(prefixes) > 1 and 10 * min(prefixes.values()) >= len(images):
        found.left_out.remark(
            f"all pictures are one class, and their names begin with {_shown(set(prefixes))}: if these are "
            "classes, give each a folder, or write a labels.csv"
        )


def _folders(pool: Sequence[Parts], depth: int) -> dict[str, list[Parts]]:
    """The pictures in each folder at this depth."""
    tops: dict[str, list[Parts]] = {}
    for parts in pool:
        if len(parts) > depth + 1:
            tops.setdefault(parts[depth], []).append(parts)
    return tops


def _few(count: int, of: int) -> bool:
    """Whether so many of `of` pictures are strays rather than a part of the data."""
    return count <= max(2, of // 10)


def _called(tops: dict[str, list[Parts]]) -> str:
    return f"the folder{'s' if len(tops) > 1 else ''} {_shown(tops)}"


def _shown(names: Sequence[str] | set[str] | dict[str, list[Parts]]) -> str:
    return printable(shorten(sorted(names), 6))
