"""POST /generate, against a real worker."""

from __future__ import annotations

import io
import json

import httpx
from PIL import Image

WAIT = {"Prefer": "wait=30"}


async def test_a_class_by_number_and_by_name_is_the_same_job(client: httpx.AsyncClient) -> None:
    by_number = await client.post("/generate/3", json={"seed": 5}, headers=WAIT)
    by_name = await client.post("/generate/Cat", json={"seed": 5}, headers=WAIT)
    in_body = await client.post("/generate", json={"class_id": "cat", "seed": 5}, headers=WAIT)
    assert [reply.status_code for reply in (by_number, by_name, in_body)] == [200, 200, 200]
    specs = [reply.json()["spec"] for reply in (by_number, by_name, in_body)]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0]["class_id"] == 3
    assert specs[0]["class_name"] == "cat"
    pngs = [(await client.get(reply.json()["links"]["images"][0])).content for reply in (by_number, by_name)]
    assert pngs[0] == pngs[1]
    print(json.dumps(by_number.json(), indent=1))


async def test_png_is_answered_at_once_when_asked_for(client: httpx.AsyncClient) -> None:
    reply = await client.post("/generate/3", headers=WAIT | {"Accept": "image/png"})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(reply.content)).size == (32, 32)
