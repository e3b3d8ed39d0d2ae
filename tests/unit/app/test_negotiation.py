"""Prefer and Accept, as their RFCs have them."""

from __future__ import annotations

import pytest
from fastapi import Request

from app.formats import FILMS, STILLS, still_rather_than_json
from app.negotiation import cancels_on_disconnect, chosen, preferred_wait, quality


@pytest.mark.parametrize(
    ("prefers", "seconds"),
    [
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (["wait=10; foo=bar"], 10),
        (["wait=3, wait=20"], 3),  # RFC 7240: the first one counts
        (["wait=0"], 0),
        (["wait=61"], 60),
        (["wait=" + "9" * 5000], 60),
        (["wait=000000000000000005"], 5),
        (["wait"], None),
        (["wait=-5"], None),
        (["wait=1.5"], None),
        (["wait=²"], None),
        (["await=5"], None),
        ([], None),
    ],
)
def test_prefer_wait(prefers: list[str], seconds: int | None) -> None:
    assert preferred_wait(prefers, at_most=60) == seconds


@pytest.mark.parametrize(
    ("prefers", "cancels"),
    [
        (["wait=10, on-disconnect=cancel"], True),
        (["wait=10", 'On-Disconnect = "cancel"; why=none'], True),
        (["wait=10"], False),
        (["on-disconnect=keep"], False),
        (["on-disconnect"], False),
        (["cancel"], False),
        ([], False),
    ],
)
def test_prefer_on_disconnect(prefers: list[str], cancels: bool) -> None:
    assert cancels_on_disconnect(prefers) is cancels


@pytest.mark.parametrize(
    ("accept", "png", "json"),
    [
        ("", 1, 1),
        ("*/*", 1, 1),
        ("image/png", 1, 0),
        ("image/*;q=0.5, application/json", 0.5, 1),
        ("image/png;q=0.5, image/*;q=0.9", 0.5, 0),
        ("image/png;q=0, */*;q=0.1", 0, 0.1),
        ("IMAGE/PNG ; Q=0.25", 0.25, 0),
        ("image/png;q=nonsense", 1, 0),
        (",,;;", 0, 0),
    ],
)
def test_quality(accept: str, png: float, json: float) -> None:
    assert quality(accept, "image/png") == png
    assert quality(accept, "application/json") == json


CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
CHROME_PAGE = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
FIREFOX_OF_OLD = "image/avif,image/webp,*/*"
FIREFOX_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
SAFARI = (
    "image/webp,image/avif,image/jxl,image/heic,image/heic-sequence,video/*;q=0.8,image/png,image/svg+xml,"
    "image/*;q=0.8,*/*;q=0.5"
)
SAFARI_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
FIREFOX_VIDEO = "video/webm,video/ogg,video/*;q=0.9,application/ogg;q=0.7,audio/*;q=0.6,*/*;q=0.5"


def asking(accept: str | None) -> Request:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "png"),
        ("*/*", "png"),  # curl, httpx, fetch
        (CHROME, "png"),
        (CHROME_PAGE, "png"),
        (FIREFOX, "png"),
        (FIREFOX_OF_OLD, "png"),
        (FIREFOX_PAGE, "png"),
        (SAFARI, "png"),
        (SAFARI_PAGE, "png"),
        ("image/*", "png"),
        ("image/png", "png"),
        ("image/webp, image/png", "png"),
        ("image/webp, */*;q=0.1", "png"),
        ("image/webp", "webp"),
        ("IMAGE/WEBP ; q=0.3", "webp"),
        ("image/jpeg", "jpeg"),
        ("image/webp, image/png;q=0.9", "webp"),
        ("image/webp, image/png;q=0.9, */*;q=0.8", "webp"),
        ("image/webp;q=0.5, image/jpeg", "jpeg"),
        ("image/webp, image/jpeg", "webp"),
        ("image/*, image/png;q=0", "webp"),
        ("image/avif", None),
        ("text/html", None),
        ("image/png;q=0", None),
        ("*/*;q=0", None),
    ],
)
def test_a_picture_is_a_png_unless_another_is_preferred_by_name(accept: str | None, kind: str | None) -> None:
    assert chosen(asking(accept), STILLS) == kind


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "webp"),
        (CHROME, "webp"),
        (FIREFOX, "webp"),
        (SAFARI, "webp"),
        ("image/apng", "apng"),
        ("image/gif", "gif"),
        ("video/mp4", "mp4"),
        ("video/*", "mp4"),
        (FIREFOX_VIDEO, "webp"),
        ("image/gif;q=0.9, image/apng", "apng"),
        ("image/png", None),
    ],
)
def test_a_film_is_a_webp_unless_another_is_preferred_by_name(accept: str | None, kind: str | None) -> None:
    assert chosen(asking(accept), FILMS) == kind


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", None),
        ("*/*", None),
        (None, None),
        (CHROME_PAGE, None),
        ("image/*", "png"),
        ("image/webp", "webp"),
        ("image/jpeg, application/json;q=0.5", "jpeg"),
        ("image/jpeg, application/json", None),
    ],
)
def test_a_job_is_json_unless_its_picture_is_preferred(accept: str | None, kind: str | None) -> None:
    assert still_rather_than_json(asking(accept)) == kind
