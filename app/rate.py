"""What a caller may have computed: units a minute, told in RateLimit headers, and the highest priority.

The headers follow draft-ietf-httpapi-ratelimit-headers-11 (May 2026), which is no RFC yet.
"""

from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import TooManyRequests
from jobs.client import JobClient
from jobs.scripts import Spent

_UNIT: Final = 2**22  # pixels of a drawing that cost a unit
_SPENT: Final = "sagan.spent"  # in the scope of a request: what its caller has spent


def cost_of(pixels: int) -> int:
    """Units of a drawing: one, and one more for every 4 million pixels."""
    return 1 + pixels // _UNIT


async def spend(request: Request, store: JobClient, caller: str, cost: int, limit: int) -> None:
    """Take `cost` units from what the caller may spend in this minute. Raises TooManyRequests.

    Whoever has spent nothing yet may have anything drawn: a cost above the limit is the limit.
    """
    spent = await store.spend(caller, min(cost, limit), limit)
    request.scope[_SPENT] = spent
    if not spent.taken:
        raise TooManyRequests(
            f"A caller may spend {limit} units a minute: a job, an attention map or a drawing is one, a "
            f"large drawing several. This needs {min(cost, limit)}, and {limit - spent.units} are left. "
            "Try again in the next minute.",
            retry_after=spent.resets_in,
        )


class RateHeaders:
    """Adds RateLimit and RateLimit-Policy to every answer to a request that was counted."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app = app
        self._limit = limit
        self._policy = (b"ratelimit-policy", b'"minute";q=%d;w=60' % limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            spent: Spent | None = scope.get(_SPENT)
            if message["type"] == "http.response.start" and spent is not None:
                left = max(0, self._limit - spent.units)
                now = (b"ratelimit", b'"minute";r=%d;t=%d' % (left, spent.resets_in))
                message["headers"] = [*message["headers"], self._policy, now]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
