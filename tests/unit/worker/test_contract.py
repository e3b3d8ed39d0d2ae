"""What the API and a worker agree on, without a broker."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import time

import numpy as np
import pytest
from pydantic import ValidationError
from redis import Redis

from jobs.job import AttentionMap
from jobs.settings import QueueSettings
from jobs.wire import (
    ATTENTION,
    CONTEXT_HEADER,
    GENERATE,
    attention_message,
    attention_queue,
    broker_priority,
    generate_message,
    generate_queue,
    message_list,
)
from serve.private_redis import PrivateRedis
from worker.celery_app import make_celery
from worker.settings import WorkerSettings

JOBS = generate_queue("0123456789abcdef.float32")
MAPS = attention_queue("0123456789abcdef.float32")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateRedis]:
    server = PrivateRedis(tmp_path)
    server.start()
    yield server
    server.stop()


def test_an_attention_map_survives_the_way_through_redis() -> None:
    values = np.random.default_rng(0).random((12, 6)).astype(np.float16)
    values[0, 0] = np.frombuffer(b"\n\n", np.float16)[0]  # a newline among the numbers
    found = AttentionMap("4x3", (4, 3), (2, 3), 0.25, 0.125, values)
    again = AttentionMap.from_bytes(found.to_bytes())
    assert (again.layer, again.query_grid, again.key_grid) == ("4x3", (4, 3), (2, 3))
    assert (again.gamma, again.share) == (0.25, 0.125)
    np.testing.assert_array_equal(again.map, values)


def test_nine_is_most_urgent_and_redis_counts_the_other_way() -> None:
    assert [broker_priority(priority) for priority in range(10)] == list(range(9, -1, -1))


def test_the_settings_that_decide_whether_a_job_can_be_lost() -> None:
    conf = make_celery(QueueSettings(namespace="here"), [JOBS, MAPS]).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.accept_content == ["json"]
    assert conf.broker_connection_max_retries is None
    options = conf.broker_transport_options
    assert options["global_keyprefix"] == "here:celery:"
    assert (options["unacked_restore_interval"], options["unacked_restore_throttle"]) == (10, 1)
    assert options["visibility_timeout"] >= 3600


def test_settings_come_from_the_environment_and_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_RESULT_TTL", "60")
    monkeypatch.setenv("SAGAN_CHECKPOINTS", "elsewhere")
    monkeypatch.setenv("SAGAN_SOMETHING_OF_THE_API", "x")
    settings = WorkerSettings()
    assert (settings.result_ttl, settings.checkpoints) == (60, Path("elsewhere"))
    monkeypatch.setenv("SAGAN_REDIS_URL", "amqp://localhost")
    with pytest.raises(ValidationError, match="redis://"):
        WorkerSettings()


@pytest.mark.parametrize("module", ["jobs.client", "worker.health", "serve.supervisor"])
def test_neither_torch_nor_celery_on_the_api_s_side(module: str) -> None:
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'celery', 'kombu'}} & sys.modules.keys()))"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_the_queue_is_in_the_same_redis_by_port_and_by_socket(server: PrivateRedis) -> None:
    for url in (f"{server.socket_url}?db=3", server.url.replace("/0", "/3")):
        celery = make_celery(QueueSettings(redis_url=url, namespace="here"), [MAPS])
        celery.send_task(ATTENTION, queue=MAPS, priority=0)
        celery.close()
    with Redis.from_url(f"{server.socket_url}?db=3") as redis:
        assert redis.llen(message_list("here", MAPS, 0)) == 2


def test_our_messages_are_what_celery_would_send(server: PrivateRedis) -> None:
    settings = QueueSettings(redis_url=server.url, namespace="here")
    celery = make_celery(settings, [JOBS, MAPS])
    celery.send_task(
        GENERATE,
        args=["some-job", None],
        task_id="some-job",
        queue=JOBS,
        priority=2,
        ignore_result=True,
    )
    celery.send_task(ATTENTION, args=["some-job", 1, "16x16"], queue=MAPS, priority=0, ignore_result=True)
    with Redis.from_url(server.url) as redis:
        theirs = [
            json.loads(redis.lindex(name, 0))
            for name in (message_list("here", JOBS, broker_priority(7)), message_list("here", MAPS, 0))
        ]
    celery.close()
    ours = [
        json.loads(generate_message("some-job", None, 7, JOBS)),
        json.loads(attention_message("some-job", 1, "16x16", MAPS)),
    ]
    for our, their in zip(ours, theirs, strict=True):
        assert base64.b64decode(our.pop("body")) == base64.b64decode(their.pop("body"))
        assert our["headers"].pop(CONTEXT_HEADER) == {}
        assert our["headers"].keys() == their["headers"].keys()
        assert abs(our["properties"].pop("timestamp") - time()) < 60  # Celery tells none
        assert our["properties"].keys() == their["properties"].keys()
        for message in (our, their):
            for part, name in (
                *(("headers", name) for name in ("origin", "argsrepr", "kwargsrepr")),  # for logs
                *(("properties", name) for name in ("delivery_tag", "reply_to")),  # one a message; no replies
            ):
                del message[part][name]
            if message["headers"]["task"] == ATTENTION:  # drawn by chance
                assert message["headers"].pop("id") == message["headers"].pop("root_id")
                del message["properties"]["correlation_id"]
        assert our == their
