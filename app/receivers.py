"""Where webhooks may go: which URLs, and which addresses their names may have.

Whoever orders a job names a URL that this process then asks. Unguarded, that asks inside its own network on
behalf of strangers (SSRF). So a URL has one plain form, its name is resolved once, every address that it has
must be public, and the connection goes to an address that was looked at, never to the name again.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.addresses import Address, Network
from app.orders import LONGEST_URL
from app.origins import read_authority, read_pattern

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#\\]*)(?P<rest>.*)", re.DOTALL
)
# what RFC 3986 lets stand in a path and a query; anything else is percent-encoded
_REST: Final = re.compile(r"(?:[/?](?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*)?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")  # the last label of what resolvers read as an IPv4 address
# names that mean this machine or this network wherever they are asked (RFC 6761, 6762, 8375, 9476, 7686)
_INSIDE: Final = ("localhost", "local", "internal", "home.arpa", "alt", "onion", "lan")
_PORTS: Final = {"https": 443, "http": 80}
NOT_PUBLIC: Final = "it does not resolve to public addresses alone"

# IANA's registries of special addresses. Not `is_global` of `ipaddress`: it differs between versions of
# Python, and calls multicast and embedded addresses global.
_NOT_PUBLIC_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # the host of every virtual machine in Azure
        ),
    )
)
# Global unicast alone: what lies outside is loopback, link-local, private (fc00::/7), multicast, or has an
# IPv4 address inside (::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48).
_PUBLIC_6: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        # IETF's own with Teredo; documentation; 6to4, with an IPv4 address inside; AS112; documentation
        ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
)


class NotAllowed(ValueError):
    """A webhook may not go there; the message says what to do."""


@dataclass(frozen=True)
class Receiver:
    """A URL that a webhook may go to, as far as one can tell before its name is resolved."""

    scheme: str
    host: str  # as TLS and DNS have it: lower case, punycode, no final dot; an address without brackets
    port: int
    target: str  # path and query
    named: bool  # the operator has named it: its addresses need not be public

    @property
    def authority(self) -> str:
        """As the header Host has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        return f"{self.origin}{self.target}"


class Receivers:
    """The rules of one service."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        """allowed: names and networks that need not be public; see read_allowed."""
        read = [read_allowed(word) for word in allowed]
        self._networks = [one for one in read if not isinstance(one, str)]
        self._names = [one for one in read if isinstance(one, str)]

    def read(self, url: str) -> Receiver:
        """Raises NotAllowed."""
        if len(url) > LONGEST_URL:
            raise NotAllowed(f"it has {len(url)} characters, and may have {LONGEST_URL}")
        found = _URL.fullmatch(url)
        if found is None:
            raise NotAllowed("write a whole URL, such as https://example.com/hook")
        scheme, rest = found["scheme"].lower(), found["rest"]
        if scheme not in _PORTS:
            raise NotAllowed("write https:// before the name of the receiver")
        if "@" in found["authority"]:
            raise NotAllowed("leave out user and password: the signature says who sends it")
        if "#" in rest:
            raise NotAllowed("leave out what begins with #: it is never sent")
        if not _REST.fullmatch(rest):
            raise NotAllowed("percent-encode what is neither a letter, a digit nor punctuation of URLs")
        host, port = _read_host(found["authority"])
        receiver = Receiver(
            scheme,
            host,
            port or _PORTS[scheme],
            f"/{rest}" if not rest.startswith("/") else rest,
            any(host == name or (name[:2] == "*." and host.endswith(name[1:])) for name in self._names),
        )
        self._check_url(receiver)
        return receiver

    def _check_url(self, receiver: Receiver) -> None:
        """What can be told before the name is resolved."""
        if (address := _address(receiver.host)) is not None:
            self.check(receiver, [str(address)])
            return
        if receiver.named or self._networks:  # its addresses decide
            return
        _check_public(receiver)
        labels = receiver.host.split(".")
        if len(labels) == 1 or any(f".{receiver.host}".endswith(f".{name}") for name in _INSIDE):
            raise NotAllowed("its name is none of the public internet")

    def lookup(self, receiver: Receiver) -> str:
        """The name to resolve."""
        # absolute: a search list of the machine's must not make another name of it
        is_public = not (receiver.named or self._networks or _address(receiver.host))
        return f"{receiver.host}." if is_public else receiver.host

    def check(self, receiver: Receiver, addresses: Sequence[str]) -> list[str]:
        """The addresses to connect to, each once. Raises NotAllowed unless all of them may be asked."""
        for text in addresses:
            address = _address(text)
            if receiver.named or (address and any(address in network for network in self._networks)):
                continue
            if address is None or not is_public(address):
                # not which: the names inside a network are nobody else's business, nor that there are any
                raise NotAllowed(NOT_PUBLIC)
            _check_public(receiver)
        if not addresses:
            raise NotAllowed(NOT_PUBLIC)
        return list(dict.fromkeys(addresses))


def read_allowed(word: str) -> Network | str:
    """A network, an address, a name or *.example.com for all names below it. Raises ValueError."""
    try:
        return ipaddress.ip_network(word, strict=False)
    except ValueError:
        pass
    if word == "*" or "/" in word:
        raise ValueError(
            f"{word[:80]!r} is no name and no network. Write receivers that need not be public, such as "
            "10.1.2.0/24, hooks.example.com or *.example.com"
        )
    return read_pattern(word)


def is_public(address: Address) -> bool:
    """Whether it is one that anybody on the internet may be asked at."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return (
        address.scope_id is None
        and address in _PUBLIC_6
        and not any(address in network for network in _NOT_PUBLIC_6)
    )


def _read_host(authority: str) -> tuple[str, int | None]:
    """Raises NotAllowed."""
    try:
        host, port = read_authority(authority)
    except ValueError as error:
        raise NotAllowed(
            "write a name, or an address as 203.0.113.7 or [2001:db8::7], and a port or none"
        ) from error
    host = host.strip("[]")
    # 127.1, 0x7f.1, 2130706433: resolvers take them for addresses; read_authority takes but one form of these
    if _address(host) is None and _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise NotAllowed("write an address as four decimal numbers")
    return host, port


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _check_public(receiver: Receiver) -> None:
    """What is asked of a receiver outside. Raises NotAllowed."""
    if receiver.scheme != "https":
        raise NotAllowed("it must begin with https://")
    # below 1024 stand mail, shells and the like, which want no webhooks
    if receiver.port != 443 and receiver.port < 1024:
        raise NotAllowed("its port must be 443, or 1024 to 65535")
