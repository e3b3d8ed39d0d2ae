"""Bodies of requests: read before anything else, up to a limit; and answers to requests that are not read."""

import asyncio
import codecs
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.answers import respond
from app.errors import BodyTooLarge, Problem

# A client may read the answer only when it has sent everything. Closing before would reset its connection,
# and the answer would be lost: the rest is read and dropped, up to so much.
DROPPED: Final = 32 * 1024 * 1024  # bytes
SMALL: Final = 16 * 1024  # bytes: comes with its head or right after
SILENCE: Final = 2.0  # seconds without a byte after which the client has heard, or never will


async def refuse(
    problem: Problem, scope: Scope, receive: Receive, send: Send, *, close: bool = False
) -> None:
    """Answer with `problem`, and drop the body: a small one first, and the connection stays.

    close: it ends, body or not.
    """
    if not close and 0 < _declared(scope) <= SMALL:
        await _drop(receive)
        await respond(problem, scope["path"])(scope, receive, send)
        return
    unfinished: list[Message] = []

    async def hold_the_end(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            unfinished.append({**message, "body": b"", "more_body": False})
            message = {**message, "more_body": True}
        await send(message)

    response = respond(problem, scope["path"])
    if close or _has_body(scope):
        response.headers["Connection"] = "close"
    if not _has_body(scope):
        await response(scope, receive, send)
        return
    await response(scope, receive, hold_the_end)
    try:
        await _drop(receive)
    finally:
        for message in unfinished:
            await send(message)


async def _drop(receive: Receive) -> None:
    dropped, more = 0, True
    while more and dropped < DROPPED:
        try:
            async with asyncio.timeout(SILENCE):
                message = await receive()
        except TimeoutError:
            return
        more = message["type"] == "http.request" and message.get("more_body", False)
        dropped += len(message.get("body", b""))


def _declared(scope: Scope) -> int:
    """Bytes of the body by its content-length, 0 without one."""
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(declared[:18]) if declared.isdigit() else 0


def _has_body(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False


class BodyLimit:
    """Reads the body before anything else does, up to `limit` bytes, whatever its declared length.

    A mark of the byte order in front is dropped: editors on Windows write it, and JSON has none.
    """

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = _declared(scope) <= self.limit
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
            await refuse(problem, scope, receive, send)
            return

        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()  # only a disconnect can follow
            replayed = True
            return {
                "type": "http.request",
                "body": bytes(body.removeprefix(codecs.BOM_UTF8)),
                "more_body": False,
            }

        await self.app(scope, replay, send)
