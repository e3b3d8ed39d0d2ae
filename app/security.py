"""The guards: keys, wrong keys, and the headers of every response."""

import hashlib
import hmac
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import key_of
from app.addresses import address_of
from app.errors import Invalid, TooManyRequests, Unauthorised
from app.findings import LONGEST_NAME, cut
from jobs import logs

EVERYBODY = "everybody"  # owner of all jobs where no keys are set

# Our page runs nothing inline and loads nothing from elsewhere; with a key its images are blobs
_PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
# Swagger UI writes style attributes
_DOCS_POLICY = f"{_PAGE_POLICY}; style-src 'self' 'unsafe-inline'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class WrongKeys:
    """Counts wrong keys by address and minute. It never refuses a valid key, whoever shares its address."""

    ADDRESSES: Final = 4096  # kept; the one that was heard least recently is forgotten first

    def __init__(self, most: int) -> None:
        self._most = most  # wrong keys a minute
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()  # address -> minute, wrong keys in it

    def count(self, address: str) -> None:
        """Count one of `address`; raises TooManyRequests beyond the limit."""
        now = int(time.time())
        minute, count = self._counts.pop(address, (0, 0))
        count = count + 1 if minute == now // 60 else 1
        self._counts[address] = (now // 60, count)
        if len(self._counts) > self.ADDRESSES:
            self._counts.popitem(last=False)
        if count > self._most:
            raise TooManyRequests(
                f"This address has sent {self._most} wrong keys in this minute. A valid one is still taken.",
                retry_after=60 - now % 60,
            )


class KeyedRoute(APIRoute):
    """A route that looks at the key before it reads anything else, and takes no unknown query parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = [
            field.alias
            for field in get_flat_params(self.dependant)
            # the fields of a model of query parameters do not say where they are
            if getattr(field.field_info, "in_", ParamTypes.query) == ParamTypes.query
        ]

        async def handle_keyed(request: Request) -> Response:
            owner_of(request, request.app.state.settings.api_keys)
            logs.note({"key": key_of(request.scope)})
            if request.scope["query_string"]:
                _check_names(
                    [name for name, _ in request.query_params.multi_items()],
                    known,
                    has_body=self.body_field is not None,
                )
            return await handle(request)

        return handle_keyed


def _check_names(given: Sequence[str], known: Sequence[str], *, has_body: bool) -> None:
    """Raises Invalid for a query parameter that the route does not have, or is given twice."""
    for name, times in Counter(given).items():
        if name in known and times == 1:
            continue
        hint = f"It takes {', '.join(known)}." if known else "It takes none."
        if has_body:
            hint += " What is to be made stands in the body, as JSON."
        at, message = f"query.{cut(name, LONGEST_NAME)}", f"There is no such parameter here. {hint}"
        if name in known:
            message = f"It is given {times} times. Give it once."
        raise Invalid(f"{at}: {message}", errors=[{"at": at, "message": message}])


def owner_of(request: Request, keys: Sequence[SecretStr]) -> str:
    """The caller as a name derived from the key, which itself is never stored; EVERYBODY without keys.

    Raises Unauthorised where keys are set and the request carries none of them, and TooManyRequests after too
    many wrong ones.
    """
    if not keys:
        return EVERYBODY
    owner: str | None = request.scope.get("sagan.owner")
    if owner is None:
        owner = request.scope["sagan.owner"] = _read_key(request, keys)
    return owner


def _read_key(request: Request, keys: Sequence[SecretStr]) -> str:
    given = request.headers.get("x-api-key", "")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not given and scheme.lower() == "bearer":
        given = token.strip()
    asked = hashlib.sha256(given.encode()).digest()
    # every key is compared, each in constant time: the time taken tells nothing about which one was near
    matches = [
        hmac.compare_digest(asked, hashlib.sha256(key.get_secret_value().encode()).digest()) for key in keys
    ]
    if any(matches):
        return owner_named(given)
    client = request.client.host if request.client else ""
    logs.AUDIT.warning("key refused", extra={"reason": "unknown" if given else "absent", "client": client})
    if given:
        wrong_keys: WrongKeys = request.app.state.wrong_keys
        wrong_keys.count(address_of(request))
        raise Unauthorised("This key is none of this service's. Look for a letter too many or too few.")
    raise Unauthorised("Send a valid key as X-API-Key, or as Authorization: Bearer.")


def owner_named(key: str) -> str:
    """The name under which the jobs of a key are kept; it does not tell the key."""
    return hashlib.sha256(b"owner:" + key.encode()).hexdigest()[:32]


class ResponseHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp, *, shared: bool) -> None:
        self.app = app
        # shared: pages of the allowed origins may embed our images
        added = _HEADERS | ({"Cross-Origin-Resource-Policy": "cross-origin"} if shared else {})
        self._added = _raw(added | {"Content-Security-Policy": _PAGE_POLICY})
        self._docs = _raw(added | {"Content-Security-Policy": _DOCS_POLICY})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        added = self._docs if scope.get("path", "").endswith("/docs") else self._added

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in added if header[0] not in given),
                ]
                if message["status"] == 307:
                    message["headers"] = [_within(header) for header in message["headers"]]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def _within(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Starlette sends /docs/ on to a whole URL, whose scheme may be a proxy's: the path is enough."""
    name, value = header
    if name != b"location" or b"://" not in value:
        return header
    return name, b"/" + value.split(b"://", 1)[1].partition(b"/")[2]


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
