"""The app without a broker: what it does before it needs one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

from app.main import create_app
from app.settings import Settings

ClientFactory = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serve() -> ClientFactory:
    """`async with serve(max_body=1024) as client`: settings by name; nobody listens at its Redis."""

    @asynccontextmanager
    async def factory(**changes: object) -> AsyncIterator[httpx.AsyncClient]:
        usual = {"redis_url": "redis://127.0.0.1:1/0", "allowed_hosts": "sagan.test"}
        app = create_app(Settings(**{**usual, **changes}))  # type: ignore[arg-type]
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://sagan.test") as client:
                yield client

    return factory


@pytest.fixture
async def client(serve: ClientFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with serve() as client:
        yield client
