"""Names of classes: written in one way, and in the order that gives them their numbers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from train.errors import DataError

# besides control characters: what shows nothing, or turns the direction of the text around it
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u2800\u3164\ufeff\uffa0\ufff9-\ufffb]"
)
_SHOWN = 20  # names in a message; the others are counted


def cleaned(name: str) -> str:
    """A class's name as everything here writes it: NFC, single spaces and none at its ends.

    Raises DataError for one that is not UTF-8, has nothing in it, or has characters that cannot be seen.
    """
    if name.encode(errors="replace") != name.encode(errors="surrogatepass"):
        raise DataError(f"The class folder {name!a} is not named in UTF-8: rename it.")
    clean = unicodedata.normalize("NFC", name).strip()
    if not clean:
        raise DataError(f"A class is called {name!r}, which is nothing to be seen: rename it.")
    if _INVISIBLE.search(clean) or any(unicodedata.category(char) == "Cc" for char in clean):
        raise DataError(f"The name of the class {name!a} has a character that cannot be seen: rename it.")
    return " ".join(clean.split())


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names, cleaned, in the order of their numbers: by text, and by value where they have digits.

    Raises DataError for two that a person cannot tell apart, and as `cleaned` does.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        key = cleaned(name).casefold()
        if key in seen:
            raise DataError(
                f"Two classes have the same name, {seen[key]!a} and {name!a}: rename or merge one of them."
            )
        seen[key] = name
    return tuple(sorted((cleaned(name) for name in seen.values()), key=natural))


def natural(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """A key to sort by, under which "2" comes before "10"."""
    pieces = re.split("([0-9]+)", name)  # text, digits, text, ...: like is compared with like
    # not by int(), which refuses thousands of digits
    return [(len(p.lstrip("0")), p.lstrip("0")) if i % 2 else p for i, p in enumerate(pieces)], name


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both are the same classes in the same order; case, underscores and NFC make no difference."""
    return [_key(n) for n in spoken(names)] == [_key(n) for n in spoken(others)]


def spoken(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as people write them, in the same order: `Border_collie` is "Border collie".

    Names that would become the same keep their underscores.
    """
    said = [" ".join(name.replace("_", " ").split()) if "_" in name else name for name in names]
    keys = [_key(one) for one in said]
    count = Counter(keys)
    return tuple(
        one if key and count[key] == 1 else name for one, key, name in zip(said, keys, names, strict=True)
    )


def misleading_numbers(names: Sequence[str]) -> str | None:
    """A remark on classes whose names are numbers of other classes; None: there are none."""
    wrong = [
        f'"{name}" is number {number}'
        for number, name in enumerate(names)
        if name.isascii() and name.isdecimal() and len(name) <= 9 and number != int(name) < len(names)
    ]
    if not wrong:
        return None
    return (
        f"some classes are called by the numbers of others ({shorten(wrong)}): a request for such a number "
        "in text means the class of that name"
    )


def shorten(names: Iterable[str], limit: int = _SHOWN) -> str:
    """The first `limit` names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).split())
