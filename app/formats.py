"""In which format a picture leaves: by `format` in the address, else by Accept."""

from collections.abc import Mapping
from typing import Final, Literal

from fastapi import Request

from app import negotiation
from app.errors import Invalid, NotAcceptable
from imaging.stills import Still

Moving = Literal["webp", "apng", "gif", "mp4", "strip"]

# the first is what a client gets that names none
STILLS: Final[Mapping[Still, str]] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
FILMS: Final[Mapping[Moving, str]] = {
    "webp": "image/webp",
    "apng": "image/apng",
    "gif": "image/gif",
    "mp4": "video/mp4",
}
ENDS: Final = {"jpeg": "jpg", "apng": "png", "strip": "png"}  # of a file's name, where not the format's own
NO_FFMPEG: Final = "MP4 needs ffmpeg: install ffmpeg on the API's machine, or ask for webp."


def still_of(request: Request, asked: Still | None, quality: int | None) -> Still:
    """The format of a picture. Raises NotAcceptable, Invalid."""
    found = asked or negotiation.chosen(request, STILLS)
    if found is None:
        raise _not_there(STILLS)
    if found == "png" and quality is not None:
        raise Invalid(
            "quality is for webp and jpeg: a PNG keeps every pixel. Leave it out, or add format=webp."
        )
    return found


def still_rather_than_json(request: Request) -> Still | None:
    """The format of the picture that a client wants more than JSON; None: JSON."""
    found = negotiation.chosen(request, STILLS)
    if found is None or not negotiation.wants(request, STILLS[found], rather_than="application/json"):
        return None
    return found


def film_of(request: Request, asked: Moving | None, *, with_mp4: bool) -> Moving:
    """The format of a film. with_mp4: it can be made here. Raises NotAcceptable."""
    if asked is not None:
        if asked == "mp4" and not with_mp4:
            raise NotAcceptable(NO_FFMPEG)
        return asked
    offered = {name: kind for name, kind in FILMS.items() if with_mp4 or name != "mp4"}
    found = negotiation.chosen(request, offered)
    if found is not None:
        return found
    if negotiation.chosen(request, FILMS) == "mp4":
        raise NotAcceptable(NO_FFMPEG)
    raise _not_there(offered)


def _not_there(offered: Mapping[Still, str] | Mapping[Moving, str]) -> NotAcceptable:
    kinds = ", ".join(offered.values())
    return NotAcceptable(
        f"There is {kinds}, and Accept takes none of them. Name one, or add ?format= instead."
    )


def varied(headers: dict[str, str], asked: object) -> dict[str, str]:
    """The headers, and that Accept decided, where no format was asked for in the address."""
    return headers if asked is not None else {**headers, "Vary": "Accept"}


def file_name(stem: str, kind: Still | Moving) -> str:
    return f"{stem}.{ENDS.get(kind, kind)}"
