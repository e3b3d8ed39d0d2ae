"""Who may ask, and how much."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx
import pytest

from app.bodies import DROPPED
from app.security import WrongKeys
from app.settings import Settings

if TYPE_CHECKING:
    from tests.unit.app.conftest import ClientFactory


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://sagan.test.evil.example",
        "http://sagan.test:81",
        "http://[",
        "",
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_page_of_another_site_may_change_nothing(
    client: httpx.AsyncClient, method: str, origin: str
) -> None:
    path = "/generate/3" if method == "POST" else "/jobs/" + "A" * 22
    reply = await client.request(method, path, headers={"Origin": origin})
    assert reply.status_code == 403
    assert reply.json()["type"] == "urn:sagan:problem:foreign-origin"
    assert "SAGAN_ALLOWED_ORIGINS" in reply.json()["detail"]


@pytest.mark.parametrize("origin", ["http://sagan.test", "https://sagan.test", "HTTP://SAGAN.TEST"])
async def test_our_own_page_may_also_behind_a_proxy_that_ends_tls(
    client: httpx.AsyncClient, origin: str
) -> None:
    reply = await client.post("/generate/3", headers={"Origin": origin})
    assert reply.status_code == 503  # let in, as far as the broker that is not there


async def test_an_allowed_origin_may_ask_and_read(serve: ClientFactory) -> None:
    async with serve(allowed_origins="https://a.example, https://b.example/") as client:
        headers = {"Origin": "https://a.example"}
        reply = await client.post("/generate/3", headers=headers)
        assert reply.status_code == 503
        assert reply.headers["access-control-allow-origin"] == "https://a.example"
        preflight = headers | {"Access-Control-Request-Method": "POST"}
        assert (await client.options("/generate/3", headers=preflight)).status_code == 200
        refused = await client.post("/generate/3", headers={"Origin": "https://c.example"})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


async def test_a_declared_length_beyond_the_limit_is_refused(serve: ClientFactory) -> None:
    async with serve(max_body=1024) as client:
        for length in (1025, 10_000_000):
            reply = await client.post("/generate/3", content=b" " * length)
            assert reply.status_code == 413
            assert reply.json()["type"] == "urn:sagan:problem:body-too-large"
            assert "1024 bytes" in reply.json()["detail"]
        assert (await client.post("/generate/3", content=b" " * 1022 + b"{}")).status_code == 503


async def test_a_stream_is_cut_off_at_the_limit(serve: ClientFactory) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100_000
            yield b" " * 100_000

    async with serve(max_body=1024) as client:
        reply = await client.post("/generate/3", content=endless())
    assert reply.status_code == 413
    assert sent <= DROPPED + 200_000  # read and dropped, so that the client hears of it


async def test_a_length_that_lies_is_of_no_use(serve: ClientFactory) -> None:
    async def more_than_said() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with serve(max_body=1024) as client:
        reply = await client.post("/generate/3", content=more_than_said(), headers={"Content-Length": "10"})
    assert reply.status_code == 413


def test_settings_take_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_API_KEYS", "k-first, k-second,")
    monkeypatch.setenv("SAGAN_ALLOWED_ORIGINS", "https://a.example")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["k-first", "k-second"]
    assert settings.allowed_origins == ("https://a.example",)
    assert "k-first" not in repr(settings)
    for nothing in (",", " , ", " "):
        monkeypatch.setenv("SAGAN_API_KEYS", nothing)
        with pytest.raises(ValueError, match="no key"):
            Settings()
    monkeypatch.setenv("SAGAN_API_KEYS", "")
    assert Settings().api_keys == ()


async def test_the_key_is_looked_at_before_the_body(serve: ClientFactory) -> None:
    async with serve(api_keys="right") as client:
        for path in ("/generate/3", "/generate"):
            for body in (b"{", b"[]", b'{"count": 0}'):
                headers = {"Content-Type": "application/json"}
                assert (await client.post(path, content=body, headers=headers)).status_code == 401
                reply = await client.post(path, content=body, headers=headers | {"X-API-Key": "right"})
                assert reply.status_code == 422
        assert (await client.get("/jobs?limit=x")).status_code == 401
        assert (await client.get("/jobs/x/images/y")).status_code == 401
        assert (await client.get("/nowhere")).status_code == 404


async def test_wrong_keys_are_slowed_and_valid_ones_are_not(serve: ClientFactory) -> None:
    async with serve(api_keys="right", wrong_keys=5) as client:
        for _ in range(2):  # the minute may turn once
            replies = [await client.get("/jobs", headers={"X-API-Key": f"wrong-{n}"}) for n in range(6)]
            if replies[-1].status_code == 429:
                break
        assert replies[-1].status_code == 429
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        right = {"Authorization": "Bearer right"}
        assert (await client.get("/jobs", headers=right)).status_code == 503  # let in, as far as the broker
        assert (await client.get("/jobs")).status_code == 401  # no key is no wrong one


def test_wrong_keys_are_counted_for_a_bounded_number_of_addresses() -> None:
    wrong = WrongKeys(most=1)
    for number in range(3 * WrongKeys.ADDRESSES):
        wrong.count(str(number))
    assert len(wrong._counts) == WrongKeys.ADDRESSES


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"field-%d": 1' % n for n in range(4000)) + b"}",
        b'{"' + b"x" * 60_000 + b'": 1}',
        b'{"model": "' + b"x" * 60_000 + b'"}',
        b'{"count": "' + b"x" * 60_000 + b'"}',
        b'{"\\ud800": 1, "a\\u0000b": 2}',
        b"[" * 60_000,
        b"x" * 60_000,
    ],
    ids=["many", "long-name", "long-value", "long-number", "surrogate", "deep", "no-json"],
)
async def test_nonsense_is_answered_by_a_screenful(client: httpx.AsyncClient, body: bytes) -> None:
    reply = await client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert len(reply.content) < 6000
    assert len(reply.json()["errors"]) <= 8
    assert (await client.get("/jobs?" + "&".join(f"x{n}=1" for n in range(2000)))).status_code in (422, 503)


async def test_an_address_is_quoted_in_part(client: httpx.AsyncClient) -> None:
    for path in ("/" + "x" * 8000, "/jobs/" + "x" * 8000, "/jobs/a/images/" + "x" * 8000):
        assert len((await client.get(path)).content) < 2000


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
async def test_a_body_may_begin_with_a_byte_order_mark(client: httpx.AsyncClient, kind: str) -> None:
    reply = await client.post(
        "/generate/3", content=b'\xef\xbb\xbf{"count": 2}', headers={"Content-Type": kind}
    )
    assert reply.status_code == 503  # read, as far as the broker that is not there
