"""Where the records of API keys are: in Redis, or in a file."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import ValidationError
from redis.exceptions import RedisError, WatchError

from jobs.api_keys import KeyRecord, KeysUnreadable, UnknownKey
from jobs.connections import open_redis
from jobs.errors import BrokerUnavailable
from jobs.keys import Keys
from jobs.records import as_time
from jobs.settings import QueueSettings

ANSWERS_WITHIN: Final = 2.0  # seconds; whoever asks with a key that is not known waits for it
VERSION: Final = b"version"  # field of the hash that counts changes; no id is spelled so


@dataclass(frozen=True)
class Reading:
    """The records at one moment."""

    records: Mapping[str, KeyRecord]  # by id; the revoked and expired as well
    unreadable: tuple[str, ...]  # ids of records that cannot be read: they let nobody in
    now: datetime  # by the clock that says what has expired
    in_use: bool  # whether keys were ever made here
    version: object  # another one: something may have changed
    raw: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # what was read, by id


class KeyStore(Protocol):
    """What the API and `sagan keys` ask of either place."""

    async def look(self, known: Reading | None = None) -> Reading:
        """The records as they are now; those of `known` where nothing has changed since.

        Raises BrokerUnavailable, KeysUnreadable.
        """
        ...

    async def add(self, record: KeyRecord) -> None: ...

    async def revoke(self, key_id: str) -> KeyRecord:
        """The record as it is now; its time is that of the first revocation. Raises UnknownKey."""
        ...

    async def close(self) -> None: ...


class RedisKeys:
    """A hash: id -> record as JSON. The clock is that of Redis, whatever machine asks."""

    def __init__(self, settings: QueueSettings) -> None:
        self._redis = open_redis(settings, retries=1)
        self._name = Keys(settings.namespace).api_keys

    async def look(self, known: Reading | None = None) -> Reading:
        async with _answering():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.time()
                pipe.hget(self._name, VERSION)
                pipe.hlen(self._name)
                told, *version = await pipe.execute()
            now = as_time(told)
            # the version is read first: whatever changes after it shows in the next look
            if known is not None and known.version == version:
                return replace(known, now=now)
            raw = await self._redis.hgetall(self._name)
        in_use = bool(raw)
        raw.pop(VERSION, None)
        named = {name.decode(errors="replace"): text for name, text in raw.items()}
        return _reading(named, now, in_use, version, known)

    async def add(self, record: KeyRecord) -> None:
        async with _answering(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._name, record.id, record.model_dump_json())
            pipe.hincrby(self._name, VERSION, 1)
            await pipe.execute()

    async def revoke(self, key_id: str) -> KeyRecord:
        async with _answering():
            while True:
                async with self._redis.pipeline(transaction=True) as pipe:
                    await pipe.watch(self._name)
                    record = _known(await pipe.hget(self._name, key_id), key_id)
                    revoked = _revoked(record, as_time(await pipe.time()))
                    pipe.multi()
                    pipe.hset(self._name, key_id, revoked.model_dump_json())
                    pipe.hincrby(self._name, VERSION, 1)
                    with suppress(WatchError):  # another key came or went meanwhile: once more
                        await pipe.execute()
                        return revoked

    async def close(self) -> None:
        await self._redis.aclose()


class FileKeys:
    """A JSON file, {"keys": [record, ...]}. The clock is that of the machine that reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def look(self, known: Reading | None = None) -> Reading:
        return await asyncio.to_thread(self._look, known)

    def _look(self, known: Reading | None) -> Reading:
        now = datetime.now(UTC)
        try:
            version = file_version(self.path)
            if known is not None and known.version == version:
                return replace(known, now=now)
            rows = self._read()
        except FileNotFoundError:
            if known is not None and known.version is not None:
                raise KeysUnreadable(f"{self.path} is there no more") from None
            return Reading({}, (), now, True, None)  # whoever names a file wants keys
        except OSError as error:
            raise KeysUnreadable(f"{self.path} cannot be read: {error.strerror}") from error
        raw = {str(row.get("id")): json.dumps(row).encode() for row in rows}
        return _reading(raw, now, True, version, known)

    def _read(self) -> list[dict[str, Any]]:
        """Raises OSError, KeysUnreadable."""
        try:
            rows = json.loads(self.path.read_bytes())["keys"]
            if all(isinstance(row, dict) for row in rows):
                return list(rows)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise KeysUnreadable(f'{self.path} is no file of keys: {{"keys": [...]}} as `sagan keys` writes it')

    async def add(self, record: KeyRecord) -> None:
        def added(rows: list[dict[str, Any]]) -> KeyRecord:
            rows.append(record.model_dump(mode="json"))
            return record

        await asyncio.to_thread(self._change, added)

    async def revoke(self, key_id: str) -> KeyRecord:
        def revoked(rows: list[dict[str, Any]]) -> KeyRecord:
            for place, row in enumerate(rows):
                if row.get("id") == key_id:
                    record = _revoked(_known(json.dumps(row).encode(), key_id), datetime.now(UTC))
                    rows[place] = record.model_dump(mode="json")
                    return record
            raise UnknownKey(key_id)

        return await asyncio.to_thread(self._change, revoked)

    def _change(self, change: Callable[[list[dict[str, Any]]], KeyRecord]) -> KeyRecord:
        """Read, change and write, one process at a time. Raises OSError, KeysUnreadable, UnknownKey."""
        path = self.path.resolve()  # a link stays one
        with _locked(path.parent):
            try:
                rows, before = self._read(), path.stat()
            except FileNotFoundError:
                rows, before = [], None
            record = change(rows)
            _write(path, json.dumps({"keys": rows}, indent=1) + "\n", before)
            return record

    async def close(self) -> None:
        pass


def file_version(path: Path) -> object:
    """Another one: the file may have changed. Raises OSError."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _reading(
    raw: Mapping[str, bytes], now: datetime, in_use: bool, version: object, known: Reading | None
) -> Reading:
    """known: of before; what has not changed since is not read again, and there may be thousands."""
    records, unreadable = {}, []
    for key_id, text in raw.items():
        if known is not None and known.raw.get(key_id) == text and key_id in known.records:
            records[key_id] = known.records[key_id]
            continue
        try:
            record = KeyRecord.model_validate_json(text)
        except ValidationError:
            record = None
        if record is None or record.id != key_id:
            unreadable.append(key_id[:64])
        else:
            records[key_id] = record
    return Reading(records, tuple(unreadable), now, in_use, version, raw)


def _known(text: bytes | None, key_id: str) -> KeyRecord:
    if text is None:
        raise UnknownKey(key_id)
    try:
        return KeyRecord.model_validate_json(text)
    except ValidationError as error:
        raise KeysUnreadable(
            f"The record of key {key_id!r} cannot be read, so the key is refused already. A newer release "
            "may have written it"
        ) from error


def _revoked(record: KeyRecord, now: datetime) -> KeyRecord:
    return record if record.revoked_at else record.model_copy(update={"revoked_at": now})


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """Raises BrokerUnavailable where Redis does not answer in time, or refuses."""
    try:
        async with asyncio.timeout(ANSWERS_WITHIN):
            yield
    except (RedisError, OSError) as error:  # TimeoutError is one
        raise BrokerUnavailable from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in `folder` among those who ask so."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)  # the new name as well
    finally:
        os.close(handle)


def _write(path: Path, text: str, before: os.stat_result | None) -> None:
    """Beside, then in its place, for its user alone. before: of the file that it replaces."""
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 600
    try:
        with open(handle, "w") as file:
            file.write(text)
            file.flush()
            if before is not None and before.st_uid != os.geteuid() and os.geteuid() == 0:
                os.fchown(handle, before.st_uid, before.st_gid)  # root writes for the user of the API
            os.fchmod(handle, stat.S_IRUSR | stat.S_IWUSR)
            os.fsync(handle)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
