"""Who may ask, and how much."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx
import pytest

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
            sent += 100
            yield b" " * 100

    async with serve(max_body=1024) as client:
        reply = await client.post("/generate/3", content=endless())
    assert reply.status_code == 413
    assert sent <= 1200


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
    monkeypatch.setenv("SAGAN_API_KEYS", "")
    assert Settings().api_keys == ()
