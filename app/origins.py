"""Whose pages may ask: names of hosts, origins, and the middleware that compares both with the settings.

A browser tells the truth about two things: Host is the name in its address bar, and Origin is the site of the
page that asks. A foreign Origin is a page of another site. A foreign Host is a name of somebody else's that
was made to point here (DNS rebinding); to the browser such a page and this service are one site.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import idna
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.addresses import read_address
from app.bodies import refuse
from app.errors import BadHost, ForeignHost, ForeignOrigin, Problem, shorten

_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\\]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/?#]*)/?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")  # a browser resolves names with underscores too


def read_host(text: str) -> str:
    """One spelling for each host: lower case, punycode, an address in its short form, no final dot.

    Raises ValueError for a text that names no host.
    """
    name = text.removesuffix(".").lower()
    if name.startswith("[") and name.endswith("]"):
        return f"[{ipaddress.IPv6Address(name[1:-1])}]"
    if re.fullmatch(r"[0-9.]+", name):
        return str(ipaddress.IPv4Address(name))
    if not name.isascii():
        name = idna.encode(name, uts46=True).decode()  # IDNAError is a ValueError
    if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ValueError(f"{text[:80]!r} is no name of a host")
    return name


def read_authority(text: str) -> tuple[str, int | None]:
    """A host and its port as Host has them; None: no port is told. Raises ValueError."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:80]!r} is no host with or without a port")
    port = None if found["port"] is None else int(found["port"])
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{port} is no port of a host")
    return read_host(found["host"]), port


def read_origin(text: str) -> str:
    """An origin as browsers write it: https://a.example, without a default port. Raises ValueError."""
    found = _ORIGIN.fullmatch(text.strip().lower())
    if found is None or found["scheme"] not in _DEFAULT_PORTS:
        raise ValueError(f"{text[:80]!r} is no origin such as https://a.example or http://a.example:8080")
    host, port = read_authority(found["authority"])
    standard = port in (None, _DEFAULT_PORTS[found["scheme"]])
    return f"{found['scheme']}://{host}" if standard else f"{found['scheme']}://{host}:{port}"


def read_pattern(text: str) -> str:
    """A host of SAGAN_ALLOWED_HOSTS: a name, an address, *.example.com for all below it, or *.

    Raises ValueError.
    """
    name = text.strip()
    if name == "*":
        return name
    try:
        if name.startswith("*."):
            return f"*.{read_host(name[2:])}"
        return read_host(f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name)
    except ValueError as error:
        raise ValueError(
            f"{name[:80]!r} is no host. Write names without scheme and port, such as sagan.example.com, "
            "*.example.com or *"
        ) from error


def is_local(host: str) -> bool:
    """Whether `host`, as read_host spells it, is this machine whatever a name server says."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = read_address(host.strip("[]"))
    return address is not None and (address.is_loopback or address.is_unspecified)


class Origins(CORSMiddleware):
    """Refuses foreign hosts and foreign pages, and tells browsers which other pages may read the answers.

    hosts: as read_pattern gives them. Names of this machine are allowed beside them, and so are addresses
    where the connection came over a network: no name server can make an address mean another machine. Without
    any, and while with_keys(), every host is allowed: a page of another site has no key.
    origins: as read_origin gives them, or "*".
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Sequence[str], origins: Sequence[str], with_keys: Callable[[], bool]
    ) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
            allow_private_network=True,
        )
        self._any_host, self._none_named, self._with_keys = "*" in hosts, not hosts, with_keys
        self._names = {host for host in hosts if not host.startswith("*")}
        self._endings = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._judged = lru_cache(256)(self._judge_host)  # the same few hosts come with every request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        hosts, origin, preflight = [], None, False
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"access-control-request-method":
                preflight = True
        server = scope.get("server")
        free = self._any_host or (self._none_named and self._with_keys())
        problem = self._judged(tuple(hosts), scope["http_version"], server[0] if server else None, free)
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS") or preflight
        if problem is None and origin is not None and changes:
            problem = self._judge_origin(origin, hosts)
        if problem is not None:
            await refuse(problem, scope, receive, send)
        elif self.allow_origins:
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether the settings name `origin`, however it is spelled."""
        try:
            return self.allow_all_origins or read_origin(origin) in self.allow_origins
        except ValueError:
            return False

    def _judge_host(
        self, given: tuple[bytes, ...], version: str, server: str | None, free: bool
    ) -> Problem | None:
        """free: every name is allowed."""
        if not given and version == "1.0":
            return None  # no browser of today
        try:
            (only,) = given
            host, _ = read_authority(only.decode("latin-1"))
        except ValueError:
            return BadHost("Send one Host header with the name or address of this service.")
        if free or host in self._names or host.endswith(self._endings) or is_local(host):
            return None
        if read_address(host.strip("[]")) and server and not is_local(server):
            return None
        return ForeignHost(
            f"This service does not answer to the name {shorten(host)}. Ask at http://localhost, or add the "
            "name to SAGAN_ALLOWED_HOSTS."
        )

    def _judge_origin(self, origin: str, hosts: Sequence[bytes]) -> Problem | None:
        if self.is_allowed_origin(origin) or self._is_ours(origin, hosts):
            return None
        return ForeignOrigin(
            "Pages of this origin may not ask here. Serve the page from this host, or add its origin to "
            "SAGAN_ALLOWED_ORIGINS."
        )

    def _is_ours(self, origin: str, hosts: Sequence[bytes]) -> bool:
        try:
            # with the origin's scheme for both: a proxy that ends TLS makes ours http
            scheme = origin.partition(":")[0]
            return read_origin(origin) == read_origin(f"{scheme}://{hosts[0].decode('latin-1')}")
        except (ValueError, IndexError):
            return False
