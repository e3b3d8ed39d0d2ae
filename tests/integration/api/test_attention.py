"""/attention against a real worker: the figure, the overlay, the map."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis

if TYPE_CHECKING:
    from tests.integration.api.conftest import MapsMade, Told

WAIT = {"Prefer": "wait=30"}


@pytest.fixture
async def link(client: httpx.AsyncClient) -> str:
    reply = await client.post("/generate/3", json={"seed": 11, "count": 2}, headers=WAIT)
    found: str = reply.json()["links"]["attention"]
    return found


async def test_the_figure_shows_the_image_and_five_maps(client: httpx.AsyncClient, link: str) -> None:
    reply = await client.get(link)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "image/png"
    width, height = Image.open(io.BytesIO(reply.content)).size
    assert width > 6 * 256
    assert height > 256
    assert len(reply.headers["x-attention-points"].split(";")) == 5
    assert reply.headers["x-attention-layer"] == "8x8"
    assert float(reply.headers["x-attention-gamma"]) == pytest.approx(0.7)
    assert float(reply.headers["x-attention-share"]) > 0
    again = await client.get(link, headers={"If-None-Match": reply.headers["etag"]})
    assert again.status_code == 304


async def test_the_map_is_numpy_or_json_and_both_agree(client: httpx.AsyncClient, link: str) -> None:
    numpy = await client.get(f"{link}/map", params={"layer": "16x16", "image": 1})
    assert numpy.headers["content-type"] == "application/x-npy"
    values = np.load(io.BytesIO(numpy.content))
    assert values.dtype == np.float16
    assert values.shape == (256, 64)
    np.testing.assert_allclose(values.astype(np.float32).sum(axis=1), 1, atol=5e-3)
    accept = {"Accept": "application/json"}
    told = (await client.get(f"{link}/map", params={"layer": "16x16", "image": 1}, headers=accept)).json()
    assert told["query_grid"] == [16, 16]
    assert told["key_grid"] == [8, 8]
    assert told["layer"] == "16x16"
    assert told["gamma"] == pytest.approx(0.7)
    assert told["share"] == pytest.approx(float(numpy.headers["x-attention-share"]), rel=1e-4)
    np.testing.assert_allclose(np.array(told["map"]), values, atol=1e-6)


async def test_a_map_that_was_made_outlives_its_model(
    client: httpx.AsyncClient, link: str, redis_url: str
) -> None:
    before = await client.get(f"{link}/map", params={"layer": "16x16"})
    with Redis.from_url(redis_url) as redis:
        record = f"sagan:job:{link.rsplit('/', 1)[1]}"
        spec = json.loads(redis.hget(record, "spec"))
        redis.hset(record, "spec", json.dumps(spec | {"model_hash": "0" * 64}))
    assert (await client.get(f"{link}/map", params={"layer": "16x16"})).content == before.content
    assert (await client.get(link)).headers["x-attention-layer"] == "16x16"
    assert (await client.get(link, params={"image": 1})).status_code == 409


async def test_the_map_comes_gzipped_where_the_client_reads_that(
    client: httpx.AsyncClient, link: str
) -> None:
    plain = await client.get(f"{link}/map", headers={"Accept-Encoding": "identity"})
    zipped = await client.get(f"{link}/map", headers={"Accept-Encoding": "br, gzip;q=0.5"})
    refused = await client.get(f"{link}/map", headers={"Accept-Encoding": "gzip;q=0"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < int(plain.headers["content-length"])
    for reply in (plain, refused):
        assert "content-encoding" not in reply.headers
        assert reply.content == zipped.content  # httpx has unzipped it
    assert "Accept-Encoding" in plain.headers["vary"]
    assert plain.headers["etag"] != zipped.headers["etag"]  # a strong tag is of the bytes that are sent


async def test_a_rounded_map_is_off_by_half_a_level_at_most(client: httpx.AsyncClient, link: str) -> None:
    query: dict[str, str | int] = {"layer": "16x16", "image": 1}
    exact = np.load(io.BytesIO((await client.get(f"{link}/map", params=query)).content)).astype(np.float32)
    reply = await client.get(f"{link}/map", params=query | {"rounded": "true"})
    rows = np.load(io.BytesIO(reply.content))
    np.testing.assert_array_equal(rows["peak"], exact.max(axis=1))
    np.testing.assert_array_equal(rows["at"], exact.argmax(axis=1))
    off = np.abs(rows["levels"] / 255 * rows["peak"][:, None] - exact)
    assert (off <= rows["peak"][:, None] / 510 * 1.0001).all()
    assert off.max() > 0
    as_json = await client.get(
        f"{link}/map", params={"rounded": "true"}, headers={"Accept": "application/json"}
    )
    assert as_json.status_code == 422
    assert "rounded" in as_json.json()["detail"]


async def test_a_client_that_has_a_map_or_a_drawing_is_not_sent_it_again(
    client: httpx.AsyncClient, link: str
) -> None:
    for path in (f"{link}/map", f"{link}/map?rounded=true", f"{link}?view=overlay&points=4,20"):
        first = await client.get(path)
        again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = await client.get(path, params={"image": 1}, headers={"If-None-Match": first.headers["etag"]})
        assert other.status_code == 200


async def test_overlay_and_heatmap_have_the_size_asked_for(client: httpx.AsyncClient, link: str) -> None:
    pictures = {}
    for view in ("overlay", "heatmap"):
        reply = await client.get(link, params={"view": view, "points": "4,20", "size": 320})
        assert reply.status_code == 200, reply.text
        pictures[view] = Image.open(io.BytesIO(reply.content))
        assert pictures[view].size == (320, 320)
        assert reply.headers["x-attention-points"] == "4,20"
    assert pictures["overlay"].tobytes() != pictures["heatmap"].tobytes()


async def test_the_heatmaps_hottest_place_is_where_the_map_says(client: httpx.AsyncClient, link: str) -> None:
    values = np.load(io.BytesIO((await client.get(f"{link}/map")).content))  # 8x8 queries, 4x4 keys
    query: dict[str, str | int] = {"view": "heatmap", "points": "26,9", "size": 256, "colormap": "grey"}
    heat = np.asarray(Image.open(io.BytesIO((await client.get(link, params=query)).content)))[..., 0]
    row = values[(9 * 8 // 32) * 8 + 26 * 8 // 32]
    line, column = divmod(int(row.argmax()), 4)
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    assert (x // 64, y // 64) == (column, line)


async def test_points_may_be_several_and_are_drawn_in_order(client: httpx.AsyncClient, link: str) -> None:
    two = await client.get(link, params={"points": "0,0;31,31"})
    eight = await client.get(link, params={"points": ";".join(f"{4 * k},{4 * k}" for k in range(8))})
    assert Image.open(io.BytesIO(two.content)).width < Image.open(io.BytesIO(eight.content)).width


async def test_many_asking_at_once_cost_one_forward_and_later_ones_none(
    client: httpx.AsyncClient, link: str, told: Told, maps_made: MapsMade
) -> None:
    await told()
    before = await maps_made()
    replies = await asyncio.gather(*(client.get(f"{link}/map") for _ in range(12)))
    later = [
        await client.get(link),
        await client.get(link, params={"view": "overlay", "points": "4,20"}),
        await client.get(link, params={"view": "heatmap", "points": "20,4"}),
        await client.get(f"{link}/map", headers={"Accept": "application/json"}),
    ]
    assert {reply.status_code for reply in (*replies, *later)} == {200}
    await told()
    assert await maps_made() == before + 1


async def test_a_model_without_attention_says_so(client: httpx.AsyncClient) -> None:
    job = (await client.post("/generate/3", json={"model": "plain"}, headers=WAIT)).json()
    for link in (job["links"]["attention"], job["links"]["attention"] + "/map"):
        reply = await client.get(link)
        assert reply.status_code == 409
        assert reply.json()["type"] == "urn:sagan:problem:no-attention"
        assert "retry-after" not in reply.headers
