"""Addresses: the caller's, and what a trusted proxy says of it."""

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.prefix import put_under, read_prefix

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_address(text: str) -> Address | None:
    """An address in any spelling; None for anything else. IPv4 inside IPv6 is IPv4."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


@lru_cache(4096)
def counted_as(host: str) -> str:
    """The name under which limits count an address: one for all of an IPv6 /64, which one machine has."""
    address = read_address(host)
    if address is None:
        return host[:64]
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def address_of(request: Request) -> str:
    """The caller's address as limits count it; a trusted proxy's word for it. "": there is none."""
    return counted_as(request.client.host) if request.client else ""


class Proxies:
    """Takes the client's address, scheme, host and path prefix from X-Forwarded-* of trusted proxies.

    Anybody may write these headers: they are worth something only where the connection comes from a proxy
    that sets or removes them. Each such proxy appends, so the last value is its own.
    """

    def __init__(self, app: ASGIApp, *, trusted: Sequence[Network]) -> None:
        self.app = app
        self._trusted = trusted
        self._trusts = lru_cache(4096)(self._look_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client and self._trusts(client[0]):
            self._believe(scope)
        await self.app(scope, receive, send)

    def _look_up(self, host: str) -> bool:
        address = read_address(host)
        return address is not None and any(address in network for network in self._trusted)

    def _believe(self, scope: Scope) -> None:
        scope["sagan.proxied"] = True
        told: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name.startswith(b"x-forwarded-"):
                before = f"{told[name]}," if name in told else ""
                told[name] = before + value.decode("latin-1")
        if way := told.get(b"x-forwarded-for"):
            scope["client"] = (self._client(way) or scope["client"][0], 0)
        if (scheme := _last(told.get(b"x-forwarded-proto", "")).lower()) in ("http", "https"):
            scope["scheme"] = scheme
        if host := _last(told.get(b"x-forwarded-host", "")):
            others = [header for header in scope["headers"] if header[0] != b"host"]
            scope["headers"] = [(b"host", host.encode("latin-1")), *others]
        with contextlib.suppress(ValueError):  # no prefix: the proxy passes on what a client wrote
            put_under(scope, read_prefix(_last(told.get(b"x-forwarded-prefix", ""))))

    def _client(self, way: str) -> str | None:
        """The last address on the way that is no trusted proxy; None where the last word is no address."""
        found = None
        for step in _backwards(way):
            if step is None:
                break
            found = step
            if not self._trusts(step):
                break
        return found


def _last(values: str) -> str:
    return values.rpartition(",")[2].strip()


def _backwards(way: str) -> Iterator[str | None]:
    """The addresses of X-Forwarded-For, the nearest first, without ports; None for what is no address."""
    for step in reversed(way.split(",")):
        text = step.strip()
        if with_port := re.fullmatch(r"\[(.+)\](?::\d+)?|([0-9.]+):\d+", text):
            text = with_port[1] or with_port[2]
        address = read_address(text)
        yield None if address is None else str(address)
