"""Class names as people write them -> numbers: one rule for the API and the command line."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from typing import Final


def class_number(asked: str, names: Sequence[str]) -> int | None:
    """Number of the class that `asked` names; None: there is none, or it might be several.

    An exact name wins over a number, and a number over a name in another case or with underscores for spaces.
    Exact is also a name that is the same but for composed letters (NFC) and spaces at its ends.
    """
    if asked in names:
        return names.index(asked)
    text = _written(asked)
    exact = [number for number, name in enumerate(names) if _written(name) == text]
    if text and len(exact) == 1:
        return exact[0]
    # at most 9 digits: longer ones are out of range anyway, and int() refuses thousands of them
    if text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) < len(names):
        return int(text)
    key = _key(text)
    found = [number for number, name in enumerate(names) if _key(name) == key]
    return found[0] if len(found) == 1 else None


LONGEST: Final = 200  # characters of what is told of several classes


def between(names: Sequence[str]) -> str:
    """What lies between classes: "cat to dog"; "cat" where all are of one."""
    return _told(" to ", [name for k, name in enumerate(names) if k == 0 or name != names[k - 1]])


def mixture(names: Sequence[str]) -> str:
    """What is of several classes: "cat + dog"."""
    return _told(" + ", names)


def _told(joint: str, names: Sequence[str]) -> str:
    """The names in one; cut where they are many: they stand in headers, titles and lists."""
    text = joint.join(names)
    return text if len(names) == 1 or len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def nearest_name(asked: str, names: Sequence[str]) -> str | None:
    """The class name most similar to `asked`; None: none is similar."""
    by_key = {_key(name): name for name in names}
    near = difflib.get_close_matches(_key(asked), by_key, n=1, cutoff=0.5)
    return by_key[near[0]] if near else None


def _written(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _key(name: str) -> str:
    return " ".join(_written(_written(name).casefold()).replace("_", " ").split())
