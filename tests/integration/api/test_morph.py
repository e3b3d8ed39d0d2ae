"""POST /morph, and images from another one than the first on, and mixtures of classes."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

WAIT = {"Prefer": "wait=60"}
ENDS: list[dict[str, object]] = [{"class_id": "cat", "seed": 1}, {"class_id": 5, "seed": 2, "index": 3}]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def recipe(png: bytes) -> dict[str, Any]:
    return dict(json.loads(Image.open(io.BytesIO(png)).text["sagan"]))  # type: ignore[attr-defined]


async def images(client: httpx.AsyncClient, job: dict[str, Any]) -> list[bytes]:
    assert job["state"] == "succeeded", job
    return [(await client.get(link)).content for link in job["links"]["images"]]


async def made(client: httpx.AsyncClient, path: str, **body: object) -> list[bytes]:
    reply = await client.post(path, json=body, headers=WAIT)
    assert reply.status_code == 200, reply.text
    return await images(client, reply.json())


async def test_an_image_of_a_seed_is_made_alone(client: httpx.AsyncClient) -> None:
    together = await made(client, "/generate/cat", seed=9, count=8)
    assert await made(client, "/generate", class_id="cat", seed=9, start=5, count=2) == together[5:7]


async def test_a_morph_leads_from_one_image_to_the_other(client: httpx.AsyncClient) -> None:
    reply = await client.post("/morph", json={"ends": ENDS, "frames": 6, "truncation": 0.7}, headers=WAIT)
    job = reply.json()
    assert job["spec"]["class_name"] == "cat to dog"
    assert job["spec"]["count"] == job["done"] == 6
    assert job["spec"]["morph"]["ends"] == [
        {"class_weights": {"3": 1.0}, "class_name": "cat", "seed": 1, "index": 0},
        {"class_weights": {"5": 1.0}, "class_name": "dog", "seed": 2, "index": 3},
    ]
    frames = await images(client, job)
    [first] = await made(client, "/generate/cat", seed=1, truncation=0.7)
    [last] = await made(client, "/generate/dog", seed=2, start=3, truncation=0.7)
    assert (frames[0], frames[-1]) == (first, last)  # to the last byte, recipes included
    steps = [np.abs(pixels(a) - pixels(b)).mean() for a, b in pairwise(frames)]
    whole = np.abs(pixels(frames[0]) - pixels(frames[-1])).mean()
    assert max(steps) < whole
    assert min(steps) > 0
    said = recipe(frames[2])
    assert said["version"] == 2
    assert [end["weight"] for end in said["ends"]] == pytest.approx([0.6, 0.4])


async def test_weights_choose_the_place_and_again_the_same_bytes(client: httpx.AsyncClient) -> None:
    ends = [*ENDS, {"class_weights": {"cat": 1, "ship": 3}, "seed": 4}]
    body = {"ends": ends, "weights": [[1, 0, 0], [1, 1, 2], [0, 0, 5]]}
    frames = await made(client, "/morph", **body)
    assert await made(client, "/morph", **(body | {"weights": [[3, 3, 6]]})) == [frames[1]]
    mixed = await made(client, "/generate", class_weights={"3": 0.25, "ship": 0.75}, seed=4)
    assert mixed == [frames[2]]
    assert {part["class_name"] for part in map(recipe, frames)} == {
        *("cat", "cat to dog to cat + ship", "cat + ship"),
    }


async def test_a_mixture_says_of_what(client: httpx.AsyncClient) -> None:
    body = {"class_weights": {"cat": 1, "dog": 3}, "seed": 4, "count": 2}
    job = (await client.post("/generate", json=body, headers=WAIT)).json()
    spec = job["spec"]
    assert (spec["class_id"], spec["class_name"]) == (5, "cat + dog")
    assert spec["class_weights"] == {"3": 0.25, "5": 0.75}
    alone = await made(client, "/generate", class_weights={"dog": 17}, seed=4)
    assert alone == await made(client, "/generate/dog", seed=4)  # of one class it is that class


async def test_maps_of_a_morph_are_made_with_it(client: httpx.AsyncClient) -> None:
    body = {"ends": ENDS, "frames": 3, "attention": True, "layer": "16x16"}
    job = (await client.post("/morph", json=body, headers=WAIT)).json()
    assert job["spec"]["morph"]["attention"] == "16x16"
    for k in range(3):
        reply = await client.get(f"/attention/{job['id']}/map?image={k}&layer=16x16")
        assert reply.status_code == 200
        assert reply.headers["x-attention-layer"] == "16x16"
    [last] = (await client.post("/generate/dog", json={"seed": 2, "start": 3}, headers=WAIT)).json()["links"][
        "images"
    ]
    other = last.split("/")[2]
    alone = await client.get(f"/attention/{other}/map?image=0&layer=16x16")
    assert alone.content == reply.content  # the same map as of the image alone


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/morph", {}, 422, "body.ends"),
        ("/morph", {"ends": ENDS[:1]}, 422, "at least 2"),
        ("/morph", {"ends": ENDS * 17}, 422, "at most 32"),
        ("/morph", {"ends": [ENDS[0], {"seed": 1}]}, 422, "Give either class_id or class_weights"),
        ("/morph", {"ends": [ENDS[0], {**ENDS[1], "class_weights": {"cat": 1}}]}, 422, "Give either"),
        ("/morph", {"ends": [ENDS[0], {"class_id": "cat", "sed": 1}]}, 422, "Did you mean 'seed'"),
        ("/morph", {"ends": [ENDS[0], {"class_id": "cat", "seed": -1}]}, 422, "body.ends.1.seed"),
        ("/morph", {"ends": [ENDS[0], {"class_id": "kat"}]}, 404, "Did you mean 'cat'"),
        ("/morph", {"ends": ENDS, "frames": 1}, 422, "greater than or equal to 2"),
        ("/morph", {"ends": ENDS, "frames": 257}, 422, "less than or equal to 256"),
        ("/morph", {"ends": ENDS, "count": 4}, 422, "There is no such field"),
        ("/morph", {"ends": ENDS, "frames": 4, "weights": [[1, 0]]}, 422, "either frames"),
        ("/morph", {"ends": ENDS, "weights": [[1, 0], [1]]}, 422, "one number for each of the 2 ends"),
        ("/morph", {"ends": ENDS, "weights": [[0, 0]]}, 422, "not all of them 0"),
        ("/morph", {"ends": ENDS, "weights": [[1, -1]]}, 422, "body.weights.0.1"),
        ("/morph", {"ends": ENDS, "weights": []}, 422, "body.weights"),
        ("/morph", {"ends": ENDS, "layer": "8x8"}, 422, "layer goes with attention"),
        (
            "/morph",
            {"ends": ENDS, "attention": True, "layer": "9x9"},
            404,
            "layer must be one of: 8x8, 16x16",
        ),
        ("/morph", {"ends": ENDS, "attention": True, "model": "plain"}, 409, "no attention layer"),
        ("/generate", {"seed": 1}, 422, "Give either class_id or class_weights"),
        ("/generate", {"class_id": 1, "class_weights": {"cat": 1}}, 422, "Give either"),
        ("/generate", {"class_weights": {}}, 422, "body.class_weights"),
        ("/generate", {"class_weights": {"cat": 0}}, 422, "greater than 0"),
        ("/generate", {"class_weights": {"cat": "1"}}, 422, "number"),
        ("/generate", {"class_weights": {"cat": 1, "3": 1}}, 422, "'cat' twice"),
        ("/generate", {"class_weights": {str(k): 1 for k in range(9)}}, 422, "at most 8"),
        ("/generate/cat", {"class_weights": {"cat": 1}}, 422, "stands in the path"),
        ("/generate/cat", {"start": -1}, 422, "body.start"),
        ("/generate/cat", {"start": 2**63}, 422, "body.start"),
    ],
)
async def test_what_cannot_be_is_refused_and_says_what_to_do(
    client: httpx.AsyncClient, path: str, body: dict[str, object], status: int, says: str
) -> None:
    reply = await client.post(path, json=body)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert says in reply.json()["detail"]


async def test_one_key_is_one_morph(client: httpx.AsyncClient) -> None:
    ends = [{"class_id": "cat"}, {"class_id": "dog"}]
    headers = {"Idempotency-Key": "morph-1"}
    first = await client.post("/morph", json={"ends": ends, "frames": 2}, headers=headers)
    again = await client.post(
        "/morph", json={"ends": [{"class_id": "Cat"}, {"class_id": 5}], "frames": 2}, headers=headers
    )
    assert again.json()["id"] == first.json()["id"]  # the seeds that were drawn for it stay
    other = await client.post("/morph", json={"ends": ends[::-1], "frames": 2}, headers=headers)
    assert other.status_code == 422


async def test_a_job_that_is_not_listed_is_there_all_the_same(client: httpx.AsyncClient) -> None:
    job = (await client.post("/generate/cat", json={"listed": False}, headers=WAIT)).json()
    shown = (await client.post("/generate/cat", json={}, headers=WAIT)).json()
    listed = [one["id"] for one in (await client.get("/jobs?limit=100")).json()["jobs"]]
    assert shown["id"] in listed
    assert job["id"] not in listed
    assert (await client.get(job["links"]["self"])).json()["state"] == "succeeded"
