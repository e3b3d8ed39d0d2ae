"""API keys as records: whose they are, what they may do, how much and how long.

A key is `sagan_ID_SECRET`. The record has its SHA-256 alone: the secret has 256 random bits, so nobody finds
it from the digest, and a slow hash as for passwords would add nothing but time to every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import JobError

Scope = Literal["generate", "read", "metrics", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
USUAL: Final[tuple[Scope, ...]] = ("generate", "read")

_LETTERS: Final = string.ascii_letters + string.digits
_ID: Final = "[a-z0-9]{12}"
WELL_FORMED: Final = re.compile(f"sagan_({_ID})_[A-Za-z0-9]{{43}}")  # a key that a record may stand for
# what may stand in a key of Redis: no colon, no space, nothing that a pattern takes for its own
_OWNER: Final = "[A-Za-z0-9][A-Za-z0-9._+@-]{0,63}"
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MOST: Final = 10**9  # units a minute, images a day: Lua counts exactly far beyond


class UnknownKey(JobError):
    """No key has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no key {key_id[:64]!r}. `sagan keys list` tells the ids.")


class KeysUnreadable(JobError):
    """The keys are there and cannot be read, or not written; the message says why."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a label is one line of text")
    return text


def _ordered(scopes: Iterable[Scope]) -> tuple[Scope, ...]:
    return tuple(scope for scope in SCOPES if scope in set(scopes))


class KeyRecord(BaseModel):
    """A key, without the key. A field that is not known is an error: it may forbid something."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: str = Field(pattern=f"^{_ID}$")
    label: Annotated[str, AfterValidator(_printable)] = Field(default="", max_length=200)
    owner: str = Field(pattern=f"^{_OWNER}$")  # keys of one owner see the same jobs
    digest: str = Field(pattern="^[0-9a-f]{64}$", repr=False)
    scopes: Annotated[tuple[Scope, ...], AfterValidator(_ordered)] = Field(min_length=1)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None  # None: never
    revoked_at: AwareDatetime | None = None  # None: it is not
    rate: int | None = Field(default=None, ge=1, le=MOST)  # units a minute; None: as all callers
    quota: int | None = Field(default=None, ge=1, le=MOST)  # images a day; None: no limit
    max_priority: int | None = Field(default=None, ge=0, le=9)  # None: as all callers

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def told(self, now: datetime) -> dict[str, Any]:
        """The record for people and scripts: without its digest, and with its state."""
        return self.model_dump(mode="json", exclude={"digest"}) | {"state": self.state(now)}


def make_key(owner: str, now: datetime, **terms: Any) -> tuple[KeyRecord, str]:
    """A record and its key, which stands nowhere else. Raises ValueError, in a sentence."""
    key_id = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(12))
    key = f"sagan_{key_id}_" + "".join(secrets.choice(_LETTERS) for _ in range(43))  # 256 bits
    fields = {"scopes": USUAL, **terms, "id": key_id, "owner": owner, "digest": digest_of(key)}
    try:
        return KeyRecord.model_validate({**fields, "created_at": now}), key
    except ValidationError as error:
        raise ValueError(_explained(error)) from None


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0])
    if name == "owner":
        return "An owner is 1 to 64 letters, digits and . _ + @ -, and begins with a letter or digit."
    if name == "scopes":
        return f"Scopes are some of {', '.join(SCOPES)}, with commas between."
    said = first["msg"].removeprefix("Value error, ")
    return f"{name}: {said[:1].lower()}{said[1:]}."


def digest_of(key: str) -> str:
    """SHA-256, as a record has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def owner_name(owner: str) -> str:
    """The owner of a record's jobs, as Redis has it: nobody without a record is called so."""
    return f"@{owner}"


def read_scopes(text: str) -> tuple[Scope, ...]:
    """Of "generate, read". Raises ValueError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    found = tuple(scope for scope in SCOPES if scope in words)
    if not words or set(words) - set(SCOPES):
        raise ValueError(f"Scopes are some of {', '.join(SCOPES)}, with commas between.")
    return found


def read_expiry(text: str, now: datetime) -> datetime:
    """When a key ends: 30d (90m, 12h, 2w) from now, a day, or a time of RFC 3339. Raises ValueError."""
    wrong = ValueError(
        f"{text[:40]!r} is no end of a key. Write 90m, 12h, 30d or 2w from now, a day such as 2027-01-31 "
        "(its first moment, UTC), or a time such as 2027-01-31T12:00:00Z."
    )
    try:
        if span := re.fullmatch(r"\s*([0-9]{1,9})\s*([mhdw])\s*", text):
            end = now + timedelta(seconds=int(span[1]) * _SECONDS[span[2]])
        else:
            end = datetime.fromisoformat(text.strip())
            end = end.replace(tzinfo=UTC) if end.tzinfo is None else end.astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong from None
    if end <= now:
        raise ValueError(
            f"A key that ends at {end:%Y-%m-%d %H:%M} UTC would be over at once. Choose a later end."
        )
    return end.replace(microsecond=0)
