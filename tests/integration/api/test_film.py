"""GET /jobs/{id}/film: the images of a job one after the other."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imaging.enlarging import enlarged
from imaging.mp4 import ffmpeg
from imaging.recipes import read_recipe

if TYPE_CHECKING:
    from tests.integration.api.conftest import ClientFactory

WAIT = {"Prefer": "wait=30"}
needs_ffmpeg = pytest.mark.skipif(ffmpeg() is None, reason="ffmpeg is not on PATH")

Pixels = npt.NDArray[np.uint8]


async def finished(client: httpx.AsyncClient, **body: object) -> dict:  # type: ignore[type-arg]
    reply = await client.post("/generate/3", json=body, headers=WAIT)
    assert reply.status_code == 200, reply.text
    job: dict = reply.json()  # type: ignore[type-arg]
    return job


async def images(client: httpx.AsyncClient, job: dict) -> list[Pixels]:  # type: ignore[type-arg]
    return [pixels((await client.get(link)).content)[0] for link in job["links"]["images"]]


def pixels(data: bytes) -> list[Pixels]:
    """Every frame of a picture."""
    found = []
    with Image.open(io.BytesIO(data)) as film:
        for index in range(getattr(film, "n_frames", 1)):
            film.seek(index)
            found.append(np.asarray(film.convert("RGB")))
    return found


def duration(data: bytes) -> float:
    """Of the whole, ms."""
    total = 0.0
    with Image.open(io.BytesIO(data)) as film:
        for index in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(index)
            film.load()
            total += film.info["duration"]
    return total


@pytest.mark.parametrize(
    ("kind", "media_type"), [("webp", "image/webp"), ("apng", "image/apng"), ("gif", "image/gif")]
)
async def test_a_film_shows_every_image_in_order(
    client: httpx.AsyncClient, kind: str, media_type: str
) -> None:
    job = await finished(client, count=6, seed=3)
    made = await images(client, job)
    by_address = await client.get(job["links"]["film"], params={"format": kind, "seconds": 3})
    by_accept = await client.get(job["links"]["film"], params={"seconds": 3}, headers={"Accept": media_type})
    assert by_address.status_code == 200, by_address.text
    assert by_address.content == by_accept.content
    assert (by_accept.headers["vary"], by_accept.headers["content-type"]) == ("Accept", media_type)
    assert (
        f'filename="cat-seed3-film.{"png" if kind == "apng" else kind}"'
        in (by_address.headers["content-disposition"])
    )
    frames = pixels(by_address.content)
    assert len(frames) == 6
    assert duration(by_address.content) == 3000
    for frame, image in zip(frames, made, strict=True):
        apart = np.abs(frame.astype(int) - image)
        assert apart.mean() < (8 if kind == "gif" else 0.001)
    recipe = json.loads(read_recipe(by_address.content).text)
    assert recipe["drawn"] == {"as": "film", "size": 32, "resample": "nearest"}
    assert (recipe["seed"], recipe["count"], recipe["class_name"]) == (3, 6, "cat")


async def test_a_film_is_known_by_its_etag_and_differs_by_what_is_asked(client: httpx.AsyncClient) -> None:
    link = (await finished(client, count=3))["links"]["film"]
    tags = set()
    queries = ("", "format=apng", "fps=5", "seconds=2", "bounce=true", "loop=false", "quality=50", "size=40")
    for query in queries:
        reply = await client.get(f"{link}?{query}")
        assert reply.status_code == 200, reply.text
        known = await client.get(f"{link}?{query}", headers={"If-None-Match": reply.headers["etag"]})
        assert known.status_code == 304
        tags.add(reply.headers["etag"])
    assert len(tags) == len(queries)
    browser = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
    shown = await client.get(link, headers={"Accept": browser})
    assert shown.headers["content-type"] == "image/webp"


async def test_a_film_goes_there_and_back_and_may_end(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=4)
    made = await images(client, job)
    asked = {"bounce": "true", "loop": "false", "size": "64", "resample": "lanczos", "fps": "20"}
    reply = await client.get(job["links"]["film"], params=asked)
    frames = pixels(reply.content)
    for frame, index in zip(frames, (0, 1, 2, 3, 2, 1), strict=True):
        np.testing.assert_array_equal(frame, enlarged(made[index], 64, "lanczos"))
    assert duration(reply.content) == 300
    with Image.open(io.BytesIO(reply.content)) as film:
        assert film.info["loop"] == 1


async def test_a_strip_has_the_frames_side_by_side(client: httpx.AsyncClient) -> None:
    job = await finished(client, count=5)
    made = await images(client, job)
    row = pixels((await client.get(job["links"]["film"], params={"format": "strip"})).content)[0]
    np.testing.assert_array_equal(row, np.concatenate(made, axis=1))
    reply = await client.get(job["links"]["film"], params={"format": "strip", "columns": 2, "size": 64})
    assert reply.headers["content-type"] == "image/png"
    rows = pixels(reply.content)[0]
    assert rows.shape == (192, 128, 3)
    np.testing.assert_array_equal(rows[128:, :64], enlarged(made[4], 64, "nearest"))
    assert json.loads(read_recipe(reply.content).text)["drawn"]["columns"] == 2


@needs_ffmpeg
async def test_an_mp4_plays_and_is_the_same_again(client: httpx.AsyncClient, tmp_path: Path) -> None:
    job = await finished(client, count=6, seed=3)
    made = await images(client, job)
    asked = {"seconds": "2", "size": "77", "format": "mp4"}
    reply = await client.get(job["links"]["film"], params=asked)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "video/mp4"
    assert (await client.get(job["links"]["film"], params=asked)).content == reply.content
    recipe = read_recipe(reply.content)
    assert json.loads(recipe.text)["drawn"]["size"] == 78  # even
    (tmp_path / "film.mp4").write_bytes(reply.content)
    command = [ffmpeg() or "", "-v", "error", "-i", "film.mp4", "%d.png"]
    await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, check=True, timeout=60)
    for index, image in enumerate(made):
        # of noise: others are 80 apart
        [frame] = pixels((tmp_path / f"{index + 1}.png").read_bytes())
        assert np.abs(frame.astype(int) - enlarged(image, 78, "nearest")).mean() < 25
    assert not (tmp_path / "7.png").exists()


async def test_without_ffmpeg_an_mp4_says_what_to_do(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = await finished(client, count=2)
    monkeypatch.setenv("PATH", str(tmp_path))  # the API runs in this process
    for asked in ({"params": {"format": "mp4"}}, {"headers": {"Accept": "video/mp4"}}):
        reply = await client.get(job["links"]["film"], **asked)  # type: ignore[arg-type]
        assert (reply.status_code, reply.json()["type"]) == (406, "urn:sagan:problem:not-acceptable")
        assert "install ffmpeg on the API's machine, or ask for webp" in reply.json()["detail"]
    second = {"Accept": "video/mp4, image/gif;q=0.5"}
    reply = await client.get(job["links"]["film"], headers=second)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/gif")


async def test_an_ffmpeg_that_fails_is_told(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = await finished(client, count=2)
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho 'Unknown encoder' >&2\nexit 1\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    reply = await client.get(job["links"]["film"], params={"format": "mp4"})
    assert reply.status_code == 406, reply.text
    assert "Unknown encoder. Ask for webp" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("format=avi", 422, "'webp', 'apng', 'gif', 'mp4' or 'strip'"),
        ("seconds=2&fps=5", 422, "give one of them"),
        ("fps=nan", 422, "finite"),
        ("seconds=0", 422, "greater than 0"),
        ("format=strip&loop=true", 422, "leave out loop"),
        ("format=gif&quality=50", 422, "quality is for format=webp"),
        ("size=9999", 422, "size must be 16 to 2048"),
        ("attention=1", 422, "points must read"),
        ("attention=1,2;3,4", 422, "one point x,y"),
        ("attention=32,0", 404, "outside the image"),
        ("attention=1,2&layer=9x9", 404, "layer must be one of: 8x8, 16x16"),
        ("alpha=0.5", 422, "Add that, or leave them out"),
        ("frames=3", 422, "frames"),
    ],
)
async def test_a_film_that_cannot_be_given(
    client: httpx.AsyncClient, query: str, status: int, says: str
) -> None:
    job = await finished(client, count=2, model="attentive")
    reply = await client.get(f"{job['links']['film']}?{query}")
    assert reply.status_code == status, reply.text
    assert says in reply.json()["detail"]


async def test_one_image_is_no_film(client: httpx.AsyncClient) -> None:
    reply = await client.get((await finished(client))["links"]["film"])
    assert (reply.status_code, reply.json()["type"]) == (409, "urn:sagan:problem:conflict")
    assert "two images" in reply.json()["detail"]


async def test_a_film_has_a_bound_of_pixels_and_of_memory(serve: ClientFactory, worker: object) -> None:
    async with serve(drawing_memory=2**24) as client:
        job = await finished(client, count=64, model="plain")
        large = await client.get(job["links"]["film"], params={"size": 2000})
        assert (large.status_code, large.json()["type"]) == (409, "urn:sagan:problem:too-large")
        assert "size must be at most 1024 for a film of 64 frames" in large.json()["detail"]
        heavy = await client.get(job["links"]["film"], params={"size": 512})
        assert heavy.json()["type"] == "urn:sagan:problem:too-large"
        assert "Ask for a smaller size" in heavy.json()["detail"]
        assert (await client.get(job["links"]["film"], params={"size": 64})).status_code == 200


async def test_attention_is_painted_on_every_frame_from_the_maps_that_are_kept(
    client: httpx.AsyncClient,
) -> None:
    job = await finished(client, count=3, model="attentive")
    asked = {"attention": "20,9", "layer": "16x16", "size": "96", "colormap": "viridis", "alpha": "0.5"}
    early = await client.get(job["links"]["film"], params=asked)
    assert (early.status_code, early.json()["type"]) == (409, "urn:sagan:problem:conflict")
    assert "image 0 at 16x16" in early.json()["detail"]
    assert "POST /morph" in early.json()["detail"]
    drawing = {"view": "overlay", "points": "20,9", **asked}
    del drawing["attention"]
    shown = []
    for index in range(3):
        reply = await client.get(job["links"]["attention"], params={**drawing, "image": index})
        shown.append(pixels(reply.content)[0])
    reply = await client.get(job["links"]["film"], params=asked)
    assert reply.status_code == 200, reply.text
    for frame, alone in zip(pixels(reply.content), shown, strict=True):
        np.testing.assert_array_equal(frame, alone)
    told = json.loads(read_recipe(reply.content).text)["drawn"]
    assert told == {
        "as": "film",
        "size": 96,
        "attention": "20,9",
        "layer": "16x16",
        "colormap": "viridis",
        "alpha": 0.5,
    }
    strip = await client.get(job["links"]["film"], params={**asked, "format": "strip"})
    np.testing.assert_array_equal(pixels(strip.content)[0], np.concatenate(shown, axis=1))
    plain = await finished(client, count=2, model="plain")
    none = await client.get(plain["links"]["film"], params={"attention": "1,2"})
    assert none.json()["type"] == "urn:sagan:problem:no-attention"


async def test_a_morph_is_a_film_with_its_attention_and_an_archive(client: httpx.AsyncClient) -> None:
    ends = [{"class_id": "cat", "seed": 1}, {"class_id": "dog", "seed": 2}]
    body = {"ends": ends, "frames": 5, "attention": True, "layer": "16x16", "model": "attentive"}
    job = (await client.post("/morph", json=body, headers=WAIT)).json()
    made = await images(client, job)
    film = await client.get(job["links"]["film"])
    np.testing.assert_array_equal(pixels(film.content), made)
    told = json.loads(read_recipe(film.content).text)
    assert told["morph"] == {key: value for key, value in job["spec"]["morph"].items() if value is not None}
    painted = await client.get(job["links"]["film"], params={"attention": "3,4", "size": 64})
    assert painted.status_code == 200, painted.text  # its maps were made with it, of the layer asked for
    drawing = {"view": "overlay", "points": "3,4", "size": "64", "image": "2", "layer": "16x16"}
    alone = await client.get(job["links"]["attention"], params=drawing)
    np.testing.assert_array_equal(pixels(painted.content)[2], pixels(alone.content)[0])
    with zipfile.ZipFile(io.BytesIO((await client.get(job["links"]["archive"])).content)) as archive:
        assert archive.namelist() == [f"cat_to_dog-seed1-{k:04}.png" for k in range(5)]


def lives(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def test_a_client_that_leaves_ends_its_film(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = await finished(client, count=2)
    # it is asked for its codecs first, and then sleeps over the film
    script = (
        f'case "$2" in -encoders) exit 0;; esac; echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid'
    )
    (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\n{script}\nexec sleep 600\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    asking = asyncio.create_task(client.get(job["links"]["film"], params={"format": "mp4"}))
    async with asyncio.timeout(30):
        while not (tmp_path / "pid").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        asking.cancel()
        number = int((tmp_path / "pid").read_text())
        while lives(number):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await client.get(job["links"]["film"])).status_code == 200
