"""A client that goes away while the service waits for it: a socket that closes."""

from __future__ import annotations

import asyncio

import httpx
import pytest

POST = "POST /generate/3 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nPrefer: {}\r\n\r\n"


async def left(client: httpx.AsyncClient, route: str) -> float:
    """Requests whose client went away."""
    text = (await client.get("/metrics")).text
    counted = [line for line in text.splitlines() if f'route="{route}",status="499"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counted)


async def leave(client: httpx.AsyncClient, request: str, route: str) -> None:
    """Ask, close the connection while the answer is waited for, and see that the wait has ended."""
    before = await left(client, route)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(request.encode())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.5)
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        while await left(client, route) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def newest(client: httpx.AsyncClient) -> dict[str, object]:
    job: dict[str, object] = (await client.get("/jobs")).json()["jobs"][0]
    return job


async def test_a_client_that_leaves_frees_its_wait_and_keeps_its_job(slow_queue: httpx.AsyncClient) -> None:
    await leave(slow_queue, POST.format("wait=30"), "/generate/{class_id}")
    assert (await newest(slow_queue))["state"] == "queued"


async def test_a_client_that_leaves_takes_its_job_along_if_it_said_so(slow_queue: httpx.AsyncClient) -> None:
    await leave(slow_queue, POST.format("wait=30, on-disconnect=cancel"), "/generate/{class_id}")
    async with asyncio.timeout(5):
        while (await newest(slow_queue))["state"] == "queued":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await newest(slow_queue))["state"] == "cancelled"


async def test_a_job_that_a_key_found_is_cancelled_by_the_one_who_made_it_alone(
    slow_queue: httpx.AsyncClient,
) -> None:
    made = await slow_queue.post("/generate/3", headers={"Idempotency-Key": "shared"})
    again = "wait=30, on-disconnect=cancel\r\nIdempotency-Key: shared"
    await leave(slow_queue, POST.format(again), "/generate/{class_id}")
    assert (await slow_queue.get(made.headers["location"])).json()["state"] == "queued"


async def test_who_stays_is_told_which_preferences_were_heard(slow_queue: httpx.AsyncClient) -> None:
    reply = await slow_queue.post("/generate/3", headers={"Prefer": "on-disconnect=cancel, wait=1"})
    assert reply.status_code == 202
    assert reply.headers["preference-applied"] == "wait=1, on-disconnect=cancel"
    assert reply.json()["state"] == "queued"
    without = await slow_queue.post("/generate/3", headers={"Prefer": "on-disconnect=cancel"})
    assert "preference-applied" not in without.headers  # nothing was waited for
