"""A wait ends when its client closes the connection."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from anyio import CancelScope
from fastapi import Request

from app.errors import ClientLeft

T = TypeVar("T")

SOON: Final = 0.5  # seconds before a wait begins to watch its connection: most waits end earlier


async def while_connected(request: Request, awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`. Cancels it and raises ClientLeft if the client goes away first.

    The request's body must have been read before.
    """
    # a scope rather than one Task.cancel(): it cancels again where redis-py swallows a cancellation
    with CancelScope() as scope:
        watchers: list[asyncio.Task[None]] = []
        watching = asyncio.get_running_loop().call_later(
            SOON, lambda: watchers.append(asyncio.create_task(_until_gone(request, scope)))
        )
        try:
            return await awaitable
        finally:
            watching.cancel()
            for watcher in watchers:
                watcher.cancel()
    raise ClientLeft("The client closed its connection before there was an answer.")


async def _until_gone(request: Request, scope: CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
