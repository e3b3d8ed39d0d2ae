"""What a caller may have computed: units a minute, told in RateLimit headers, and the highest priority.

The headers follow draft-ietf-httpapi-ratelimit-headers-11 (May 2026), which is no RFC yet.
"""

from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import TooManyRequests
from jobs.client import JobClient
from jobs.job import DAY, Quota, Today

_UNIT: Final = 2**22  # pixels of a drawing that cost a unit
_TOLD: Final = "sagan.told"  # in the scope of a request: what its caller may still have, by name


def cost_of(pixels: int) -> int:
    """Units of a drawing: one, and one more for every 4 million pixels."""
    return 1 + pixels // _UNIT


async def spend(request: Request, store: JobClient, caller: str, cost: int, limit: int) -> None:
    """Take `cost` units from what the caller may spend in this minute. Raises TooManyRequests.

    Whoever has spent nothing yet may have anything drawn: a cost above the limit is the limit.
    """
    spent = await store.spend(caller, min(cost, limit), limit)
    tell(request, "minute", 60, limit, limit - spent.units, spent.resets_in)
    if not spent.taken:
        raise TooManyRequests(
            f"A caller may spend {limit} units a minute: a job, an attention map or a drawing is one, a "
            f"large drawing several. This needs {min(cost, limit)}, and {limit - spent.units} are left. "
            "Try again in the next minute.",
            retry_after=spent.resets_in,
        )


def tell(request: Request, name: str, seconds: int, limit: int, left: int, resets_in: int) -> None:
    """Let the answer say that of `limit` in so many seconds `left` are left."""
    told = request.scope.setdefault(_TOLD, {})
    told[name] = f'"{name}";q={limit};w={seconds}', f'"{name}";r={max(0, left)};t={resets_in}'


def tell_of_day(request: Request, quota: Quota, today: Today) -> None:
    """Let the answer say what is left of a key's images of the day."""
    tell(request, "day", DAY, quota.images, quota.images - today.images, today.resets_in)


class RateHeaders:
    """Adds RateLimit and RateLimit-Policy to every answer to a request that was counted."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and _TOLD in scope:
                policies, now = zip(*scope[_TOLD].values(), strict=True)
                message["headers"] = [
                    *message["headers"],
                    (b"ratelimit-policy", ", ".join(policies).encode()),
                    (b"ratelimit", ", ".join(now).encode()),
                ]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
