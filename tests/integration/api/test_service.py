"""Models, health, metrics, keys and limits."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import redis as redis_client
from PIL import Image

from app.settings import Settings
from jobs.client import JobClient
from jobs.job import JobSpec

if TYPE_CHECKING:
    from tests.integration.api.conftest import ClientFactory


async def test_models_and_classes_say_what_can_be_asked_for(client: httpx.AsyncClient) -> None:
    models = (await client.get("/models")).json()["models"]
    assert [model["name"] for model in models] == ["attentive", "plain"]
    attentive = (await client.get("/models/attentive")).json()
    assert attentive == models[0]
    assert attentive["resolution"] == 32
    assert [site["name"] for site in attentive["attention"]] == ["8x8", "16x16"]
    [version] = attentive["versions"]
    assert (version["hash"], version["workers"], version["draining"]) == (attentive["hash"], 1, False)
    assert len(version["served_by"]) == 1
    assert attentive["classes"][3] == {"id": 3, "name": "cat"}
    assert models[1]["attention"] == []
    classes = (await client.get("/classes?model=plain")).json()
    assert classes == {"model": "plain", "classes": attentive["classes"]}


async def test_each_class_has_a_small_picture(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (sheet := await client.get("/models/attentive/previews")).status_code == 204:
            assert int(sheet.headers["Retry-After"]) > 0
            await asyncio.sleep(0.1)
    assert sheet.headers["Content-Type"] == "image/webp"
    with Image.open(io.BytesIO(sheet.content)) as image:
        assert image.size == (4 * 32, 3 * 32)
        shown = np.asarray(image.convert("RGB")).astype(int)[:32, 96:]  # class 3
    order = {"seed": 0, "truncation": 0.7, "model": "attentive"}
    headers = {"Prefer": "wait=30", "Accept": "image/png"}
    made = await client.post("/generate/3", json=order, headers=headers)
    with Image.open(io.BytesIO(made.content)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # WebP loses some of the colours of noise
    assert abs(shown - pixels).mean() < 0.5 * abs(shown - pixels[::-1]).mean()
    tag = {"If-None-Match": sheet.headers["ETag"]}
    assert (await client.get("/models/attentive/previews", headers=tag)).status_code == 304
    assert (await client.get("/models/nobody/previews")).status_code == 404


async def test_ready_with_a_worker(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "live"}
    ready = await client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "workers": 1, "models": ["attentive", "plain"]}


async def test_without_a_worker_there_is_nothing_to_wait_for(idle: httpx.AsyncClient) -> None:
    assert (await idle.get("/health/live")).status_code == 200
    assert (await idle.get("/models")).json() == {"models": [], "result_ttl": 3600}
    for reply in (
        await idle.get("/health/ready"),
        await idle.get("/classes"),
        await idle.post("/generate/3"),
    ):
        assert reply.status_code == 503
        assert reply.json()["type"] == "urn:sagan:problem:no-worker"
        assert int(reply.headers["retry-after"]) >= 1


async def test_without_a_broker_everything_says_so_at_once(serve: ClientFactory) -> None:
    async with serve(redis_url="redis://127.0.0.1:1/0") as client:
        began = time.monotonic()
        for reply in (
            await client.get("/health/ready"),
            await client.get("/models"),
            await client.get("/jobs"),
            await client.get("/jobs/" + "A" * 22),
            await client.post("/generate/3"),
        ):
            assert reply.status_code == 503
            assert reply.json()["type"] == "urn:sagan:problem:no-broker"
            assert int(reply.headers["retry-after"]) >= 1
        assert time.monotonic() - began < 10
        assert (await client.get("/health/live")).status_code == 200
        assert "sagan_broker_up 0.0" in (await client.get("/metrics")).text


async def test_metrics_count_requests_and_jobs(serve: ClientFactory, worker: object) -> None:
    async with serve() as client:
        await client.post("/generate/3", json={"count": 3}, headers={"Prefer": "wait=30"})
        await client.post("/generate/dgo")
        reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    values = series(reply.text)
    route = 'method="POST",route="/generate/{class_id}"'
    assert values[f'sagan_http_requests_total{{{route},status="200"}}'] == 1
    assert values[f'sagan_http_requests_total{{{route},status="404"}}'] == 1
    assert values[f"sagan_http_request_seconds_count{{{route}}}"] == 2
    assert values['sagan_http_refusals_total{reason="unknown-class"}'] == 1
    assert values["sagan_broker_up"] == 1
    assert values["process_resident_memory_bytes"] > 1e6


async def test_the_queue_is_published_by_one_of_several(serve: ClientFactory, redis_url: str) -> None:
    async with contextlib.AsyncExitStack() as apps:
        first, second = [await apps.enter_async_context(serve(namespace="one-of-two")) for _ in range(2)]
        queue = JobClient.open(Settings(redis_url=redis_url, namespace="one-of-two"))
        spec = JobSpec("m", "0" * 64, "float32", 0, "cat", 1, 7, 1.0)
        for priority in (1, 9):
            await queue.create(replace(spec, priority=priority), "somebody")
        shown = [series((await client.get("/metrics")).text) for client in (first, second, first)]
        assert [values.get("sagan_queue_depth") for values in shown] == [2, None, 2]
        values = shown[0]
        assert values["sagan_workers"] == values["sagan_workers_able"] == 0
        assert [values[f'sagan_jobs{{state="{state}"}}'] for state in ("queued", "running")] == [2, 0]
        assert values['sagan_jobs_ended_total{state="failed"}'] == 0
        assert 0 < values["sagan_redis_memory_used_bytes"] < values["sagan_redis_memory_allowed_bytes"]
        with redis_client.Redis.from_url(redis_url) as redis:  # the less urgent one has waited for an hour
            lowest = redis.zrange("one-of-two:queued", -1, -1)[0].decode()
            redis.hset(f"one-of-two:job:{lowest}", "created_at", f"{time.time() - 3600}")
        assert series((await first.get("/metrics")).text)["sagan_queue_oldest_seconds"] > 3599
        await apps.pop_all().aclose()
        # whoever ends lets go: the next that is asked publishes at once
        async with serve(namespace="one-of-two") as third:
            assert series((await third.get("/metrics")).text)["sagan_queue_depth"] == 2
        await queue.close()


def series(text: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def test_keys_keep_callers_apart(serve: ClientFactory, worker: object) -> None:
    async with serve(api_keys="first-key,second-key") as client:
        for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "né"}):
            raw = {name.encode(): value.encode() for name, value in headers.items()}
            reply = await client.post("/generate/3", headers=raw)
            assert reply.status_code == 401
            assert reply.json()["type"] == "urn:sagan:problem:unauthorised"
            assert reply.headers["www-authenticate"] == "Bearer"
            assert ("none of this service's" in reply.json()["detail"]) == bool(headers)
        first, second = {"X-API-Key": "first-key"}, {"Authorization": "bearer second-key"}
        key = {"Idempotency-Key": "same"}
        mine = (await client.post("/generate/3", headers=first | key)).json()
        theirs = (await client.post("/generate/3", headers=second | key)).json()
        assert mine["id"] != theirs["id"]
        assert (await client.get(mine["links"]["self"], headers=first)).status_code == 200
        for link in (mine["links"]["self"], mine["links"]["events"], mine["links"]["attention"]):
            assert (await client.get(link, headers=second)).status_code == 404
        assert (await client.delete(mine["links"]["cancel"], headers=second)).status_code == 404
        shown = (await client.get("/jobs", headers=second)).json()["jobs"]
        assert [job["id"] for job in shown] == [theirs["id"]]
        for path in ("/models", "/classes", "/jobs", "/v1/models", "/metrics"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers=first)).status_code == 200
        for path in ("/health/live", "/health/ready", "/docs", "/openapi.json", "/"):
            assert (await client.get(path)).status_code == 200


async def test_a_caller_is_held_to_its_rate(serve: ClientFactory, worker: object) -> None:
    async with serve(rate_limit=2, api_keys="rate-one,rate-two") as client:
        headers = {"X-API-Key": "rate-one"}
        if time.time() % 60 > 55:
            await asyncio.sleep(6)  # not across the turn of a minute
        replies = [await client.post("/generate/3", headers=headers) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [202, 202, 429]
        assert replies[2].json()["type"] == "urn:sagan:problem:too-many-requests"
        assert 1 <= int(replies[2].headers["retry-after"]) <= 60
        assert (await client.post("/generate/3", headers={"X-API-Key": "rate-two"})).status_code == 202
        assert (await client.get("/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/generate/3", "/jobs/" + "A" * 22])
async def test_unexpected_methods(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.put(path)
    assert reply.status_code == 405
    assert reply.json()["type"] == "urn:sagan:problem:method-not-allowed"
    assert reply.headers["allow"]
