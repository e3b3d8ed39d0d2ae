"""The guards: keys, body limit, Origin check, response headers."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from fastapi import Request
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLarge, ForeignOrigin, Unauthorised, respond

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


def owner_of(request: Request, keys: Sequence[SecretStr]) -> str:
    """The caller as a name derived from the key, which itself is never stored; EVERYBODY without keys.

    Raises Unauthorised where keys are set and the request carries none of them.
    """
    if not keys:
        return EVERYBODY
    given = request.headers.get("x-api-key", "")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not given and scheme.lower() == "bearer":
        given = token.strip()
    asked = hashlib.sha256(given.encode()).digest()
    # every key is compared, each in constant time: the time taken tells nothing about which one was near
    matches = [
        hmac.compare_digest(asked, hashlib.sha256(key.get_secret_value().encode()).digest()) for key in keys
    ]
    if not any(matches):
        raise Unauthorised("Send a valid key as X-API-Key, or as Authorization: Bearer.")
    return owner_named(given)


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
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


class OriginCheck:
    """A page of another site may not make a visitor's browser queue or cancel jobs here.

    Browsers send Origin with every POST and DELETE from another site; other clients send none.
    """

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self.app = app
        self.allowed = {origin.rstrip("/").lower() for origin in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._is_ours(origin.lower(), headers.get("host", "").lower()):
                problem = ForeignOrigin(
                    "Pages of this origin may not ask here. Serve the page from this host, or add its origin "
                    "to SAGAN_ALLOWED_ORIGINS."
                )
                await respond(problem, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_ours(self, origin: str, host: str) -> bool:
        if origin in self.allowed:
            return True
        try:
            # the scheme is not compared: a proxy that ends TLS makes ours http
            return urlsplit(origin).netloc == host != ""
        except ValueError:
            return False


class BodyLimit:
    """Reads the body before anything else does, up to `limit` bytes, whatever its declared length."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        body = b""
        more = not (declared.isdecimal() and int(declared[:18]) > self.limit)
        too_large = not more
        while more and not too_large:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            too_large = len(body) > self.limit
        if too_large:
            problem = BodyTooLarge(
                f"A body may have {self.limit} bytes. Only the fields shown in /docs are read."
            )
            await respond(problem, scope["path"])(scope, receive, send)
            return

        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()  # only a disconnect can follow
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)
