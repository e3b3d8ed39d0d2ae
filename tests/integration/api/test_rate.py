"""What a caller may have computed: the units a minute, the headers that tell them, the highest priority."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from app.settings import Settings

if TYPE_CHECKING:
    from tests.integration.api.conftest import ClientFactory

WAIT = {"Prefer": "wait=30"}


async def within_a_minute(seconds: float = 15) -> None:
    """Wait for the turn of the minute, unless it is that far off."""
    left = 60 - time.time() % 60
    if left < seconds:
        await asyncio.sleep(left + 0.1)


def left(reply: httpx.Response) -> int:
    """Units that the caller may still spend, as the answer says."""
    assert re.fullmatch(r'"minute";q=\d+;w=60', reply.headers["ratelimit-policy"])
    found = re.fullmatch(r'"minute";r=(\d+);t=(\d+)', reply.headers["ratelimit"])
    assert found is not None
    assert 1 <= int(found[2]) <= 60
    return int(found[1])


async def test_all_that_computes_counts_and_the_rest_does_not(serve: ClientFactory, worker: object) -> None:
    await within_a_minute()
    async with serve(rate_limit=30, api_keys="rate-all") as client:
        client.headers["X-API-Key"] = "rate-all"
        made = await client.post("/generate/3", json={"count": 4, "seed": 5}, headers=WAIT)
        assert left(made) == 29
        links = made.json()["links"]
        for path in ("/jobs", "/models", links["self"], links["images"][0]):
            assert "ratelimit" not in (await client.get(path)).headers
        assert left(await client.get(links["images"][0] + "?size=64")) == 28
        grid = await client.get(links["grid"])
        assert left(grid) == 27
        again = await client.get(links["grid"], headers={"If-None-Match": grid.headers["etag"]})
        assert again.status_code == 304
        assert left(await client.get(links["grid"] + "?size=2048")) == 22  # 16 million pixels
        assert left(await client.get(links["attention"])) == 20  # the map and the drawing
        assert left(await client.get(links["attention"] + "/map")) == 19
        invalid = await client.post("/generate/3", json={"count": 0})
        assert invalid.status_code == 422
        unknown = await client.post("/generate/nothing-like-it")
        assert unknown.status_code == 404
        assert left(unknown) <= 18


async def test_beyond_the_limit_each_kind_is_refused_until_the_same_moment(
    serve: ClientFactory, worker: object
) -> None:
    await within_a_minute()
    async with serve(rate_limit=2, api_keys="rate-two-units") as client:
        client.headers["X-API-Key"] = "rate-two-units"
        links = (await client.post("/generate/3", headers=WAIT)).json()["links"]
        assert (await client.get(links["grid"])).status_code == 200
        for reply in (
            await client.post("/generate/3"),
            await client.get(links["grid"]),
            await client.get(links["images"][0] + "?size=64"),
            await client.get(links["attention"]),
            await client.get(links["attention"] + "/map"),
        ):
            assert reply.status_code == 429
            assert left(reply) == 0
            assert reply.headers["ratelimit"].endswith(f";t={reply.headers['retry-after']}")
        assert (await client.get(links["images"][0])).status_code == 200


async def test_what_costs_more_than_the_limit_can_be_had_by_who_has_spent_nothing(
    serve: ClientFactory, worker: object
) -> None:
    await within_a_minute()
    async with serve(api_keys="rate-large") as free, serve(rate_limit=3, api_keys="rate-large") as client:
        free.headers["X-API-Key"] = client.headers["X-API-Key"] = "rate-large"
        grid = (await free.post("/generate/3", json={"count": 4}, headers=WAIT)).json()["links"]["grid"]
        large = await client.get(f"{grid}?size=2048")
        assert large.status_code == 200
        assert left(large) == 0
        assert (await client.get(grid)).status_code == 429


async def test_without_a_limit_nothing_is_told(client: httpx.AsyncClient) -> None:
    assert "ratelimit" not in (await client.post("/generate/3")).headers


async def test_a_priority_above_the_keys_ceiling_is_refused(serve: ClientFactory, worker: object) -> None:
    keys = "low-key:priority=3,high-key:priority=9,usual-key"
    async with serve(api_keys=keys, max_priority=7) as client:
        for key, ceiling in (("low-key", 3), ("usual-key", 7)):
            headers = {"X-API-Key": key}
            reply = await client.post("/generate/3", json={"priority": ceiling + 1}, headers=headers)
            assert reply.status_code == 403
            assert reply.json()["type"] == "urn:sagan:problem:priority-too-high"
            assert f"priority {ceiling} at most" in reply.json()["detail"]
            taken = await client.post("/generate/3", json={"priority": ceiling}, headers=headers)
            assert taken.json()["spec"]["priority"] == ceiling
            usual = await client.post("/generate/3", headers=headers)
            assert usual.json()["spec"]["priority"] == min(5, ceiling)
        high = await client.post("/generate/3", json={"priority": 9}, headers={"X-API-Key": "high-key"})
        assert high.json()["spec"]["priority"] == 9


async def test_without_keys_the_service_has_a_ceiling(serve: ClientFactory, worker: object) -> None:
    async with serve(max_priority=6) as client:
        assert (await client.post("/generate/3", json={"priority": 7})).status_code == 403
        assert (await client.post("/generate/3", json={"priority": 6})).status_code == 202


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("secret:priority=10", "with 0 to 9"),
        ("secret:priority=", "with 0 to 9"),
        ("secret:priority=high", "with 0 to 9"),
        ("secret:prio=3", "KEY:priority=5"),
        (":priority=3", "KEY:priority=5"),
        ("secret:priority=1:priority=2", "KEY:priority=5"),
        ("secret:priority=1,secret:priority=2", "twice"),
        ("secret,secret:priority=2", "twice"),
    ],
)
def test_nonsense_after_a_key_is_refused_without_quoting_the_key(
    monkeypatch: pytest.MonkeyPatch, keys: str, says: str
) -> None:
    monkeypatch.setenv("SAGAN_API_KEYS", keys)
    with pytest.raises(ValueError, match=says) as caught:
        Settings()
    assert "secret" not in str(caught.value)


def test_a_key_may_hold_what_only_looks_like_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_API_KEYS", "a:b, bGlrZQ==, x=:, same, same")
    assert [key.get_secret_value() for key in Settings().api_keys] == [
        "a:b",
        "bGlrZQ==",
        "x=:",
        "same",
        "same",
    ]
