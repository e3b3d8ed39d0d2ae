"""Small pieces of HTTP: Prefer, Accept, conditional requests."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from fastapi import Request, Response

from app.errors import Invalid

Name = TypeVar("Name", bound=str)

# token [= token or "quoted"] up to the next comma or parameter
_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d+)"?\s*(?:;.*)?', re.IGNORECASE)
_CANCEL = re.compile(r'\s*on-disconnect\s*=\s*"?cancel"?\s*(?:;.*)?', re.IGNORECASE)
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def preferred_wait(prefers: Iterable[str], at_most: int) -> int | None:
    """Seconds of the first `wait=n` among Prefer headers, `at_most` at most; None without one.

    An unknown or malformed preference is ignored (RFC 7240).
    """
    for preference in ",".join(prefers).split(","):
        if found := _WAIT.fullmatch(preference):
            digits = found[1].lstrip("0") or "0"
            return at_most if len(digits) > 6 else min(int(digits), at_most)
    return None


def cancels_on_disconnect(prefers: Iterable[str]) -> bool:
    """Whether the Prefer headers have `on-disconnect=cancel`: the job need not run without its client."""
    return any(_CANCEL.fullmatch(preference) for preference in ",".join(prefers).split(","))


def quality(accept: str, media_type: str) -> float:
    """The q of `media_type` in an Accept header, 0 to 1. The most specific range counts."""
    kind = media_type.split("/")[0]
    found: dict[int, float] = {}
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        ranges = {media_type: 3, f"{kind}/*": 2, "*/*": 1}
        if name not in ranges:
            continue
        weight = 1.0
        for parameter in parameters:
            if match := re.fullmatch(r"q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", parameter):
                weight = float(match[1])
        found[ranges[name]] = max(weight, found.get(ranges[name], 0.0))
    return found[max(found)] if found else 0.0


def chosen(request: Request, offered: Mapping[Name, str]) -> Name | None:
    """The format that Accept asks for; None: it takes none of them.

    offered: format -> media type; the first is what a client gets that names none.
    """
    accept = ",".join(request.headers.getlist("accept"))
    usual, *others = offered
    most = _quality_of_usual(accept, offered[usual])
    best = usual if most > 0 else None
    for name in others:
        if (asked := quality(accept, offered[name])) > most:
            best, most = name, asked
    return best


def _quality_of_usual(accept: str, media_type: str) -> float:
    # A browser lists what it can decode, image/webp before */*;q=0.8: no wish to get another file than the
    # one that is kept, whose bytes it may save. So a wildcard takes the usual format as gladly as any, and
    # only who names that one with a lower q, or has no place for it, gets another.
    kinds = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    asked = quality(accept, media_type)
    return asked if media_type in kinds or asked == 0 else 1.0


def wants(request: Request, media_type: str, rather_than: str) -> bool:
    """Whether the client prefers `media_type` to the default answer."""
    accept = ",".join(request.headers.getlist("accept"))
    return quality(accept, media_type) > quality(accept, rather_than)


def takes_gzip(request: Request) -> bool:
    """Whether the client says that it can read a gzipped answer."""
    return quality(request.headers.get("accept-encoding") or "identity", "gzip") > 0


def checked_key(key: str | None) -> str | None:
    """An Idempotency-Key as it came. Raises Invalid unless it is 1 to 255 visible ASCII characters."""
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise Invalid("Idempotency-Key must be 1 to 255 visible ASCII characters, such as a UUID.")
    return key


def knows(request: Request, etag: str) -> bool:
    """Whether If-None-Match names `etag`: the client has that answer already."""
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    names = [name.strip().removeprefix("W/") for name in given.split(",")]
    return etag in names or "*" in names


def png_headers(etag: str, name: str) -> dict[str, str]:
    """Headers of a PNG that never changes. name: of the file that a browser saves, without its end."""
    return file_headers(etag, f"{name}.png")


def file_headers(etag: str, name: str, *, saved: bool = False) -> dict[str, str]:
    """Headers of a file that never changes. name: under which a browser saves it; saved: it always does."""
    kind = "attachment" if saved else "inline"
    return {
        "ETag": etag,
        # private: where keys are set, a shared cache must not hand one caller's image to another
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'{kind}; filename="{re.sub(r"[^A-Za-z0-9._-]+", "_", name)}"',
    }


def not_modified(headers: dict[str, str]) -> Response:
    kept = {name: value for name, value in headers.items() if name in ("ETag", "Cache-Control", "Vary")}
    return Response(status_code=304, headers=kept)
