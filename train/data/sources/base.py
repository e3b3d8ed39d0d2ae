"""A source of labelled pictures: a list of what it has, and a way to open each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from PIL import Image

from train.data.sources.formats import MAX_FILE_BYTES as MAX_FILE_BYTES
from train.data.sources.formats import Unreadable as Unreadable
from train.data.sources.formats import is_picture as is_picture
from train.data.sources.formats import open_picture as open_picture
from train.data.sources.names import class_order as class_order
from train.data.sources.names import same_classes as same_classes
from train.data.sources.names import shorten
from train.data.sources.names import spoken as spoken

MIN_CROP = 48  # source pixels; the shortest crop around a box that is kept
_SAID = 200  # classes that are said one by one before a source is read

_APART = frozenset(
    {
        "__macosx",
        "@eadir",
        "@recycle",
        "@recycled",
        "#recycle",
        "@recently-snapshot",
        "@tmp",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "found.000",
        "__pycache__",
        "thumbnails",
        "_thumbnails",
        "_thumbs",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "picasa.ini",
        "icon\r",
    }
)


@dataclass(frozen=True)
class Reading:
    """How a source is to be read, where it does not say itself."""

    classes: str | None = None  # "labels", "one" or the depth of the class folders from 1; None: concluded
    bits: int | None = None  # in use of grey pixels deeper than 8 bits; None: as many as their files say
    min_crop: int = MIN_CROP  # source pixels, of a crop around a box (Stanford Dogs); 0 keeps all
    licence: str | None = None  # of the pictures; None: what the source's format states


AS_IT_IS: Final = Reading()


class Box(NamedTuple):
    """A rectangle in stored pixels of a picture of `width` × `height`, or of a scaled copy of that size."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int


class Entry(NamedTuple):
    """One picture of a source. Plain and small: ImageNet has 1.3 million of them in memory."""

    name: str  # in the report, and for the source to find the picture by
    label: int
    box: Box | None = None  # None: the centre square


@dataclass(frozen=True)
class Source:
    """Pictures of one origin.

    `read` opens the picture of an entry (from several threads at once) and raises Unreadable, OSError
    or one of Pillow's own errors where it cannot.
    """

    name: str
    kind: str  # "folder", "zip", "cifar10", "stanford-dogs"
    class_names: tuple[str, ...]
    entries: list[Entry]
    read: Callable[[Entry], Image.Image]
    licence: str | None = None  # None: the source's format states none
    crop: str = "centre square"  # the part of a picture that is used
    notes: tuple[str, ...] = ()  # on files left out, for the report
    by: str = "as its format says"  # what a picture's class was concluded from

    def classes(self) -> list[str]:
        """What was concluded, to be checked: each class with its number of pictures and one of them."""
        counts = Counter(entry.label for entry in self.entries)
        first: dict[int, str] = {}
        for entry in self.entries:
            first.setdefault(entry.label, entry.name)
        names = self.class_names
        lines = [f"{len(counts)} class{'es' if len(counts) != 1 else ''} in {self.name}, {self.by}:"]
        lines += [
            f"  {number} {names[number]}: {counts[number]:,}, such as {printable(first[number])}"
            for number in list(range(len(names)))[:_SAID]
            if counts[number]
        ]
        if empty := [name for number, name in enumerate(names) if not counts[number]]:
            lines.append(f"  without pictures: {shorten(empty)}")
        if len(names) > _SAID:
            lines.append(
                f"  and {len(names) - _SAID:,} more, of {min(counts.values()):,} to {max(counts.values()):,}"
            )
        return lines


class LeftOut:
    """Files that are not taken, or not as usual, counted by reason with examples."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._remarks: list[str] = []

    def add(self, reason: str, name: str, count: int = 1) -> None:
        self._counts[reason] += count
        examples = self._examples.setdefault(reason, [])
        if len(examples) < 3 and name not in examples:
            examples.append(name)

    def remark(self, text: str) -> None:
        """Something else to be told."""
        self._remarks.append(text)

    def notes(self, what: str = "left out") -> tuple[str, ...]:
        """One line a reason, beginning with `what`, then the remarks."""
        counted = (
            f"{what} {count:,}: {reason} ({printable(shorten(self._examples[reason]))})"
            for reason, count in sorted(self._counts.items())
        )
        return (*counted, *map(printable, self._remarks))


def printable(name: str) -> str:
    """A file's name for the screen, whatever bytes it is of."""
    return "".join(c if c.isprintable() else "�" for c in name.encode(errors="replace").decode())


def set_apart(parts: Iterable[str]) -> str | None:
    """The hidden, metadata or thumbnail part of a path (.DS_Store, __MACOSX, @eaDir); None: it has none."""
    return next((p for p in parts if p.startswith(".") or p.casefold() in _APART), None)
