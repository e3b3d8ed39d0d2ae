"""Results in a folder and in S3 (moto's server): the same links, and Redis holds no picture."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from obstore.store import ObjectStore, from_url
from redis import Redis

from app.settings import Settings
from forked import WorkerProcess
from serve.private_redis import die_with_parent, free_port
from tests.integration.api.conftest import BEAT, _running

KEY = {"Authorization": "Bearer the-owners-key"}
OTHER = {"Authorization": "Bearer another-key"}


@dataclass
class Kept:
    """A service whose results lie in a store."""

    url: str  # of the API
    store: ObjectStore
    namespace: str
    redis: Any  # redis-py's types allow for text and bytes everywhere
    folder: Path | None  # of the store

    def files(self) -> set[str]:
        return {meta["path"] for batch in self.store.list() for meta in batch}

    def memory(self) -> bytes:
        """All values that Redis has of this service, one after the other."""
        found = b""
        for key in self.redis.scan_iter(f"{self.namespace}:*"):
            found += self.redis.dump(key) or b""
        return found


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server with a bucket; the environment that leads to it."""
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=out,
            stderr=out,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.put(f"{url}/pictures").raise_for_status()
            break
        except httpx.TransportError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    yield {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_REGION": "eu-central-1",
    }
    server.kill()
    server.wait()


@pytest.fixture(scope="session", params=["file", "s3"])
def kept(
    request: pytest.FixtureRequest,
    redis_url: str,
    two_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Kept]:
    """API and worker of one store; what expires is deleted within a heartbeat."""
    namespace = f"results-{request.param}"
    folder = tmp_path_factory.mktemp("results") / "kept" if request.param == "file" else None
    where = "s3://pictures/a/prefix" if folder is None else f"file://{folder}"
    settings = {
        "redis_url": redis_url,
        "namespace": namespace,
        "heartbeat_period": BEAT,
        "result_store": where,
        "max_retention": 7200,
        "result_patience": 1.0,
    }
    env = {f"SAGAN_{name.upper()}": str(value) for name, value in settings.items()}
    with pytest.MonkeyPatch.context() as patch:
        if folder is None:
            for name, value in request.getfixturevalue("s3").items():
                patch.setenv(name, value)
        worker = WorkerProcess(
            env | {"SAGAN_CHECKPOINTS": str(two_models)}, two_models.parent / f"{namespace}.log"
        )
        options: dict[str, object] = {"allow_http": True}
        with (
            _running(Settings(**settings, api_keys="the-owners-key,another-key")) as url,  # type: ignore[arg-type]
            Redis.from_url(redis_url) as redis,
        ):
            deadline = time.monotonic() + 60
            while not redis.zcard(f"{namespace}:workers"):
                assert worker.returncode is None, worker.output
                assert time.monotonic() < deadline, worker.output
                time.sleep(0.05)
            store = from_url(where, client_options=options) if folder is None else from_url(where)  # type: ignore[call-overload]
            yield Kept(url, store, namespace, redis, folder)
        worker.stop()


@pytest.fixture
async def owner(kept: Kept) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=kept.url, timeout=60, headers=KEY) as client:
        yield client


async def made(client: httpx.AsyncClient, **body: object) -> dict[str, object]:
    """A job, once it has ended."""
    asked = {"model": "attentive", "seed": 5, **body}
    reply = await client.post("/generate/cat", json=asked, headers={"Prefer": "wait=30"})
    assert reply.status_code == 200, reply.text
    found: dict[str, object] = reply.json()
    return found


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_the_same_links_answer_the_same_bytes_and_redis_has_no_picture(
    kept: Kept, owner: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    job, usual = await made(owner, count=3), await made(client, count=3)
    for k in range(3):
        here = await owner.get(f"/jobs/{job['id']}/images/{k}")
        there = await client.get(f"/jobs/{usual['id']}/images/{k}")
        assert here.content == there.content
        told = {"etag", "cache-control", "content-type", "content-disposition", "content-length", "vary"}
        assert {name: here.headers[name] for name in told} == {name: there.headers[name] for name in told}
    again = await owner.get(f"/jobs/{job['id']}/images/2", headers={"If-None-Match": here.headers["etag"]})
    assert again.status_code == 304
    for part in ("grid", "archive", "film", "images/0?size=64&format=webp", "?images=base64"):
        reply = await owner.get(f"/jobs/{job['id']}/{part}".replace("/?", "?"))
        assert reply.status_code == 200, (part, reply.text)
    assert (await owner.get(f"/attention/{job['id']}?image=1")).status_code == 200
    mapped = [
        await asker.get(f"/attention/{one['id']}/map?image=1")
        for asker, one in ((owner, job), (client, usual))
    ]
    assert mapped[0].content == mapped[1].content
    alone = await owner.post(
        "/generate/cat", json={"model": "plain"}, headers={"Prefer": "wait=30", "Accept": "image/png"}
    )
    assert (alone.status_code, alone.headers["content-type"]) == (200, "image/png")
    expected = {f"{job['id']}/{name}" for name in ("0.png", "1.png", "2.png", "1.8x8.map")}
    assert expected <= kept.files()
    assert b"\x89PNG" not in kept.memory()
    assert kept.redis.memory_usage(f"{kept.namespace}:images:{job['id']}") < 400


async def test_a_signed_address_leads_to_the_image_without_a_key_where_the_store_has_one(
    kept: Kept, owner: httpx.AsyncClient
) -> None:
    job = await made(owner)
    here = f"/jobs/{job['id']}/images/0"
    reply = await owner.get(f"{here}?redirect=true")
    image = (await owner.get(here)).content
    if kept.folder is not None:  # a folder has no addresses: whoever follows redirects gets the same
        assert (reply.status_code, reply.content) == (200, image)
    else:
        assert (reply.status_code, reply.content) == (302, b"")
        assert reply.headers["cache-control"] == "private, no-store"
        async with httpx.AsyncClient() as anybody:
            found = await anybody.get(reply.headers["location"])
        assert (found.content, found.headers["content-type"]) == (image, "image/png")
        assert found.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert "X-Amz-Expires=300" in reply.headers["location"]
    refused = await owner.get(f"{here}?redirect=true&size=64")
    assert (refused.status_code, "leave size and format out" in refused.text) == (422, True)
    async with httpx.AsyncClient(base_url=kept.url, headers=OTHER) as stranger:
        assert (await stranger.get(f"{here}?redirect=true")).status_code == 404
    assert (await owner.get(f"/jobs/{job['id']}/images/7?redirect=true")).status_code == 404


async def test_a_purge_takes_images_and_maps_away_at_once(kept: Kept, owner: httpx.AsyncClient) -> None:
    job, other = await made(owner, count=2), await made(owner, count=2)
    here, there = f"/jobs/{job['id']}", f"/jobs/{other['id']}"
    assert (await owner.get(f"/attention/{job['id']}/map")).status_code == 200
    async with httpx.AsyncClient(base_url=kept.url, headers=OTHER) as stranger:
        assert (await stranger.delete(f"{here}?purge=true")).status_code == 404
    assert len([name for name in kept.files() if name.startswith(str(job["id"]))]) == 3
    reply = await owner.delete(f"{here}?purge=true")
    assert (reply.status_code, reply.json()["state"]) == (200, "succeeded")
    assert not [name for name in kept.files() if name.startswith(str(job["id"]))]
    assert not list(kept.redis.scan_iter(f"{kept.namespace}:attention:{job['id']}*"))
    assert not kept.redis.exists(f"{kept.namespace}:images:{job['id']}")
    for path in (here, f"{here}/images/0", f"{here}/events", f"/attention/{job['id']}", f"{here}/grid"):
        gone = await owner.get(path)
        assert (gone.status_code, "were purged" in gone.text) == (410, True), path
    assert (await owner.delete(here)).json()["state"] == "succeeded"
    assert (await owner.delete(f"{here}?purge=true")).json()["state"] == "succeeded"  # once more
    assert (await owner.get(f"{there}/images/1")).status_code == 200
    listed = (await owner.get("/jobs?limit=100")).json()["jobs"]
    assert {one["id"] for one in listed} & {job["id"], other["id"]} == {other["id"]}


async def test_no_image_of_a_purged_job_comes_back(kept: Kept, owner: httpx.AsyncClient) -> None:
    body = {"model": "attentive", "count": 64, "seed": 1}
    jobs = [(await owner.post("/generate/cat", json=body)).json()["id"] for _ in range(4)]

    async def begun() -> bool:
        return int((await owner.get(f"/jobs/{jobs[0]}")).json()["done"]) > 0

    await until(begun)
    replies = [await owner.delete(f"/jobs/{job}?purge=true") for job in jobs]
    assert {reply.status_code for reply in replies} == {200}
    assert "cancelled" in {reply.json()["state"] for reply in replies}
    await made(owner, seed=9)  # the worker has done with them
    beats = kept.redis.zrange(f"{kept.namespace}:workers", 0, -1)

    async def idle() -> bool:
        [beat] = kept.redis.mget([f"{kept.namespace}:worker:{one.decode()}" for one in beats])
        return not json.loads(beat)["in_hand"]

    async def gone() -> bool:
        return not [name for name in kept.files() if name.partition("/")[0] in jobs]

    await until(idle)
    await until(gone)  # a file that was on its way is deleted by who wrote it
    assert not [job for job in jobs if kept.redis.exists(f"{kept.namespace}:images:{job}")]


async def test_images_live_as_long_as_their_job_asked_and_no_longer(
    kept: Kept, owner: httpx.AsyncClient
) -> None:
    short, long = await made(owner, retention=1), await made(owner, retention=7200)
    for job, seconds in ((short, 1), (long, 7200)):
        times = [
            time.mktime(time.strptime(str(job[name])[:19], "%Y-%m-%dT%H:%M:%S"))
            for name in ("finished_at", "expires_at")
        ]
        assert times[1] - times[0] == seconds
    for retention, said in (
        (7201, "7200 seconds at most here"),
        (0, "retention"),
        (1.5, "retention"),
        ("9", "retention"),
    ):
        reply = await owner.post("/generate/cat", json={"retention": retention})
        assert (reply.status_code, said in reply.text) == (422, True)

    async def deleted() -> bool:
        return f"{short['id']}/0.png" not in kept.files()

    await until(deleted)
    gone = await owner.get(f"/jobs/{short['id']}/images/0")
    assert (gone.status_code, "have expired" in gone.text) == (410, True)
    assert f"{long['id']}/0.png" in kept.files()
    due = {member.decode().split(" ")[0] for member in kept.redis.zrange(f"{kept.namespace}:expiring", 0, -1)}
    assert short["id"] not in due
    assert long["id"] in due


async def test_a_file_that_somebody_deleted_is_gone_with_a_sentence(
    kept: Kept, owner: httpx.AsyncClient
) -> None:
    job = await made(owner, count=2)
    kept.store.delete([f"{job['id']}/1.png"])
    assert (await owner.get(f"/jobs/{job['id']}/images/0")).status_code == 200
    for part in ("images/1", "grid", "archive", "film"):
        reply = await owner.get(f"/jobs/{job['id']}/{part}")
        assert (reply.status_code, "was deleted from the store" in reply.text) == (410, True)


async def test_a_store_that_is_away_is_told_and_what_was_kept_is_there_again(
    kept: Kept, owner: httpx.AsyncClient
) -> None:
    if kept.folder is None:
        pytest.skip("the S3 server of these tests keeps its files in memory")
    job = await made(owner)
    away = kept.folder.with_name("away")
    kept.folder.rename(away)
    reply = await owner.get(f"/jobs/{job['id']}/images/0")
    assert (reply.status_code, reply.json()["type"]) == (503, "urn:sagan:problem:no-store")
    assert reply.headers["retry-after"] == "3"
    failed = await owner.post("/generate/cat", json={"model": "plain"}, headers={"Prefer": "wait=30"})
    assert failed.json()["state"] == "failed"
    assert "The store of the results has taken nothing" in failed.json()["error"]
    late = await owner.delete(f"/jobs/{job['id']}?purge=true")
    assert (late.status_code, (await owner.get(f"/jobs/{job['id']}")).status_code) == (202, 410)
    away.rename(kept.folder)
    assert (await made(owner))["state"] == "succeeded"
    assert os.stat(kept.folder).st_mode & 0o777 == 0o700
