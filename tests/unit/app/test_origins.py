"""Whose pages may ask: hosts and origins in every spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from pydantic import ValidationError

from app.main import create_app
from app.origins import read_host, read_origin, read_pattern
from app.settings import Settings

if TYPE_CHECKING:
    from tests.unit.app.conftest import ClientFactory

NOBODY = "redis://127.0.0.1:1/0"


async def status(host: str, server: str = "127.0.0.1", method: str = "GET", **settings: object) -> int:
    """Of a request that came to the address `server` under the name `host`."""
    app = create_app(Settings(redis_url=NOBODY, **settings))  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url=f"http://{server}:8000")
    async with app.router.lifespan_context(app), client:
        reply = await client.request(method, "/health/live", headers={"Host": host})
    if reply.status_code == 403 and method != "HEAD":
        assert reply.json()["type"] == "urn:sagan:problem:foreign-host"
        assert "SAGAN_ALLOWED_HOSTS" in reply.json()["detail"]
    return reply.status_code


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "a.b.localhost:8000",
        "localhost.",
        "127.0.0.1:9",
        "127.9.8.7",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "0.0.0.0:8000",
        "[::ffff:127.0.0.1]",
    ],
)
async def test_names_of_this_machine_are_always_allowed(host: str) -> None:
    assert await status(host) == 200
    assert await status(host, allowed_hosts="a.example") == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[2001:db8::1]",
        "xn--fa-hia.example",
        "a_b.example",
    ],
)
async def test_a_foreign_name_is_refused_without_keys(host: str) -> None:
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        assert await status(host, method=method) == 403


async def test_an_address_is_allowed_where_the_connection_came_over_a_network() -> None:
    assert await status("172.18.0.3:8000", "172.18.0.3") == 200
    assert await status("192.168.1.5", "172.18.0.3") == 200
    assert await status("evil.example", "172.18.0.3") == 403


async def test_with_keys_every_name_is_allowed_until_names_are_set() -> None:
    assert await status("any.example", api_keys="k") == 200
    assert await status("any.example", api_keys="k", allowed_hosts="a.example") == 403


@pytest.mark.parametrize(
    ("allowed", "host", "expected"),
    [
        ("a.example", "A.Example.:8000", 200),
        ("A.EXAMPLE", "a.example", 200),
        ("a.example", "b.a.example", 403),
        ("*.a.example", "b.a.example", 200),
        ("*.a.example", "c.b.a.example", 200),
        ("*.a.example", "a.example", 403),
        ("*.a.example", "evila.example", 403),
        ("bücher.example", "xn--bcher-kva.example", 200),
        ("10.0.0.1, 2001:DB8::1", "[2001:db8:0::1]:80", 200),
        ("*", "evil.example", 200),
    ],
)
async def test_allowed_hosts(allowed: str, host: str, expected: int) -> None:
    assert await status(host, allowed_hosts=allowed) == expected


@pytest.mark.parametrize(
    "host", ["", "a b", "http://a", "a/b", "a@b", "[::1", "a:99999", "999.1.1.1", "a..b"]
)
async def test_a_host_that_is_none_is_told_so(host: str) -> None:
    assert await status(host, allowed_hosts="*") == 400


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://a.example", "https://a.example"),
        ("https://a.example/", "https://a.example"),
        ("HTTPS://A.Example", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://a.example:8080/", "http://a.example:8080"),
        ("http://[2001:DB8:0::1]:8080", "http://[2001:db8::1]:8080"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://faß.example", "https://xn--fa-hia.example"),
        ("http://localhost:3000", "http://localhost:3000"),
    ],
)
def test_an_origin_has_one_spelling(text: str, origin: str) -> None:
    assert read_origin(text) == origin
    assert Settings(allowed_origins=f" {text} ,").allowed_origins == (origin,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "a.example",
        "https://",
        "https://a.example/path",
        "https://a.example?x",
        "https://u@a.example",
        "null",
        "ftp://a.example",
        "https://*.example",
        "https://a.example:0",
        "https://a.example:x",
        "https://[::1",
        "https://-a.example",
        "https:a.example",
        "*.example",
    ],
)
def test_an_origin_that_is_none_is_a_wrong_setting(text: str) -> None:
    with pytest.raises(ValidationError, match=r"allowed_origins\n.*(origin such as|host)"):
        Settings(allowed_origins=text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["https://a.example", "a.example:80", "a.example/x", "*.*.example", "a b", "**"]
)
def test_a_host_that_is_none_is_a_wrong_setting(text: str) -> None:
    with pytest.raises(ValidationError, match="without scheme and port"):
        Settings(allowed_hosts=text)  # type: ignore[arg-type]


def test_hosts_have_one_spelling() -> None:
    assert read_host("A.Example.") == "a.example"
    assert read_pattern("::1") == "[::1]"
    assert read_pattern("*.BÜCHER.example") == "*.xn--bcher-kva.example"


@pytest.mark.parametrize("allowed", ["https://a.example/", "HTTPS://A.EXAMPLE:443", "*"])
async def test_the_check_and_the_headers_for_browsers_read_the_setting_alike(
    serve: ClientFactory, allowed: str
) -> None:
    async with serve(allowed_origins=allowed) as client:
        headers = {"Origin": "https://a.example"}
        reply = await client.post("/generate/3", headers=headers)
        assert reply.status_code == 503  # let in, as far as the broker that is not there
        shared = "*" if allowed == "*" else "https://a.example"
        assert reply.headers["access-control-allow-origin"] == shared
        ask = headers | {
            "Access-Control-Request-Method": "DELETE",
            "Access-Control-Request-Headers": "x-api-key",
        }
        preflight = await client.options("/jobs/x", headers=ask)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == shared
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == "x-api-key"


async def test_a_foreign_page_is_refused_before_it_asks(serve: ClientFactory) -> None:
    async with serve(allowed_origins="https://a.example") as client:
        ask = {"Origin": "https://b.example", "Access-Control-Request-Method": "POST"}
        assert (await client.options("/generate/3", headers=ask)).status_code == 403
        reply = await client.get("/health/live", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", ["http://sagan.test:80", "https://sagan.test:443", "http://SAGAN.test"])
async def test_our_own_page_may_spell_out_the_port(client: httpx.AsyncClient, origin: str) -> None:
    assert (await client.post("/generate/3", headers={"Origin": origin})).status_code == 503
