"""The guards: keys, wrong keys, and the headers of every response."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Count
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.addresses import address_of
from app.errors import Invalid, MissingScope, NoBroker, TooManyRequests, Unauthorised
from app.findings import LONGEST_NAME, cut
from app.keyring import OPEN, Key, Keyring
from jobs import logs
from jobs.api_keys import SCOPES
from jobs.api_keys import Scope as KeyScope

KEY: Final = "sagan.key"  # in the scope of a request: the Key of who asks

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


class Gate:
    """Who comes in: the keys, the wrong ones, and the counts of those that are refused."""

    def __init__(self, keyring: Keyring, wrong_keys: WrongKeys, registry: CollectorRegistry) -> None:
        self.keyring = keyring
        self._wrong = wrong_keys
        self._refused = Count(
            "sagan_keys_refused",
            "Requests refused for their key: absent, unknown, expired, revoked, scope",
            ["reason"],
            registry=registry,
        )

    async def admit(self, request: Request, needed: KeyScope) -> Key:
        """The request's key. Raises Unauthorised, MissingScope, TooManyRequests; NoBroker, KeysUnread."""
        try:
            key = await self.keyring.admit(_given(request))
        except NoBroker:
            if needed != "metrics":
                raise
            return OPEN  # what it tells is nobody's, and that the broker is away
        except Unauthorised as refused:
            if refused.reason != "absent":
                self._wrong.count(address_of(request))
            self._note(request, refused.reason, refused.key)
            raise
        if needed not in key.scopes:
            self._note(request, "scope", key.id)
            raise MissingScope(needed, [scope for scope in SCOPES if scope in key.scopes])
        return key

    def _note(self, request: Request, reason: str, key: str) -> None:
        self._refused.labels(reason).inc()
        if reason == "absent":
            return  # a browser that opens the page: nothing was tried
        if key:  # the request's own line has it too
            logs.note({"key": key})
        about = {"reason": reason, "key": key, "address": address_of(request)}
        about["request_id"] = request.scope.get("request_id", "")
        logs.AUDIT.warning("key refused", extra=about)


class KeyedRoute(APIRoute):
    """A route that looks at the key before it reads anything else, and takes no unknown query parameters."""

    @property
    def needed(self) -> KeyScope:
        """The scope that a key must have."""
        scope: KeyScope | None = getattr(self.endpoint, "scope", None)
        if scope is not None:
            return scope
        return "read" if "GET" in (self.methods or ()) else "generate"

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, needed = super().get_route_handler(), self.needed
        known = [
            field.alias
            for field in get_flat_params(self.dependant)
            # the fields of a model of query parameters do not say where they are
            if getattr(field.field_info, "in_", ParamTypes.query) == ParamTypes.query
        ]

        async def handle_keyed(request: Request) -> Response:
            gate: Gate = request.app.state.gate
            key = request.scope[KEY] = await gate.admit(request, needed)
            logs.note({"key": key.id})
            if request.scope["query_string"]:
                _check_names(
                    [name for name, _ in request.query_params.multi_items()],
                    known,
                    has_body=self.body_field is not None,
                )
            return await handle(request)

        return handle_keyed


_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


def needs(scope: KeyScope) -> Callable[[_Endpoint], _Endpoint]:
    """Below the route's own line: it needs this scope, not its method's (GET: read, any other: generate)."""

    def marked(endpoint: _Endpoint) -> _Endpoint:
        endpoint.scope = scope  # type: ignore[attr-defined]
        return endpoint

    return marked


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


def key_of(request: Request) -> Key:
    """The key of a request that came through a KeyedRoute."""
    key: Key = request.scope[KEY]
    return key


def _given(request: Request) -> str:
    """The key that the request carries; "": none."""
    given = request.headers.get("x-api-key", "")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if not given and scheme.lower() == "bearer" else given


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
