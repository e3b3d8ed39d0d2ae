"""One try to deliver a webhook: to an address that was looked at, in bounded time, for the status alone."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import BoundedSemaphore, Thread
from typing import Final

import httpx

from app.receivers import NotAllowed, Receiver, Receivers

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # name, port -> addresses; [] where there are none
CONNECTS: Final = 3.0  # seconds for one address
ADDRESSES: Final = 3  # of a name that are tried, one after the other
LONGEST_REASON: Final = 200  # characters
_ONCE: Final = httpx.Limits(max_connections=1, max_keepalive_connections=0)


@dataclass(frozen=True)
class Answer:
    """What came of a try."""

    status: int | None = None  # None: no answer came
    reason: str = ""  # why it was not delivered
    retry_after: float | None = None  # seconds that the receiver asks for

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Names:
    """Resolves names, in threads of its own.

    A name server that never answers holds its thread for as long as the system waits for one. Threads of the
    event loop are for drawings, and Python waits at its end for those of a pool.
    """

    def __init__(self, at_once: int = 64) -> None:
        self._free = BoundedSemaphore(at_once)

    async def resolve(self, name: str, port: int) -> Sequence[str]:
        """Every address of a name, as the system finds them; [] where there is none. Raises OSError."""
        if not self._free.acquire(blocking=False):
            raise OSError("too many names are being looked up")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def tell(addresses: list[str]) -> None:
            if not found.done():
                found.set_result(addresses)

        def look_up() -> None:
            try:
                answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
                addresses = [str(answer[4][0]) for answer in answers]
            except (OSError, UnicodeError):
                addresses = []
            finally:
                self._free.release()
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, addresses)

        Thread(target=look_up, daemon=True, name="names").start()
        return await found


class Poster:
    """Sends to receivers within the rules."""

    def __init__(
        self, receivers: Receivers, seconds: float, tls: ssl.SSLContext, resolve: Resolve | None = None
    ) -> None:
        """seconds: of a try, from the name to the status. resolve: None: as the system does."""
        self._receivers = receivers
        self._seconds = seconds
        self._tls = tls
        self._resolve = resolve or Names().resolve

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Try once."""
        try:
            async with asyncio.timeout(self._seconds):
                receiver = self._receivers.read(url)
                found = await self._resolve(self._receivers.lookup(receiver), receiver.port)
                addresses = self._receivers.check(receiver, found)
                return await self._send(receiver, addresses[:ADDRESSES], headers, body)
        except NotAllowed as error:
            return Answer(reason=str(error))
        except TimeoutError:
            return Answer(reason=f"no answer within {self._seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Answer(reason=_cut(f"no answer: {str(error) or type(error).__name__}"))

    async def _send(
        self, receiver: Receiver, addresses: Sequence[str], headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """To the first address that takes a connection. Raises httpx.HTTPError."""
        *others, last = addresses
        for address in others:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._send_to(address, receiver, headers, body)
        return await self._send_to(last, receiver, headers, body)

    async def _send_to(
        self, address: str, receiver: Receiver, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        # The URL has the address, so that no name is resolved again; Host and TLS have the name.
        request = httpx.Request(
            "POST",
            httpx.URL(
                scheme=receiver.scheme, host=address, port=receiver.port, raw_path=receiver.target.encode()
            ),
            headers={"Host": receiver.authority, **headers},
            content=body,
            extensions={
                "sni_hostname": receiver.host,
                "timeout": {"connect": CONNECTS, "read": None, "write": None, "pool": None},
            },
        )
        # A transport, not a client: it follows no redirect, keeps no cookie, asks no proxy.
        # One for each try: the next name at this address gets no connection whose certificate was another's.
        async with httpx.AsyncHTTPTransport(verify=self._tls, limits=_ONCE, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            await response.aclose()  # however long its body is
        return _answer(response)


def _answer(response: httpx.Response) -> Answer:
    status, reason = response.status_code, ""
    if 300 <= status < 400:
        reason = f"it answered {status}, and redirects are not followed"
    elif not 200 <= status < 300:
        reason = f"it answered {status}"
    return Answer(status, reason, _seconds(response.headers.get("retry-after", "")))


def _seconds(retry_after: str) -> float | None:
    """Of a header Retry-After: seconds, or a date."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
