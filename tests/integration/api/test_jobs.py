"""/jobs: state, pictures, events, cancelling."""

from __future__ import annotations

import asyncio
import io
import json

import httpx
import numpy as np
from PIL import Image
from redis import Redis

from app.settings import Settings
from jobs.worker_store import WorkerStore

WAIT = {"Prefer": "wait=30"}


async def finished(client: httpx.AsyncClient, class_id: int = 3, **body: object) -> dict:  # type: ignore[type-arg]
    reply = await client.post(f"/generate/{class_id}", json=body, headers=WAIT)
    assert reply.status_code == 200, reply.text
    job: dict = reply.json()  # type: ignore[type-arg]
    assert job["state"] == "succeeded"
    return job


def events(text: str) -> list[dict]:  # type: ignore[type-arg]
    """Of a server-sent stream: [{"id": …, "event": …, "data": …}]."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            fields.pop("retry", None)  # how soon to come back; it stands in the first event
            found.append(fields | {"data": json.loads(fields["data"])})
    return found


async def test_images_are_immutable_and_not_sent_twice(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=2)
    first = await client.get(job["links"]["images"][0])
    assert first.headers["content-type"] == "image/png"
    assert "immutable" in first.headers["cache-control"]
    etag = first.headers["etag"]
    again = await client.get(job["links"]["images"][0], headers={"If-None-Match": f'"other", W/{etag}'})
    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["etag"] == etag
    other = await client.get(job["links"]["images"][1], headers={"If-None-Match": etag})
    assert other.status_code == 200


async def test_enlarging_is_crisp_or_smooth(client: httpx.AsyncClient) -> None:
    job = await finished(client)
    link = job["links"]["images"][0]
    small = np.asarray(Image.open(io.BytesIO((await client.get(link)).content)))
    replies = {
        name: await client.get(link, params={"size": 128, "resample": name})
        for name in ("nearest", "lanczos")
    }
    assert replies["nearest"].headers["etag"] != replies["lanczos"].headers["etag"]
    large = {name: np.asarray(Image.open(io.BytesIO(reply.content))) for name, reply in replies.items()}
    np.testing.assert_array_equal(large["nearest"], np.kron(small, np.ones((4, 4, 1))))
    assert large["lanczos"].shape == (128, 128, 3)
    assert not np.array_equal(large["nearest"], large["lanczos"])


async def test_the_grid_holds_every_image(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=5)
    grid = np.asarray(Image.open(io.BytesIO((await client.get(job["links"]["grid"])).content)))
    assert grid.shape == (2 * 34 - 2, 3 * 34 - 2, 3)
    for k, link in enumerate(job["links"]["images"]):
        image = np.asarray(Image.open(io.BytesIO((await client.get(link)).content)))
        top, left = k // 3 * 34, k % 3 * 34
        np.testing.assert_array_equal(grid[top : top + 32, left : left + 32], image)


async def test_events_tell_every_change_and_end(client: httpx.AsyncClient) -> None:
    job = (await client.post("/generate/3", json={"count": 3})).json()
    async with client.stream("GET", job["links"]["events"]) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join([part async for part in stream.aiter_text()])
    told = events(text)
    assert told[0]["data"] == {"state": "queued", "done": 0}
    assert [event["data"]["done"] for event in told] == sorted(event["data"]["done"] for event in told)
    assert [event["event"] for event in told] == ["progress"] * (len(told) - 1) + ["end"]
    assert told[-1]["data"] == {"state": "succeeded", "done": 3}


async def test_a_client_that_knows_nothing_of_retry_reads_every_event(client: httpx.AsyncClient) -> None:
    job = (await client.post("/generate/3", headers={"Prefer": "wait=30"})).json()
    text = (await client.get(job["links"]["events"])).text
    blocks = [block for block in text.split("\n\n") if block]
    assert "retry: 2000" in blocks[0].splitlines()
    for block in blocks:
        [data] = [line.removeprefix("data: ") for line in block.splitlines() if line.startswith("data: ")]
        assert json.loads(data)["state"]


async def test_events_go_on_after_the_last_one_seen(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=3)
    everything = events((await client.get(job["links"]["events"])).text)
    seen = everything[1]["id"]
    rest = events((await client.get(job["links"]["events"], headers={"Last-Event-ID": seen})).text)
    assert rest == everything[2:]
    last = {"Last-Event-ID": everything[-1]["id"]}
    assert (await client.get(job["links"]["events"], headers=last)).status_code == 204


async def test_events_arrive_as_they_happen(client: httpx.AsyncClient, slow_queue: httpx.AsyncClient) -> None:
    """Without a worker that takes it the stream stays open, and beats; cancelling ends it."""
    job = (await slow_queue.post("/generate/3")).json()
    text = ""
    async with slow_queue.stream("GET", job["links"]["events"]) as stream:
        async for part in stream.aiter_text():
            text += part
            if ": still here" in part:
                await slow_queue.delete(job["links"]["cancel"])
    told = events(text)
    assert [event["data"]["state"] for event in told] == ["queued", "cancelled"]
    assert text.index(": still here") < text.index("cancelled")


async def test_waiting_jobs_know_their_position(slow_queue: httpx.AsyncClient) -> None:
    jobs = [(await slow_queue.post("/generate/3")).json() for _ in range(3)]
    urgent = (await slow_queue.post("/generate/3", json={"priority": 9})).json()
    assert (await slow_queue.get(urgent["links"]["self"])).json()["position"] == 0
    shown = [(await slow_queue.get(job["links"]["self"])).json()["position"] for job in jobs]
    assert shown == [shown[0], shown[0] + 1, shown[0] + 2]
    for job in [*jobs, urgent]:
        await slow_queue.delete(job["links"]["cancel"])


async def test_an_unfinished_job_says_when_to_come_back(slow_queue: httpx.AsyncClient) -> None:
    reply = await slow_queue.post("/generate/3", json={"count": 2}, headers={"Prefer": "wait=1"})
    assert reply.status_code == 202
    assert reply.headers["preference-applied"] == "wait=1"
    links = reply.json()["links"]
    for link in (links["images"][0], links["grid"], links["attention"], links["attention"] + "/map"):
        early = await slow_queue.get(link)
        assert early.status_code == 409
        assert early.json()["type"] == "urn:sagan:problem:not-finished"
        assert int(early.headers["retry-after"]) >= 1
    cancelled = await slow_queue.delete(links["cancel"])
    assert cancelled.json()["state"] == "cancelled"
    assert cancelled.json()["finished_at"] is not None
    assert (await slow_queue.delete(links["cancel"])).json()["state"] == "cancelled"
    late = await slow_queue.get(links["images"][0])
    assert late.status_code == 409
    assert late.json()["type"] == "urn:sagan:problem:unsuccessful"
    assert "retry-after" not in late.headers


async def test_an_image_that_a_cancelled_job_never_made_has_not_expired(
    slow_queue: httpx.AsyncClient, redis_url: str
) -> None:
    job = (await slow_queue.post("/generate/3", json={"count": 2})).json()
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        [record] = [key for key in redis.scan_iter(f"*{job['id']}*") if redis.type(key) == "hash"]
    worker = WorkerStore(Settings(redis_url=redis_url, namespace=record.split(":")[0]), "w", lambda: False)
    assert worker.take(job["id"]) is not None
    worker.save([(job["id"], 0, b"png")])
    worker.close()
    assert (await slow_queue.delete(job["links"]["cancel"])).json()["done"] == 1
    made, never = [await slow_queue.get(link) for link in job["links"]["images"]]
    assert made.content == b"png"
    assert (never.status_code, never.json()["type"]) == (409, "urn:sagan:problem:unsuccessful")


async def test_recent_jobs_are_paged_newest_first(slow_queue: httpx.AsyncClient) -> None:
    made = [(await slow_queue.post("/generate/3")).json()["id"] for _ in range(5)]
    shown: list[str] = []
    cursor = None
    while True:
        query = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
        page = (await slow_queue.get("/jobs", params=query)).json()
        shown += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert shown[:5] == made[::-1]
    assert len(shown) == len(set(shown))
    for job_id in made:
        await slow_queue.delete(f"/jobs/{job_id}")


async def test_a_full_queue_says_so(slow_queue: httpx.AsyncClient) -> None:
    replies = [await slow_queue.post("/generate/3") for _ in range(9)]
    refused = [reply for reply in replies if reply.status_code == 429]
    taken = [reply for reply in replies if reply.status_code == 202]
    assert len(taken) == 8
    assert len(refused) == 1
    assert refused[0].json()["type"] == "urn:sagan:problem:queue-full"
    assert int(refused[0].headers["retry-after"]) >= 1
    for reply in taken:
        await slow_queue.delete(reply.json()["links"]["cancel"])


async def test_an_expired_job_is_gone_not_unknown(expiring: httpx.AsyncClient) -> None:
    job = (await expiring.post("/generate/3")).json()
    await expiring.delete(job["links"]["cancel"])  # ended: its clock runs
    await asyncio.sleep(1.2)
    links = job["links"]
    for link in (links["self"], links["images"][0], links["grid"], links["attention"]):
        reply = await expiring.get(link)
        assert reply.status_code == 410
        assert reply.json()["type"] == "urn:sagan:problem:expired"
