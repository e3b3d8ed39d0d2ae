"""What may go wrong between a client and the service.

SaganError
├── Unreachable           no answer, or that of something else: wrong address, no network, too slow
├── Refused               an answer that says no: status, type, detail, retry_after
│   ├── KeyRefused            401, 403
│   ├── NotThere              404  no such class, model, job, image or layer
│   ├── NotNow                409  not done yet; the job has failed; the model has no attention
│   ├── Expired               410
│   ├── NotValid              413, 422
│   ├── TooMuch               429  a limit, or a full queue
│   └── Unavailable           503  no worker, no Redis
├── JobFailed             it says why
├── JobCancelled
└── WaitTimeout           the job goes on
"""

from __future__ import annotations

from typing import ClassVar

import httpx


class SaganError(Exception):
    """Root of everything that this package raises on purpose."""


class Unreachable(SaganError):
    """The service did not answer."""


class Refused(SaganError):
    """The service refused, and says what to do."""

    of: ClassVar[dict[int, type[Refused]]] = {}  # status -> class

    def __init__(self, status: int, type_: str, detail: str, retry_after: float | None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.type = type_  # urn:sagan:problem:...; stable
        self.detail = detail
        self.retry_after = retry_after  # seconds; None: trying again will not help

    def __init_subclass__(cls, statuses: tuple[int, ...] = ()) -> None:
        Refused.of.update(dict.fromkeys(statuses, cls))

    @staticmethod
    def reading(response: httpx.Response) -> Refused:
        """The error that an answer tells. The answer may be a proxy's, and anything."""
        try:
            problem = dict(response.json())
        except (ValueError, TypeError):
            problem = {}
        wait = response.headers.get("retry-after", "")
        kind = Refused.of.get(response.status_code, Refused)
        detail = str(problem.get("detail") or response.reason_phrase or "no reason was given")
        retry_after = float(wait) if wait.isascii() and wait.isdecimal() else None
        return kind(response.status_code, str(problem.get("type", "")), detail, retry_after)


class KeyRefused(Refused, statuses=(401, 403)):
    """No valid key, or not with this one."""


class NotThere(Refused, statuses=(404,)):
    """No such class, model, job, image or layer."""


class NotNow(Refused, statuses=(409,)):
    """The right question at the wrong moment."""


class Expired(Refused, statuses=(410,)):
    """The images are gone; the same spec makes the same ones again."""


class NotValid(Refused, statuses=(413, 422)):
    """A value outside its bounds."""


class TooMuch(Refused, statuses=(429,)):
    """Over a limit."""


class Unavailable(Refused, statuses=(503,)):
    """Not at this moment."""


class JobFailed(SaganError):
    """The job ended without its images."""


class JobCancelled(SaganError):
    """The job was cancelled."""


class WaitTimeout(SaganError, TimeoutError):
    """The job has not ended in time; it goes on."""
