"""Keys as an operator writes them: SAGAN_API_KEYS, and the file of SAGAN_API_KEYS_FILE."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

MOST: Final = 2**20  # bytes of a file of keys

_OPTION = re.compile(r"(?P<key>.*):(?P<name>\w+)=(?P<value>[^:=]*)", re.DOTALL)


class ApiKey(SecretStr):
    """A key, and the highest priority that it may ask for; None: that of the service."""

    max_priority: int | None = None

    @classmethod
    def read(cls, text: str) -> "ApiKey":
        """`KEY` or `KEY:priority=5`. Raises ValueError, which does not quote the key."""
        option = _OPTION.fullmatch(text)
        if option is None:
            return cls(text)
        name, value = option["name"], option["value"]
        odd = not option["key"] or _OPTION.fullmatch(option["key"])
        if odd or name != "priority" or not re.fullmatch(r"[0-9]", value):
            raise ValueError(
                f"{name}={value} after a key: the only option is KEY:priority=5, with 0 to 9 "
                "(a key itself must not end in :WORD=...)"
            )
        key = cls(option["key"])
        key.max_priority = int(value)
        return key


def words(value: Any) -> Any:
    """The words between commas; anything but text stays as it is."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def read_keys(value: object) -> object:
    """The keys of "a,b:priority=5"; anything but text or a list stays as it is. Raises ValueError."""
    given, value = value, words(value)
    if not isinstance(value, Sequence):
        return value
    if given and not value:  # "$ONE,$TWO" with neither set must not open the service
        raise ValueError("there is no key between its commas; leave it empty to be open to everybody")
    if isinstance(given, str) and re.search("[\ud800-\udfff]", given):  # so Python has bytes of no UTF-8
        raise ValueError("it is not UTF-8")
    keys = [ApiKey.read(entry) if isinstance(entry, str) else entry for entry in value]
    ceilings: dict[str, int | None] = {}
    for key in keys:
        ceiling = getattr(key, "max_priority", None)
        if ceilings.setdefault(key.get_secret_value(), ceiling) != ceiling:
            raise ValueError("one key stands there twice, with different priorities")
    return keys


def read_file(path: Path) -> list[ApiKey]:
    """The keys of a file, one a line or with commas between. Raises ValueError, which quotes no key."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    found = read_keys(",".join(text.splitlines()))
    if len(data) > MOST or not isinstance(found, list) or not found:
        raise ValueError("there is no key in it: it has one a line, or several with commas between")
    return found
