"""What a request asks of its job beside the images: by when, who is told, and how to follow it."""

import re
from typing import Final

from fastapi import Request

from app.deps import state
from app.errors import Invalid
from app.orders import LONGEST_LIFE, JobOrder, Order
from app.security import key_of
from jobs.job import Context, Quota, Terms, Webhook

# as other services have it: 90, 90s, 1m30s, 1h
_DURATION: Final = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s?)?", re.ASCII | re.IGNORECASE)


def terms_of(request: Request, body: Order) -> Terms:
    """Raises Invalid."""
    scope, key = request.scope, key_of(request)
    context = Context(scope.get("request_id", ""), key.id, scope.get("sagan.traceparent", ""))
    quota = None if key.quota is None else Quota(key.id, key.quota)
    return Terms(
        context, _expires_in(request, body), _retention(request, body), quota, _webhook(request, body)
    )


def _webhook(request: Request, body: Order) -> Webhook | None:
    if not isinstance(body, JobOrder) or body.webhook is None:
        return None
    return state(request).webhooks.read(body.webhook, body.webhook_events)


def _retention(request: Request, body: Order) -> int | None:
    if body.retention is None:
        return None
    longest = state(request).settings.longest_retention
    if body.retention > longest:
        raise Invalid(
            f"retention may be {longest} seconds at most here, and this is {body.retention}. "
            "Ask for less, or leave it out."
        )
    return body.retention


def _expires_in(request: Request, body: Order) -> float | None:
    given = request.headers.get("cancel-after")
    if given is None:
        return body.expires_in
    if body.expires_in is not None:
        raise Invalid("Give either the header Cancel-After or expires_in in the body.")
    found = _DURATION.fullmatch(given.strip())
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    lives = 3600 * hours + 60 * minutes + seconds
    if not 1 <= lives <= LONGEST_LIFE:
        raise Invalid(f"Cancel-After must be 1 to {LONGEST_LIFE} seconds, written as 90, 90s, 1m30s or 1h.")
    return lives
