"""In which formats images leave: by `format`, by Accept, in an archive, in the job's answer."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from imaging.recipes import read_recipe

WAIT = {"Prefer": "wait=30"}
CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


async def finished(client: httpx.AsyncClient, **body: object) -> dict:  # type: ignore[type-arg]
    reply = await client.post("/generate/3", json=body, headers=WAIT)
    assert reply.status_code == 200, reply.text
    job: dict = reply.json()  # type: ignore[type-arg]
    return job


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def kind_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    with Image.open(io.BytesIO(reply.content)) as image:
        assert reply.headers["content-type"] == Image.MIME[str(image.format)]
        return str(image.format)


async def test_an_image_is_the_png_that_is_kept_unless_another_format_is_asked_for(
    client: httpx.AsyncClient,
) -> None:
    link = (await finished(client))["links"]["images"][0]
    kept = await client.get(link)
    for accept in ("*/*", CHROME, "image/*", "image/png"):
        reply = await client.get(link, headers={"Accept": accept})
        assert reply.content == kept.content
        assert (reply.headers["etag"], reply.headers["vary"]) == (kept.headers["etag"], "Accept")
    plain = await client.get(link, params={"format": "png"}, headers={"Accept": "image/webp"})
    assert plain.content == kept.content
    assert "vary" not in plain.headers
    for asked in ({"params": {"format": "webp"}}, {"headers": {"Accept": "image/webp"}}):
        reply = await client.get(link, **asked)  # type: ignore[arg-type]
        assert kind_of(reply) == "WEBP"
        np.testing.assert_array_equal(pixels(reply.content), pixels(kept.content))
    for asked in ({"params": {"format": "jpeg"}}, {"headers": {"Accept": "image/jpeg"}}):
        reply = await client.get(link, **asked)  # type: ignore[arg-type]
        assert kind_of(reply) == "JPEG"
        assert ".jpg" in reply.headers["content-disposition"]


async def test_every_format_and_quality_has_an_etag_of_its_own(client: httpx.AsyncClient) -> None:
    links = (await finished(client, count=2))["links"]
    for link in (links["images"][0], links["grid"]):
        tags = []
        for query in ("", "format=webp", "format=webp&quality=80", "format=jpeg", "format=jpeg&quality=80"):
            reply = await client.get(f"{link}?{query}")
            tags.append(reply.headers["etag"])
            again = await client.get(f"{link}?{query}", headers={"If-None-Match": tags[-1]})
            assert (again.status_code, again.content) == (304, b"")
            assert (await client.get(f"{link}?{query}")).content == reply.content
        assert len(set(tags)) == 5
        asked = {"Accept": "image/webp", "If-None-Match": tags[0]}  # a cache's PNG is no WebP
        assert kind_of(await client.get(link, headers=asked)) == "WEBP"
        asked["If-None-Match"] = tags[1]
        known = await client.get(link, headers=asked)
        assert (known.status_code, known.headers["vary"]) == (304, "Accept")


@pytest.mark.parametrize("query", ["format=png", "format=webp", "format=webp&quality=70", "format=jpeg"])
@pytest.mark.parametrize("size", ["", "&size=77", "&size=64&resample=lanczos"])
async def test_an_image_in_any_size_and_format_carries_its_recipe(
    client: httpx.AsyncClient, query: str, size: str
) -> None:
    link = (await finished(client, count=2, seed=7))["links"]["images"][1]
    kept = await client.get(link)
    recipe = read_recipe((await client.get(f"{link}?{query}{size}")).content)
    told, original = json.loads(recipe.text), json.loads(read_recipe(kept.content).text)
    how = told.pop("enlarged", None)
    assert told == original
    assert (how is None) == (not size)
    shown = pixels((await client.get(f"{link}?{query}{size}")).content)
    enlargement = recipe.enlargement()
    expected = pixels(kept.content) if enlargement is None else enlargement.of(pixels(kept.content))
    if recipe.lossless:
        np.testing.assert_array_equal(shown, expected)
    else:
        assert 0 < np.abs(shown.astype(int) - expected).mean() < 50


async def test_a_grid_has_the_recipe_of_its_job(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=3, seed=7)
    grids = {
        name: (await client.get(job["links"]["grid"], params={"format": name, "size": 48})).content
        for name in ("png", "webp", "jpeg")
    }
    np.testing.assert_array_equal(pixels(grids["png"]), pixels(grids["webp"]))
    for data in grids.values():
        told = json.loads(read_recipe(data).text)
        assert told["drawn"] == {"as": "grid", "size": 48, "resample": "nearest"}
        assert (told["count"], told["seed"], told["class_name"]) == (3, 7, "cat")
        assert told["model_hash"] == job["spec"]["model_hash"]
        assert "priority" not in told
    with Image.open(io.BytesIO(grids["jpeg"])) as image:
        assert image.getexif()[ExifTags.Base.Software] == "sagan"


@pytest.mark.parametrize(
    ("query", "accept", "status", "says"),
    [
        ("", "image/avif", 406, "There is image/png, image/webp, image/jpeg"),
        ("", "text/html", 406, "add ?format= instead"),
        ("", "image/png;q=0", 406, "Accept takes none"),
        ("quality=80", "*/*", 422, "a PNG keeps every pixel"),
        ("quality=80&format=png", "image/webp", 422, "a PNG keeps every pixel"),
        ("format=webp&quality=0", "*/*", 422, "greater than or equal to 1"),
        ("format=webp&quality=101", "*/*", 422, "less than or equal to 100"),
        ("format=avif", "*/*", 422, "'png', 'webp' or 'jpeg'"),
    ],
)
async def test_a_format_that_is_not_there_says_which_are(
    client: httpx.AsyncClient, query: str, accept: str, status: int, says: str
) -> None:
    links = (await finished(client, count=2))["links"]
    for link in (links["images"][0], links["grid"]):
        reply = await client.get(f"{link}?{query}", headers={"Accept": accept})
        assert reply.status_code == status, reply.text
        assert says in reply.json()["detail"]
        kind = "not-acceptable" if status == 406 else "invalid"
        assert reply.json()["type"] == f"urn:sagan:problem:{kind}"


async def test_a_webp_too_large_for_one_step_says_how_large_it_may_be(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=64, model="plain")
    link = job["links"]["grid"]
    reply = await client.get(link, params={"format": "jpeg", "size": 1000})
    assert (reply.status_code, reply.json()["detail"]) == (
        409,
        "As jpeg, size must be at most 362 here; as png it may be larger.",
    )
    reply = await client.get(link, params={"format": "jpeg", "size": 362})
    assert pixels(reply.content).shape == (8 * 364 - 2, 8 * 364 - 2, 3)


@pytest.mark.parametrize(
    ("accept", "kind"), [("image/webp", "WEBP"), ("image/jpeg", "JPEG"), ("image/*", "PNG")]
)
@pytest.mark.parametrize("count", [1, 3])
async def test_a_job_that_is_waited_for_answers_its_picture(
    client: httpx.AsyncClient, accept: str, kind: str, count: int
) -> None:
    asked = {**WAIT, "Accept": accept}
    reply = await client.post("/generate/3", json={"count": count, "seed": 5}, headers=asked)
    assert kind_of(reply) == kind
    assert json.loads(read_recipe(reply.content).text)["seed"] == 5
    assert "Accept" in reply.headers["vary"]


@pytest.mark.parametrize(("kind", "end"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")])
async def test_an_archive_has_every_image_under_its_name(
    client: httpx.AsyncClient, kind: str, end: str
) -> None:
    job = await finished(client, count=12, seed=42)
    reply = await client.get(job["links"]["archive"], params={} if kind == "png" else {"format": kind})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/zip"
    assert reply.headers["content-disposition"] == 'attachment; filename="cat-seed42.zip"'
    assert (await client.get(reply.url)).content == reply.content
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"cat-seed42-{k:04}.{end}" for k in range(12)]
        for link, name in zip(job["links"]["images"], archive.namelist(), strict=True):
            assert archive.read(name) == (await client.get(link, params={"format": kind})).content
    known = await client.get(reply.url, headers={"If-None-Match": reply.headers["etag"]})
    assert known.status_code == 304


async def test_an_archive_and_a_film_are_of_finished_jobs(slow_queue: httpx.AsyncClient) -> None:
    job = (await slow_queue.post("/generate/3", json={"count": 2})).json()
    for link in (job["links"]["archive"], job["links"]["film"]):
        early = await slow_queue.get(link)
        assert (early.status_code, early.json()["type"]) == (409, "urn:sagan:problem:not-finished")
        assert int(early.headers["retry-after"]) >= 1
    reply = await slow_queue.get(job["links"]["self"], params={"images": "base64"})
    assert reply.json()["images"] == [None, None]
    await slow_queue.delete(job["links"]["cancel"])
    for link in (job["links"]["archive"], job["links"]["film"]):
        assert (await slow_queue.get(link)).json()["type"] == "urn:sagan:problem:unsuccessful"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("quality=80", "a PNG keeps every pixel"),
        ("format=gif", "'png', 'webp' or 'jpeg'"),
        ("size=64", "size"),
    ],
)
async def test_an_archive_that_cannot_be_given(client: httpx.AsyncClient, query: str, says: str) -> None:
    job = await finished(client, count=2)
    reply = await client.get(f"{job['links']['archive']}?{query}")
    assert reply.status_code == 422
    assert says in reply.json()["detail"]


async def test_a_job_holds_its_images_where_that_is_asked_for(client: httpx.AsyncClient) -> None:
    body = {"count": 3, "seed": 9}
    for route in ("/generate/3", "/generate"):
        asked = body if route == "/generate/3" else {**body, "class_id": 3}
        reply = await client.post(f"{route}?images=base64", json=asked, headers=WAIT)
        job = reply.json()
        for link, held in zip(job["links"]["images"], job["images"], strict=True):
            assert base64.b64decode(held, validate=True) == (await client.get(link)).content
    again = await client.get(job["links"]["self"], params={"images": "base64"})
    assert again.json() == job
    assert "images" not in (await client.get(job["links"]["self"])).json()
    odd = await client.get(job["links"]["self"], params={"images": "hex"})
    assert odd.status_code == 422
    listed = (await client.get("/jobs")).json()["jobs"][0]
    assert "images" not in listed


async def test_so_many_bytes_of_images_are_fetched_as_an_archive(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await finished(client, count=2)
    monkeypatch.setattr("app.routes.jobs.MOST_INCLUDED", 1000)
    reply = await client.get(job["links"]["self"], params={"images": "base64"})
    assert (reply.status_code, reply.json()["type"]) == (409, "urn:sagan:problem:too-large")
    assert job["links"]["archive"] in reply.json()["detail"]


async def test_an_archive_counts_from_the_first_image_of_the_job(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=2, seed=42, start=37)
    reply = await client.get(job["links"]["archive"])
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.namelist() == ["cat-seed42-0037.png", "cat-seed42-0038.png"]


async def test_an_answer_may_hold_images_and_its_seed_as_a_string(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=1, seed=5)
    reply = await client.get(job["links"]["self"], params={"images": "base64", "seeds": "string"})
    assert reply.status_code == 200, reply.text
    assert (len(reply.json()["images"]), reply.json()["spec"]["seed"]) == (1, "5")
