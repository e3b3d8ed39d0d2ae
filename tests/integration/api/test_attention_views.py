"""The views of /attention that have no points, of several layers, and of all images of a job."""

from __future__ import annotations

import asyncio
import io
import re
from typing import TYPE_CHECKING

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.integration.api.test_rate import left, within_a_minute

if TYPE_CHECKING:
    from tests.integration.api.conftest import ClientFactory, MapsMade, Told

WAIT = {"Prefer": "wait=30"}


@pytest.fixture
async def link(client: httpx.AsyncClient) -> str:
    return await job_of(client, 2)


async def job_of(client: httpx.AsyncClient, count: int, seed: int = 12) -> str:
    reply = await client.post("/generate/3", json={"seed": seed, "count": count}, headers=WAIT)
    found: str = reply.json()["links"]["attention"]
    assert reply.json()["links"]["attention_grid"] == f"{found}/grid"
    return found


def picture(reply: httpx.Response) -> npt.NDArray[np.uint8]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(reply.content)))


@pytest.mark.parametrize("view", ["mean", "all", "received"])
async def test_a_view_of_all_queries_is_drawn_as_asked(
    client: httpx.AsyncClient, link: str, view: str
) -> None:
    reply = await client.get(link, params={"view": view, "size": 128})
    small, large = picture(reply), picture(await client.get(link, params={"view": view, "size": 256}))
    assert large.shape[0] > 1.5 * small.shape[0]
    assert reply.headers["x-attention-layer"] == "8x8"
    assert "x-attention-points" not in reply.headers
    for change in ({"colormap": "viridis"}, {"layer": "16x16"}, {"image": 1}):
        other = await client.get(link, params={"view": view, "size": 128, **change})
        assert other.headers["etag"] != reply.headers["etag"]
        assert other.content != reply.content
    again = await client.get(
        link, params={"view": view, "size": 128}, headers={"If-None-Match": reply.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


async def test_the_mean_is_hottest_where_the_maps_columns_are(client: httpx.AsyncClient, link: str) -> None:
    values = np.load(io.BytesIO((await client.get(f"{link}/map")).content)).astype(np.float32)
    query: dict[str, str | int] = {"view": "mean", "size": 256, "alpha": 1}
    painted = picture(await client.get(link, params=query))[:256].astype(int)
    plain = picture(await client.get(link, params=query | {"alpha": 0}))[:256].astype(int)
    line, column = divmod(int(values.mean(axis=0).argmax()), 4)  # 4x4 keys
    y, x = np.unravel_index(int((painted - plain).sum(axis=2).argmax()), (256, 256))
    assert (x // 64, y // 64) == (column, line)


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("view=mean&points=3,3", 409, "view=mean shows all queries at once"),
        ("view=all&points=1,1;2,2", 409, "leave points out"),
        ("view=received&points=40,1", 409, "leave points out"),
        ("view=received&points=x", 422, "points must read"),
        ("view=some", 422, "query.view"),
        ("view=mean&layer=4x4", 404, "8x8, 16x16"),
    ],
)
async def test_what_a_view_of_all_queries_cannot_do_is_said(
    client: httpx.AsyncClient, link: str, query: str, status: int, says: str
) -> None:
    reply = await client.get(f"{link}?{query}")
    assert reply.status_code == status
    assert says in reply.json()["detail"]


async def test_all_layers_are_rows(client: httpx.AsyncClient, link: str) -> None:
    for view in ("figure", "mean", "overlay"):
        query = {"view": view, "size": 128}
        both = await client.get(link, params=query | {"layer": "all"})
        one = picture(await client.get(link, params=query | {"layer": "8x8"}))
        assert picture(both).shape[0] > 1.9 * one.shape[0]
        assert both.headers["x-attention-layer"] == "8x8, 16x16"
        assert both.headers["x-attention-query-grid"] == "8x8, 16x16"
    one_by_one = await client.get(f"{link}/map", params={"layer": "all"})
    assert one_by_one.status_code == 422
    assert "one by one" in one_by_one.json()["detail"]
    grid = await client.get(f"{link}/grid", params={"layer": "all"})
    assert grid.status_code == 409
    assert "A grid shows one layer" in grid.json()["detail"]


async def test_the_grid_paints_every_image_at_its_place(client: httpx.AsyncClient) -> None:
    link = await job_of(client, 5)
    reply = await client.get(f"{link}/grid", params={"view": "overlay", "points": "4,20", "size": 64})
    sheet = picture(reply)
    assert sheet.shape == (2 * 66 - 2, 3 * 66 - 2, 3)
    assert reply.headers["x-attention-points"] == ";".join(["4,20"] * 5)
    for k in range(5):
        query: dict[str, str | int] = {"image": k, "view": "overlay", "points": "4,20", "size": 64}
        alone = picture(await client.get(link, params=query))
        line, column = divmod(k, 3)
        crop = sheet[line * 66 : line * 66 + 64, column * 66 : column * 66 + 64]
        np.testing.assert_array_equal(crop, alone)
    again = await client.get(
        f"{link}/grid",
        params={"view": "overlay", "points": "4,20", "size": 64},
        headers={"If-None-Match": reply.headers["etag"]},
    )
    assert again.status_code == 304
    for change in ({"view": "mean"}, {"points": "5,20"}, {"colormap": "grey"}, {"layer": "16x16"}):
        query = {"view": "overlay", "size": 64, **change}
        assert (await client.get(f"{link}/grid", params=query)).headers["etag"] != reply.headers["etag"]


async def test_a_grid_that_takes_too_long_says_how_far_it_is_and_goes_on(
    serve: ClientFactory, client: httpx.AsyncClient, told: Told, maps_made: MapsMade
) -> None:
    link = await job_of(client, 30, seed=77)
    await told()
    before, progress = await maps_made(), []
    async with serve(attention_timeout=0.001) as hurried:
        async with asyncio.timeout(60):
            while (reply := await hurried.get(f"{link}/grid")).status_code == 503:
                assert int(reply.headers["retry-after"]) >= 1
                found = re.match(r"(\d+) of 30 maps are made; ask again", reply.json()["detail"])
                assert found is not None, reply.text
                progress.append(int(found[1]))
                await asyncio.sleep(0.05)
    assert reply.status_code == 200, reply.text
    assert progress[0] < 30
    assert progress == sorted(progress)
    await told()
    assert await maps_made() == before + 30


async def test_a_grid_needs_no_more_room_among_the_maps_than_there_is(
    serve: ClientFactory, client: httpx.AsyncClient
) -> None:
    link = await job_of(client, 7, seed=78)
    async with serve(max_queued_maps=2) as narrow:  # one map of a caller may wait
        reply = await narrow.get(f"{link}/grid", params={"size": 64})
    assert reply.status_code == 200, reply.text


async def test_each_map_of_a_grid_that_has_to_be_made_counts(serve: ClientFactory, worker: object) -> None:
    await within_a_minute()
    async with serve(rate_limit=20, api_keys="rate-grid") as client:
        client.headers["X-API-Key"] = "rate-grid"
        link = await job_of(client, 6, seed=79)
        assert left(await client.get(f"{link}/grid")) == 20 - 1 - 1 - 6
        assert left(await client.get(f"{link}/grid")) == 11
        link = await job_of(client, 12, seed=80)  # 10 are left
        refused = await client.get(f"{link}/grid")
        assert refused.status_code == 429
        assert "of 12 maps are made" in refused.json()["detail"]
        assert refused.headers["retry-after"]


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("view=mean&points=3,3", 409, "leave points out"),
        ("view=overlay&points=1,1;2,2", 409, "shows one point"),
        ("view=overlay&points=32,1", 404, "outside the image"),
        ("view=figure", 422, "query.view"),
        ("image=1", 422, "It takes layer, view, points"),
        ("layer=4x4", 404, "8x8, 16x16"),
        ("size=1025", 422, "size"),
    ],
)
async def test_a_grid_that_cannot_be_painted_says_why(
    client: httpx.AsyncClient, link: str, query: str, status: int, says: str
) -> None:
    reply = await client.get(f"{link}/grid?{query}")
    assert reply.status_code == status
    assert says in reply.json()["detail"]


async def test_a_grid_of_a_job_that_is_not_done_or_does_not_attend_is_refused(
    client: httpx.AsyncClient, slow_queue: httpx.AsyncClient
) -> None:
    job = (await slow_queue.post("/generate/3", json={"count": 2})).json()
    waiting = await slow_queue.get(job["links"]["attention_grid"])
    assert (waiting.status_code, waiting.headers["retry-after"]) == (409, "1")
    job = (await client.post("/generate/3", json={"model": "plain"}, headers=WAIT)).json()
    reply = await client.get(job["links"]["attention_grid"])
    assert reply.json()["type"] == "urn:sagan:problem:no-attention"
