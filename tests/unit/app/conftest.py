"""The app without a broker: what it does before it needs one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from jobs.api_keys import KeyRecord
from jobs.errors import BrokerUnavailable
from jobs.key_stores import Reading


class Keys:
    """A place for keys that is there, as Redis is not: none were ever made unless a test says otherwise."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {}
        self.now = datetime.now(UTC)
        self.away = False
        self.looks = 0

    async def look(self, known: Reading | None = None) -> Reading:
        self.looks += 1
        if self.away:
            raise BrokerUnavailable
        version = sorted((record.id, record.revoked_at) for record in self.records.values())
        return Reading(dict(self.records), (), self.now, bool(self.records), version)

    async def add(self, record: KeyRecord) -> None:
        self.records[record.id] = record

    async def revoke(self, key_id: str) -> KeyRecord:
        revoked = self.records[key_id].model_copy(update={"revoked_at": self.now})
        self.records[key_id] = revoked
        return revoked

    async def close(self) -> None:
        pass


ClientFactory = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def keys() -> Keys:
    """Where the keys are that `serve` goes by."""
    return Keys()


@pytest.fixture
def serve(keys: Keys) -> ClientFactory:
    """`async with serve(max_body=1024) as client`: settings by name; nobody listens at its Redis."""

    @asynccontextmanager
    async def factory(**changes: object) -> AsyncIterator[httpx.AsyncClient]:
        usual = {"redis_url": "redis://127.0.0.1:1/0", "allowed_hosts": "sagan.test"}
        app = create_app(Settings(**{**usual, **changes}), keys)  # type: ignore[arg-type]
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://sagan.test") as client:
                yield client

    return factory


@pytest.fixture
async def client(serve: ClientFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with serve() as client:
        yield client
