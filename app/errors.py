"""Every error as one tree, and its one form for the client: application/problem+json (RFC 9457).

    Problem
    ├── BadRequest          400  no HTTP
    ├── BadHost             400  no Host header, or one that names no host
    ├── Unauthorised        401  no valid key where keys are set
    ├── ForeignHost         403  asked under a name that is not ours
    ├── ForeignOrigin       403  a page of another site asked
    ├── MissingScope        403  the key may not do this
    ├── PriorityTooHigh     403  above what this caller may ask for
    ├── QuotaTooSmall       403  more images than the key may ask for in a day
    ├── NotFound            404  no such address, job, image, layer or point
    │   ├── UnknownClass
    │   └── UnknownModel
    ├── MethodNotAllowed    405
    ├── NotAcceptable       406  in no format that the client takes, or that this service can make
    ├── Conflict            409  right question, wrong moment
    │   ├── NotFinished          with Retry-After
    │   ├── Unsuccessful         the job failed or was cancelled
    │   ├── NoAttention
    │   ├── TooLarge             a drawing that this job or this service cannot have
    │   ├── NoMap                the worker could not make it
    │   └── ModelChanged
    ├── Gone                410  the result has expired
    ├── TooSlow             408  the request did not come in time
    ├── BodyTooLarge        413
    ├── HeadersTooLarge     431
    ├── Invalid             422  a value outside its bounds
    │   └── KeyReused            an Idempotency-Key with another request
    ├── TooManyRequests     429  with Retry-After
    │   ├── QueueIsFull
    │   └── QuotaSpent           the images of the day
    ├── ClientLeft          499  the connection is closed: nobody reads this, but the counts know
    └── Unavailable         503  with Retry-After
        ├── NoWorker
        ├── TooMuchAsked     of Redis, or of this process
        ├── NoBroker
        ├── NoStore          of images and maps
        ├── KeysUnread       a key that was not known before, while keys cannot be read
        ├── Busy             too many drawings wait
        ├── TooManyConnections
        └── Stopping             the server ends before the answer is there

app.answers makes an answer of each, and of the errors of other packages.
"""

from collections.abc import Sequence
from typing import ClassVar

from jobs.classes import nearest_name

RETRY_AFTER = 3  # seconds that a client is asked to wait where the server knows no better


class Problem(Exception):
    """Root of everything that this package raises on purpose. `detail` says what to do."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str, *, retry_after: int | None = None, errors: list[dict[str, str]] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after  # seconds; None: trying again will not help
        self.errors = errors  # {"at", "message"} of each wrong field; None: not about fields

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class Unauthorised(Problem):
    status, slug, title = 401, "unauthorised", "A key is needed"

    def __init__(self, detail: str, *, reason: str, key: str = "") -> None:
        super().__init__(detail)
        self.reason = reason  # absent, unknown, expired, revoked
        self.key = key  # its id; "": not known

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class BadHost(Problem):
    status, slug, title = 400, "bad-host", "No usable Host header"


class BadRequest(Problem):
    status, slug, title = 400, "bad-request", "Not HTTP"


class ForeignHost(Problem):
    status, slug, title = 403, "foreign-host", "Asked under a foreign name"


class ForeignOrigin(Problem):
    status, slug, title = 403, "foreign-origin", "Asked by a page of another site"


class MissingScope(Problem):
    """The key is valid, and may not do this."""

    status, slug, title = 403, "missing-scope", "Not within the scopes of the key"

    def __init__(self, needed: str, scopes: Sequence[str]) -> None:
        super().__init__(
            f"This needs a key with the scope {needed}, and this one has {', '.join(scopes)}. "
            "Ask whoever made it for another."
        )


class PriorityTooHigh(Problem):
    status, slug, title = 403, "priority-too-high", "Priority above your ceiling"


class QuotaTooSmall(Problem):
    status, slug, title = 403, "quota-too-small", "More images than your key has in a day"


class NotFound(Problem):
    status, slug, title = 404, "not-found", "Not found"


class UnknownClass(NotFound):
    """No class of that name or number in this model."""

    slug, title = "unknown-class", "Unknown class"

    def __init__(self, asked: str, known: Sequence[str]) -> None:
        near = nearest_name(asked, known)
        hint = f"Did you mean {near!r}?" if near else f"It has 0 to {len(known) - 1}; see /classes."
        super().__init__(f"This model has no class {shorten(asked)}. {hint}")


class UnknownModel(NotFound):
    """No live worker has a model of that name."""

    slug, title = "unknown-model", "Unknown model"

    def __init__(self, asked: str, known: Sequence[str]) -> None:
        super().__init__(f"No worker serves a model {shorten(asked)}. Served now: {', '.join(known)}.")


class MethodNotAllowed(Problem):
    status, slug, title = 405, "method-not-allowed", "Method not allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"Use {allowed} here. See /docs.")
        self.allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"Allow": self.allowed}


class NotAcceptable(Problem):
    status, slug, title = 406, "not-acceptable", "Not to be had in this format"


class Conflict(Problem):
    status, slug, title = 409, "conflict", "Not possible in this state"


class NotFinished(Conflict):
    slug, title = "not-finished", "The job is not done yet"


class Unsuccessful(Conflict):
    slug, title = "unsuccessful", "The job ended without a result"


class NoAttention(Conflict):
    slug, title = "no-attention", "The model has no attention"


class TooLarge(Conflict):
    slug, title = "too-large", "The drawing is too large"


class NoMap(Conflict):
    slug, title = "no-map", "The attention map could not be made"


class ModelChanged(Conflict):
    slug, title = "model-changed", "The model that made this job is no longer served"


class Gone(Problem):
    status, slug, title = 410, "expired", "The result has expired"


class BodyTooLarge(Problem):
    status, slug, title = 413, "body-too-large", "Request body too large"

    def headers(self) -> dict[str, str]:
        # the rest of the body is not read: the connection cannot carry another request
        return {"Connection": "close"}


class TooSlow(Problem):
    status, slug, title = 408, "too-slow", "The request did not come in time"


class HeadersTooLarge(Problem):
    status, slug, title = 431, "headers-too-large", "Request headers too large"


class Invalid(Problem):
    status, slug, title = 422, "invalid", "Not valid"


class KeyReused(Invalid):
    slug, title = "key-reused", "Idempotency-Key used before"


class TooManyRequests(Problem):
    status, slug, title = 429, "too-many-requests", "Too many requests"


class QueueIsFull(TooManyRequests):
    slug, title = "queue-full", "The queue is full"


class QuotaSpent(TooManyRequests):
    slug, title = "quota-spent", "The images of the day are spent"


class ClientLeft(Problem):
    status, slug, title = 499, "client-left", "The client went away"


class Unavailable(Problem):
    status, slug, title = 503, "unavailable", "Not available just now"


class NoWorker(Unavailable):
    slug, title = "no-worker", "No worker"


class TooMuchAsked(Unavailable):
    slug, title = "overloaded", "Too much is asked at once"


class NoBroker(Unavailable):
    slug, title = "no-broker", "The broker does not answer"


class NoStore(Unavailable):
    slug, title = "no-store", "The store of the results does not answer"


class KeysUnread(Unavailable):
    slug, title = "keys-unread", "Keys cannot be read just now"


class TooManyConnections(Unavailable):
    slug, title = "too-many-connections", "Too many connections"


class Stopping(Unavailable):
    slug, title = "stopping", "The server stops"


class Busy(Unavailable):
    slug, title = "busy", "Too much is being drawn"


def shorten(text: str) -> str:
    """`text` quoted for a message, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
