"""The health check of a worker's container."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from redis import ConnectionPool, Redis

from jobs.job import WorkerInfo
from jobs.settings import QueueSettings
from jobs.worker_store import WorkerStore
from serve.private_redis import PrivateRedis
from worker.health import silence

HOST = "some-host"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    server = PrivateRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


# the namespace is the test's name: tests do not see each other's workers
@pytest.fixture
def settings(redis: PrivateRedis, request: pytest.FixtureRequest) -> QueueSettings:
    return QueueSettings(redis_url=redis.url, namespace=request.node.name)


def environment(settings: QueueSettings) -> dict[str, str]:
    return {"SAGAN_REDIS_URL": settings.redis_url, "SAGAN_NAMESPACE": settings.namespace}


def beat(settings: QueueSettings, worker_id: str, *, leave: bool = False, **state: Any) -> None:
    store = WorkerStore(settings, worker_id, lambda: False)
    now = datetime.now(UTC)
    store.beat(WorkerInfo(id=worker_id, device="cpu", started_at=now, beat_at=now, models=(), **state))
    if leave:
        store.leave()
    store.close()


def test_a_worker_that_beats_is_healthy(settings: QueueSettings) -> None:
    beat(settings, f"{HOST}:17:abcd")
    assert silence(environment(settings), HOST) is None


def test_a_worker_that_has_not_beaten_yet_is_not(settings: QueueSettings) -> None:
    assert "no worker" in (silence(environment(settings), HOST) or "")


def test_the_worker_of_another_container_does_not_count(settings: QueueSettings) -> None:
    beat(settings, f"{HOST}-2:17:abcd")
    assert "no worker" in (silence(environment(settings), HOST) or "")


def test_a_worker_that_stopped_is_not_healthy(settings: QueueSettings) -> None:
    beat(settings, f"{HOST}:17:abcd", leave=True)
    assert "no worker" in (silence(environment(settings), HOST) or "")


def test_a_worker_that_fell_silent_is_not_healthy(settings: QueueSettings) -> None:
    brief = settings.model_copy(update={"worker_ttl": 0.1})
    beat(brief, f"{HOST}:17:abcd")
    sleep(1.5 * brief.worker_ttl)
    assert "no worker" in (silence(environment(settings), HOST) or "")


@pytest.mark.parametrize(
    ("state", "said"),
    [({"consuming": False}, "lost its connection"), ({"stuck": "a forward hangs"}, "a forward hangs")],
)
def test_a_worker_that_makes_nothing_is_not_healthy(
    settings: QueueSettings, state: dict[str, Any], said: str
) -> None:
    beat(settings, f"{HOST}:17:abcd", **state)
    assert said in (silence(environment(settings), HOST) or "")
    beat(settings, f"{HOST}:18:abcd")  # another one on this host
    assert silence(environment(settings), HOST) is None


def test_a_redis_that_is_away_is_told(unused_tcp_port: int) -> None:
    assert "Redis does not answer" in (
        silence({"SAGAN_REDIS_URL": f"redis://127.0.0.1:{unused_tcp_port}/0"}, HOST) or ""
    )


def test_its_defaults_are_those_of_the_worker(
    settings: QueueSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = {name: QueueSettings.model_fields[name].default for name in ("redis_url", "namespace")}
    beat(settings.model_copy(update={"namespace": default["namespace"]}), f"{HOST}:17:abcd")
    asked = []

    def from_url(url: str, **_: object) -> Redis:
        asked.append(url)
        return Redis(connection_pool=ConnectionPool.from_url(settings.redis_url))

    monkeypatch.setattr("worker.health.Redis.from_url", from_url)
    assert silence({}, HOST) is None
    assert asked == [default["redis_url"]]


def test_as_a_command_it_is_light_and_tells_by_its_exit_code(settings: QueueSettings) -> None:
    root = Path(__file__).resolve().parents[3]
    loaded = "import sys, worker.health; sys.exit(bool({'torch', 'celery', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=root, check=False).returncode == 0

    command = [sys.executable, "-m", "worker.health"]
    silent = subprocess.run(
        command, cwd=root, env=environment(settings), capture_output=True, text=True, check=False
    )
    assert silent.returncode == 1
    assert silent.stderr.startswith(f"no worker on {socket.gethostname()}")
    beat(settings, f"{socket.gethostname()}:17:abcd")
    assert subprocess.run(command, cwd=root, env=environment(settings), check=False).returncode == 0
