"""`sagan api` in processes of their own, with the settings that a test needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve.private_redis import PrivateRedis
from served import Api, beat

Start = Callable[..., Api]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests of this folder, with a worker that beats and takes nothing."""
    server = PrivateRedis(tmp_path_factory.mktemp("entrance-redis"))
    server.start()
    beat(server.url, "sagan")
    yield server.url
    server.stop()


@pytest.fixture
def start(tmp_path: Path, redis_url: str) -> Iterator[Start]:
    """`start("--root-path", "/sagan", max_body=1024)`: words of the command line, and settings by name."""
    started: list[Api] = []

    def begin(*words: str, redis_url: str = redis_url, **settings: object) -> Api:
        started.append(Api(tmp_path, redis_url, *words, **settings))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for api in started:
        api.close()
