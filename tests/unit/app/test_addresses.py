"""What a proxy says of a caller, whom it is believed of, and the prefix."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Request
from pydantic import ValidationError

from app.addresses import address_of, counted_as
from app.main import create_app
from app.settings import Settings

LOOPBACK = "127.0.0.1"


async def ask(
    path: str = "/seen", peer: str = LOOPBACK, settings: dict[str, object] | None = None, **headers: str
) -> httpx.Response:
    """The answer of an app with a route that says how it sees its caller."""
    usual: dict[str, object] = {"redis_url": "redis://127.0.0.1:1/0"}
    app = create_app(Settings(**{**usual, **(settings or {})}))  # type: ignore[arg-type]

    async def taken_for(request: Request) -> dict[str, str]:
        return {
            "address": address_of(request),
            "scheme": request.url.scheme,
            "host": request.headers["host"],
            "root": request.scope["root_path"],
        }

    app.add_api_route("/seen", taken_for)
    transport = httpx.ASGITransport(app, client=(peer, 1))
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        return await client.get(path, headers={k.replace("_", "-"): v for k, v in headers.items()})


FORWARDED = {
    "X_Forwarded_For": "6.6.6.6, 203.0.113.9",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "evil.example, sagan.localhost",
    "X_Forwarded_Prefix": "/sagan/",
}


async def test_nobody_is_believed_by_default() -> None:
    seen = (await ask(settings={}, **FORWARDED)).json()
    assert seen == {"address": LOOPBACK, "scheme": "http", "host": "localhost", "root": ""}


async def test_a_trusted_proxy_is_believed() -> None:
    for trusted, peer in ((LOOPBACK, LOOPBACK), ("10.0.0.0/8, ::1", "10.1.2.3"), ("::1", "::1")):
        seen = (await ask(peer=peer, settings={"trusted_proxies": trusted}, **FORWARDED)).json()
        expected = {"address": "203.0.113.9", "scheme": "https", "host": "sagan.localhost", "root": "/sagan"}
        assert seen == expected
    other = (await ask(peer="10.1.2.3", settings={"trusted_proxies": LOOPBACK}, **FORWARDED)).json()
    assert other["address"] == "10.1.2.3"


@pytest.mark.parametrize(
    ("way", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::7]:4711", "2001:db8::/64"),
        ("2001:db8::7", "2001:db8::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("10.0.0.2, 10.0.0.3", "10.0.0.2"),
        ("203.0.113.9, unknown", LOOPBACK),
        ("", LOOPBACK),
        ("x" * 5000, LOOPBACK),
    ],
)
async def test_the_way_is_read_from_its_end(way: str, address: str) -> None:
    seen = await ask(settings={"trusted_proxies": "127.0.0.1,10.0.0.0/8"}, X_Forwarded_For=way)
    assert seen.json()["address"] == address


@pytest.mark.parametrize("text", ["proxy", "10.0.0.0/99", "*", "127.0.0.1:80"])
def test_a_proxy_that_is_no_network_is_a_wrong_setting(text: str) -> None:
    with pytest.raises(ValidationError, match="Write addresses or networks"):
        Settings(trusted_proxies=text)  # type: ignore[arg-type]


def test_one_machine_counts_once() -> None:
    assert counted_as("2001:db8::1") == counted_as("2001:db8::ffff") != counted_as("2001:db8:0:1::1")
    assert counted_as("::ffff:10.0.0.1") == counted_as("10.0.0.1") != counted_as("10.0.0.2")


@pytest.mark.parametrize("prefix", ["/sagan", "sagan", "/sagan/", "/a/b-c"])
async def test_the_prefix_may_be_taken_off_or_left(prefix: str) -> None:
    root = f"/{prefix.strip('/')}"
    for path in ("/seen", f"{root}/seen"):
        assert (await ask(path, settings={"root_path": prefix})).json()["root"] == root
    page = await ask(root, settings={"root_path": prefix})
    assert (page.status_code, page.headers["location"]) == (308, f"{root}/")
    slash = await ask(f"{root}/docs/", settings={"root_path": prefix})
    assert slash.headers["location"] == f"{root}/docs"
    servers = (await ask(f"{root}/openapi.json", settings={"root_path": prefix})).json()["servers"]
    assert [server["url"] for server in servers] == [root, f"{root}/v1"]
    missing = await ask(f"{root}/nowhere", settings={"root_path": prefix})
    assert missing.json()["instance"] == f"{root}/nowhere"


@pytest.mark.parametrize(
    "prefix", ["/jobs", "/static/x", "https://a.example", "/a b", "/a/../b", "/a//b", "/ä"]
)
def test_a_prefix_that_cannot_be_one_is_a_wrong_setting(prefix: str) -> None:
    with pytest.raises(ValidationError, match="prefix"):
        Settings(root_path=prefix)


async def test_a_prefix_that_is_none_is_not_believed() -> None:
    for prefix in ("//evil.example", "/jobs", "javascript:x"):
        seen = await ask(settings={"trusted_proxies": LOOPBACK}, X_Forwarded_Prefix=prefix)
        assert seen.json()["root"] in ("", "/evil.example")
