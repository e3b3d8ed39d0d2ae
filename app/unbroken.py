"""Every request gets an answer of ours, also one whose route raises or that the server's end cuts off."""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RETRY_AFTER, Problem, Stopping, problem_of, respond

log = logging.getLogger("sagan.app")


class Unbroken:
    """Innermost of all middleware, so that its answers get an id, headers and a count like all others.

    Starlette's own handler of Exception stands outside: its answers would have none of them. HEAD is answered
    here too: with the head of what GET answers, without waiting for its end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False
        head = scope["method"] == "HEAD"

        async def watched(message: Message) -> None:
            nonlocal started
            if head and started:
                return
            started = True
            await send(message)
            if head:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if started:
                raise
            problem: Problem = Stopping("The server stops. Ask again shortly.", retry_after=RETRY_AFTER)
            await respond(problem, scope["path"])(scope, receive, watched)
        except Exception as error:
            log.exception("request broke", extra={"method": scope["method"], "path": scope["path"]})
            if started:
                raise
            await respond(problem_of(error), scope["path"])(scope, receive, watched)
