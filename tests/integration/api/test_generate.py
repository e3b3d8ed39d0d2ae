"""POST /generate against a real worker: what a client gets for its trouble."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import datetime

import httpx
import numpy as np
import pytest
from PIL import Image

WAIT = {"Prefer": "wait=30"}
PNG = {"Accept": "image/png"}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


async def test_a_job_has_the_shape_that_clients_rely_on(client: httpx.AsyncClient) -> None:
    reply = await client.post("/generate/3", json={"count": 2, "seed": 42, "truncation": 0.5, "priority": 7})
    assert reply.status_code == 202
    job = reply.json()
    assert reply.headers["location"] == job["links"]["self"] == f"/jobs/{job['id']}"
    assert job.keys() == {
        *("id", "state", "position", "created_at", "started_at", "finished_at", "expires_at", "error"),
        "deadline",
        *("done", "spec", "links"),
    }
    assert job["spec"] == {
        "model": "attentive",
        "model_hash": job["spec"]["model_hash"],
        "precision": "float32",
        "class_id": 3,
        "class_name": "cat",
        "count": 2,
        "seed": 42,
        "truncation": 0.5,
        "priority": 7,
        "start": 0,
        "class_weights": None,
        "morph": None,
    }
    assert len(job["spec"]["model_hash"]) == 64
    assert job["links"] == {
        "self": f"/jobs/{job['id']}",
        "images": [f"/jobs/{job['id']}/images/{k}" for k in range(2)],
        "grid": f"/jobs/{job['id']}/grid",
        "archive": f"/jobs/{job['id']}/archive",
        "film": f"/jobs/{job['id']}/film",
        "events": f"/jobs/{job['id']}/events",
        "attention": f"/attention/{job['id']}",
        "attention_grid": f"/attention/{job['id']}/grid",
        "cancel": f"/jobs/{job['id']}",
    }
    assert job["created_at"].endswith("Z")
    assert datetime.fromisoformat(job["created_at"]).utcoffset() is not None


async def test_a_class_by_number_by_name_or_in_the_body_is_one_spec(client: httpx.AsyncClient) -> None:
    replies = [
        await client.post("/generate/3", json={"seed": 5}, headers=WAIT),
        await client.post("/generate/Cat", json={"seed": 5}, headers=WAIT),
        await client.post("/generate/%20CAT_", json={"seed": 5}, headers=WAIT),
        await client.post("/generate", json={"class_id": "cat", "seed": 5}, headers=WAIT),
        await client.post("/generate", json={"class_id": 3, "seed": 5}, headers=WAIT),
    ]
    assert [reply.status_code for reply in replies] == [200] * 5
    specs = [reply.json()["spec"] for reply in replies]
    assert all(spec == specs[0] for spec in specs)
    pngs = [(await client.get(reply.json()["links"]["images"][0])).content for reply in replies]
    assert all(png == pngs[0] for png in pngs)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
async def test_a_body_is_json_whatever_its_content_type_says(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    """`curl -d` says that it sends a form."""
    reply = await client.post("/generate/3", content=b'{"count": 2, "seed": 7}', headers=headers)
    assert reply.status_code == 202
    assert (reply.json()["spec"]["count"], reply.json()["spec"]["seed"]) == (2, 7)


async def test_a_missing_seed_is_drawn_and_a_browser_can_hold_it(client: httpx.AsyncClient) -> None:
    seeds = [(await client.post("/generate/0")).json()["spec"]["seed"] for _ in range(5)]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**53 for seed in seeds)


async def test_the_largest_seed_comes_back_exactly(client: httpx.AsyncClient) -> None:
    reply = await client.post("/generate/0", json={"seed": 2**63 - 1}, headers=WAIT)
    assert reply.status_code == 200
    assert reply.json()["spec"]["seed"] == 2**63 - 1
    assert reply.json()["state"] == "succeeded"


async def test_wait_answers_the_finished_job_and_says_that_it_waited(client: httpx.AsyncClient) -> None:
    reply = await client.post("/generate/3", headers={"Prefer": "respond-async, wait=500"})
    assert reply.status_code == 200
    assert reply.headers["preference-applied"] == "wait=60"
    assert reply.json()["state"] == "succeeded"


@pytest.mark.parametrize("prefer", ["wait=", "wait=-1", "wait=soon", "wait=1.5", "lenient", "=", ","])
async def test_a_preference_that_cannot_be_read_is_ignored(client: httpx.AsyncClient, prefer: str) -> None:
    reply = await client.post("/generate/3", headers={"Prefer": prefer})
    assert reply.status_code == 202
    assert "preference-applied" not in reply.headers


async def test_png_is_answered_at_once_when_asked_for(client: httpx.AsyncClient) -> None:
    one = await client.post("/generate/3", json={"seed": 1}, headers=WAIT | PNG)
    assert one.status_code == 200
    assert one.headers["content-type"] == "image/png"
    assert pixels(one.content).shape == (32, 32, 3)
    assert json.loads(Image.open(io.BytesIO(one.content)).text["sagan"])["seed"] == 1  # type: ignore[attr-defined]
    four = await client.post("/generate/3", json={"seed": 1, "count": 4}, headers=WAIT | PNG)
    assert pixels(four.content).shape == (66, 66, 3)
    np.testing.assert_array_equal(pixels(four.content)[:32, :32], pixels(one.content))


async def test_a_browsers_accept_header_gets_json(client: httpx.AsyncClient) -> None:
    headers = WAIT | {"Accept": "text/html,application/json;q=0.9,image/png;q=0.8,*/*;q=0.5"}
    reply = await client.post("/generate/3", headers=headers)
    assert reply.headers["content-type"] == "application/json"


async def test_an_idempotency_key_answers_the_same_job(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "5f0c-first"}
    first = await client.post("/generate/3", json={"count": 2}, headers=key)
    again = await client.post("/generate", json={"class_id": "cat", "count": 2}, headers=key | WAIT)
    assert first.status_code == 202
    assert again.status_code == 200
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["spec"]["seed"] == first.json()["spec"]["seed"]  # drawn once
    other = await client.post("/generate/3", json={"count": 3}, headers=key)
    assert other.status_code == 422
    assert other.json()["type"] == "urn:sagan:problem:key-reused"


async def test_a_model_is_chosen_by_name(client: httpx.AsyncClient) -> None:
    reply = await client.post("/generate/cat", json={"model": "plain"}, headers=WAIT)
    assert reply.json()["spec"]["model"] == "plain"
    assert reply.json()["state"] == "succeeded"


async def test_many_clients_wait_at_once(client: httpx.AsyncClient) -> None:
    replies = await asyncio.gather(*(client.post(f"/generate/{k % 10}", headers=WAIT) for k in range(30)))
    assert {(reply.status_code, reply.json()["state"]) for reply in replies} == {(200, "succeeded")}
    assert len({reply.json()["id"] for reply in replies}) == 30
