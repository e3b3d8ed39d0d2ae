"""Prefer and Accept, as their RFCs have them."""

from __future__ import annotations

import pytest

from app.negotiation import cancels_on_disconnect, preferred_wait, quality


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
