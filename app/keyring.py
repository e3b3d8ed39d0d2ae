"""The keys that this process takes: those of its environment and files, and the records of `sagan keys`.

They are read again every second, and when a key comes that is not known: a new key works at once, and a
revoked one is refused within seconds, in every process. Where they cannot be read, the last reading holds.
"""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import monotonic
from typing import Final

from pydantic import SecretStr

from app import env_keys
from app.errors import RETRY_AFTER, KeysUnread, NoBroker, Unauthorised
from jobs.api_keys import USUAL, WELL_FORMED, KeyRecord, KeysUnreadable, Scope, owner_name
from jobs.errors import BrokerUnavailable
from jobs.key_stores import KeyStore, Reading, file_version
from jobs.logs import AUDIT
from jobs.pubsub import cancel

log = logging.getLogger("sagan.app")

EVERYBODY: Final = "everybody"  # owner of all jobs where no keys are set
EVERY: Final = 1.0  # seconds between two readings
APART: Final = 0.05  # seconds between two readings for keys that are not known
TOLD_EVERY: Final = 30.0  # seconds between two lines in the log while the keys cannot be read


@dataclass(frozen=True, slots=True)
class Key:
    """Who asks, and what they may do."""

    id: str  # for logs; "": no key
    owner: str  # of jobs
    scopes: frozenset[Scope]
    max_priority: int | None = None  # None: that of the service
    rate: int | None = None  # units a minute; None: that of the service
    quota: int | None = None  # images a day; None: no limit
    expires_at: float = inf  # seconds since 1970
    revoked: bool = False

    @classmethod
    def of(cls, record: KeyRecord) -> "Key":
        return cls(
            record.id,
            owner_name(record.owner),
            frozenset(record.scopes),
            record.max_priority,
            record.rate,
            record.quota,
            inf if record.expires_at is None else record.expires_at.timestamp(),
            record.revoked_at is not None,
        )


_ALL_BUT_ADMIN: Final[frozenset[Scope]] = frozenset({*USUAL, "metrics"})
OPEN: Final = Key("", EVERYBODY, _ALL_BUT_ADMIN)  # where no keys are set


def owner_named(key: str) -> str:
    """The name under which the jobs of an operator's key are kept; it does not tell the key."""
    return hashlib.sha256(b"owner:" + key.encode()).hexdigest()[:32]


class Keyring:
    """Which key is whose. One for each app; `following` keeps it fresh."""

    def __init__(
        self,
        keys: tuple[SecretStr, ...],
        keys_file: Path | None,
        *,
        closed: bool,
        resting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """keys, keys_file: the operator's. closed: even without any. resting: entered around every wait."""
        self._given = _written(keys, "env")
        self._file = keys_file
        self._in_file: list[tuple[bytes, Key]] = []
        self._file_version: object = None
        self._closed = closed or bool(keys) or keys_file is not None
        self._resting = resting
        self._store: KeyStore | None = None
        self._records: Mapping[str, Key] = {}  # by digest
        self._reading: Reading | None = None  # None: there was none yet
        self._read_at = 0.0  # monotonic()
        self._began_at = -inf  # of the last reading, whether or not it succeeded
        self._looking: asyncio.Task[None] | None = None
        self._away = False  # the last reading failed
        self._told: tuple[str, float] = ("", -inf)  # of the failures: the last line in the log, and when
        if keys_file is not None:
            self._read_file()

    @property
    def closed(self) -> bool:
        """Whether nobody may ask without a key. It never opens again while the process lives."""
        return self._closed

    @asynccontextmanager
    async def following(self, store: KeyStore) -> AsyncIterator[None]:
        """Read the keys every second while this is open; the first time before, where that is soon done."""
        self._store = store
        task = asyncio.create_task(self._follow(), name="keyring")
        with suppress(TimeoutError):
            async with asyncio.timeout(EVERY):
                await self.look()
        try:
            yield
        finally:
            await cancel(*(each for each in (task, self._looking) if each is not None))
            await store.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self.look()

    async def look(self) -> None:
        """Read what has changed. Whoever comes meanwhile shares the reading."""
        if self._looking is None or self._looking.done():
            self._began_at = monotonic()
            self._looking = asyncio.create_task(self._look(), name="keys")
        # shielded: a request that ends does not end the reading of the others
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        try:
            if self._file is not None:
                await asyncio.to_thread(self._read_file)
            if self._store is not None:
                self._take(await self._store.look(self._reading))
            self._away = False
        except (BrokerUnavailable, KeysUnreadable) as error:
            self._away = True
            self._tell(f"the keys cannot be read, and the last reading holds: {error}")
        except Exception:
            self._away = True
            log.exception("the keys could not be read")

    def _take(self, new: Reading) -> None:
        old, self._reading, self._read_at = self._reading, new, monotonic()
        self._closed = self._closed or new.in_use
        if old is not None and old.version == new.version:
            return
        before = {} if old is None else old.records
        self._records = {
            # the same object: it has not changed, as of thousands all but one
            record.digest: self._records[record.digest] if before.get(key_id) is record else Key.of(record)
            for key_id, record in new.records.items()
        }
        for key_id in new.unreadable:
            log.error("the record of key %s cannot be read, and the key is refused", ascii(key_id))
        if old is not None:
            self._report(old.records, new.records)
        elif self._closed and not (self._given or self._in_file or self._records):
            log.warning("there is no key yet: nobody is let in until `sagan keys create` has made one")

    @staticmethod
    def _report(old: Mapping[str, KeyRecord], new: Mapping[str, KeyRecord]) -> None:
        for record in new.values():
            before = old.get(record.id)
            if before is record:
                continue
            if before is None:
                AUDIT.info("key created", extra={"key": record.id, "owner": record.owner})
            if record.revoked_at and (before is None or not before.revoked_at):
                AUDIT.info("key revoked", extra={"key": record.id, "owner": record.owner})
        for key_id in old.keys() - new.keys():
            AUDIT.info("key removed", extra={"key": key_id, "owner": old[key_id].owner})

    def _read_file(self) -> None:
        """The operator's file, where it has changed. The last reading holds where it cannot be read."""
        assert self._file is not None
        try:
            version = file_version(self._file)
            if version == self._file_version:
                return
            self._in_file = _written(tuple(env_keys.read_file(self._file)), "file")
            self._file_version = version
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            self._tell(f"SAGAN_API_KEYS_FILE {self._file}: {said}; the last reading holds")

    def _tell(self, line: str) -> None:
        said, at = self._told
        if said != line or monotonic() - at > TOLD_EVERY:
            self._told = (line, monotonic())
            log.warning("%s", line)

    async def admit(self, given: str) -> Key:
        """The key of a request; given: "" for none. OPEN where no keys are set.

        Raises Unauthorised; NoBroker or KeysUnread where the records cannot be read and it hangs on them.
        """
        key = self._find(given)
        possible = key is None and WELL_FORMED.fullmatch(given) is not None
        if possible or self._unsure:
            with self._resting():
                await self._look_soon()
            key = self._find(given)
        if key is not None:
            return self._valid(key)
        if self._unsure:
            raise NoBroker(
                "Whether this service asks for keys cannot be read now: the broker does not answer. Try "
                "again shortly.",
                retry_after=RETRY_AFTER,
            )
        if not self._closed:
            return OPEN
        if possible and self._away:
            # not 401: who was given a new key would take it for a wrong one
            raise KeysUnread(
                "This key was not known before, and new ones cannot be read now. Try again shortly.",
                retry_after=RETRY_AFTER,
            )
        if given:
            raise Unauthorised(
                "This key is none of this service's. Look for a letter too many or too few.", reason="unknown"
            )
        raise Unauthorised("Send a valid key as X-API-Key, or as Authorization: Bearer.", reason="absent")

    @property
    def _unsure(self) -> bool:
        """Nothing was read yet that says whether the service is open."""
        return self._reading is None and not self._closed

    async def _look_soon(self) -> None:
        """A reading that begins after this call, and not too soon after the last one."""
        asked = monotonic()
        while self._began_at < asked:
            if self._looking is not None and not self._looking.done():
                await asyncio.shield(self._looking)  # it may have missed the key
            elif (wait := self._began_at + APART - monotonic()) > 0:
                await asyncio.sleep(wait)
            else:
                break
        await self.look()

    def _find(self, given: str) -> Key | None:
        if not given:
            return None
        asked = hashlib.sha256(given.encode())
        # a dictionary compares no secrets: nobody can choose a digest, so its time tells nothing of a key
        if (key := self._records.get(asked.hexdigest())) is not None:
            return key
        # an operator's own key may be short: each is compared, in constant time
        digest, found = asked.digest(), None
        for each, known in (*self._given, *self._in_file):
            if hmac.compare_digest(digest, each):
                found = known
        return found

    def _valid(self, key: Key) -> Key:
        """Raises Unauthorised."""
        if key.revoked:
            raise Unauthorised("This key was revoked. Ask for a new one.", reason="revoked", key=key.id)
        if key.expires_at != inf and self._now() >= key.expires_at:
            ended = datetime.fromtimestamp(key.expires_at, UTC)
            raise Unauthorised(
                f"This key ended at {ended:%Y-%m-%dT%H:%M:%SZ}. Ask for a new one.",
                reason="expired",
                key=key.id,
            )
        return key

    def _now(self) -> float:
        """Seconds since 1970 by the clock of the records: that of Redis, or of this machine for a file."""
        assert self._reading is not None  # only records expire
        return self._reading.now.timestamp() + monotonic() - self._read_at


def _written(
    keys: tuple[SecretStr, ...] | tuple[env_keys.ApiKey, ...], where: str
) -> list[tuple[bytes, Key]]:
    """An operator's keys, each with its digest. Their ids tell their places, and nothing of themselves."""
    found = []
    for place, key in enumerate(keys, 1):
        secret = key.get_secret_value()
        known = Key(
            f"{where}-{place}",
            owner_named(secret),
            _ALL_BUT_ADMIN,
            max_priority=getattr(key, "max_priority", None),
        )
        found.append((hashlib.sha256(secret.encode()).digest(), known))
    return found
