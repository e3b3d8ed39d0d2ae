"""The service as the openai package meets it."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from imaging.recipes import read_recipe
from tests.integration.api.conftest import ClientFactory

openai = pytest.importorskip("openai")


Of = Callable[..., Any]


@pytest.fixture
async def of() -> AsyncIterator[Of]:
    """`of(client)`: the package's client of the service at which `client` asks."""
    made = []

    def of(client: httpx.AsyncClient, key: str = "none", **changes: Any) -> Any:
        base = str(client.base_url).rstrip("/")
        found = openai.AsyncOpenAI(**{"base_url": f"{base}/v1", "api_key": key, "max_retries": 0, **changes})
        made.append(found)
        return found

    yield of
    for one in made:
        await one.close()


def opened(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


async def test_models_are_listed_and_told(of: Of, client: httpx.AsyncClient) -> None:
    models = [model async for model in await of(client).models.list()]
    assert {model.id for model in models} == {"attentive", "plain"}
    assert all((model.object, model.owned_by) == ("model", "sagan") for model in models)
    assert all(model.created > 1_700_000_000 for model in models)
    one = await of(client).models.retrieve("plain")
    assert (one.id, one.resolution, one.classes[3]["name"]) == ("plain", 32, "cat")
    theirs, ours = (await client.get("/v1/models")).json(), (await client.get("/models")).json()
    assert theirs["models"] == ours["models"]


async def test_addresses_of_images_lead_to_them(of: Of, client: httpx.AsyncClient) -> None:
    answer = await of(client).images.generate(
        prompt="Cat, ship",
        n=3,
        model="plain",
        user="me",
        quality="auto",
        extra_body={"seed": 7, "truncation": 0.5},
    )
    assert (answer.size, answer.output_format, answer.background) == ("32x32", "png", "opaque")
    assert (answer.model, answer.seed) == ("plain", 7)
    assert [(one.revised_prompt, one.seed, one.index) for one in answer.data] == [
        ("cat", 7, 0),
        ("ship", 7, 0),
        ("cat", 7, 1),
    ]
    assert answer.data[0].job == answer.data[2].job != answer.data[1].job
    order = {"class_id": "cat", "count": 2, "seed": 7, "truncation": 0.5, "model": "plain"}
    same = (await client.post("/generate", json=order, headers={"Prefer": "wait=30"})).json()
    for image, link in ((answer.data[0], 0), (answer.data[2], 1)):
        found = await client.get(image.url)
        assert found.content == (await client.get(same["links"]["images"][link])).content
        assert image.b64_json is None


async def test_images_in_the_answer(of: Of, client: httpx.AsyncClient) -> None:
    answer = await of(client).images.generate(prompt="dog", n=2, model="default", response_format="b64_json")
    for image in answer.data:
        assert image.url is None
        kept = await client.get(f"/jobs/{image.job}/images/{image.index}")
        assert base64.b64decode(image.b64_json) == kept.content


async def test_enlarged_images_in_the_answer(of: Of, client: httpx.AsyncClient) -> None:
    ask = of(client).images.generate
    answer = await ask(prompt="dog, cat", size="96x96", response_format="b64_json")
    for image in answer.data:
        pixels = opened(image)
        assert (pixels.format, pixels.size) == ("PNG", (96, 96))
        enlarged = await client.get(f"/jobs/{image.job}/images/0?size=96&resample=lanczos")
        assert (
            pixels.convert("RGB").tobytes()
            == Image.open(io.BytesIO(enlarged.content)).convert("RGB").tobytes()
        )


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"size": "64x64"},
        {"output_format": "webp"},
        {"output_format": "webp", "output_compression": 30, "size": "96x96"},
        {"output_format": "jpeg", "output_compression": 0},
        {"output_format": "jpeg", "size": "32x32"},
    ],
)
async def test_an_address_has_the_same_file(of: Of, client: httpx.AsyncClient, asked: dict[str, str]) -> None:
    order = {"prompt": "dog", "extra_body": {"seed": 11}, **asked}
    there = (await of(client).images.generate(**order)).data[0]
    here = (await of(client).images.generate(**order, response_format="b64_json")).data[0]
    found = await client.get(there.url)
    assert found.content == base64.b64decode(here.b64_json)
    kind, side = asked.get("output_format", "png"), asked.get("size", "32x32")
    with Image.open(io.BytesIO(found.content)) as picture:
        assert f"{picture.width}x{picture.height}" == side
        assert picture.format == kind.upper()
    assert read_recipe(found.content) is not None


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ({"prompt": "a photo of a cat"}, "prompt", "Near it: cat"),
        ({"prompt": "cat", "n": 65}, "n", "less than or equal to 64"),
        ({"prompt": "cat, dog", "n": 1}, "n", "n must be 2"),
        ({"prompt": "cat", "size": "1024x1536"}, "size", "square"),
        ({"prompt": "cat", "size": "4096x4096"}, "size", "2048x2048"),
        ({"prompt": "cat", "n": 64, "size": "2048x2048"}, "size", "too many pixels"),
        ({"prompt": "cat", "quality": "hd"}, "quality", "'auto' or 'standard'"),
        ({"prompt": "cat", "style": "vivid"}, "style", "no style"),
        ({"prompt": "cat", "background": "transparent"}, "background", "'auto' or 'opaque'"),
        ({"prompt": "cat", "output_format": "gif"}, "output_format", "'png', 'webp' or 'jpeg'"),
        ({"prompt": "cat", "output_compression": 50}, None, "for webp and jpeg"),
        ({"prompt": "cat", "extra_body": {"sead": 7}}, "sead", "Did you mean 'seed'"),
        ({"prompt": "cat", "stream": True}, "stream", "POST /generate"),
        ({"prompt": "cat", "extra_query": {"images": "base64"}}, "images", "takes none"),
    ],
)
async def test_what_cannot_be_is_refused(
    of: Of, client: httpx.AsyncClient, asked: dict[str, Any], field: str | None, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await of(client).images.generate(**asked)
    assert words in refused.value.message
    assert refused.value.param == field
    assert refused.value.type == "invalid_request_error"


async def test_models_of_others_are_not_here(of: Of, client: httpx.AsyncClient) -> None:
    with pytest.raises(openai.NotFoundError, match="attentive, plain") as refused:
        await of(client).images.generate(prompt="cat", model="dall-e-3")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="attentive, plain"):
        await of(client).models.retrieve("gpt-image-1")


async def test_keys(of: Of, serve: ClientFactory, worker: object) -> None:
    async with serve(api_keys="right") as client:
        with pytest.raises(openai.AuthenticationError, match="none of this service's") as refused:
            await of(client, "wrong").images.generate(prompt="cat")
        assert refused.value.code == "invalid_api_key"
        answer = await of(client, "right").images.generate(prompt="cat")
        assert (await client.get(answer.data[0].url)).status_code == 401
        found = await client.get(answer.data[0].url, headers={"Authorization": "Bearer right"})
        assert found.headers["content-type"] == "image/png"


async def test_each_class_and_what_is_drawn_is_counted(of: Of, serve: ClientFactory, worker: object) -> None:
    async with serve(rate_limit=5, api_keys="openai-rate") as client:
        ask = of(client, "openai-rate").images.with_raw_response.generate
        two = await ask(prompt="cat, dog")
        assert '"minute";r=3' in two.headers["ratelimit"]
        drawn = await ask(prompt="cat", size="64x64", response_format="b64_json")
        assert '"minute";r=1' in drawn.headers["ratelimit"]
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(prompt="cat, dog")
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) > 0


async def test_jobs_that_come_too_late_are_cancelled(of: Of, slow_queue: httpx.AsyncClient) -> None:
    with pytest.raises(openai.InternalServerError, match="not made within 0 s") as refused:
        await of(slow_queue).images.generate(prompt="cat, dog", extra_headers={"Prefer": "wait=0"})
    assert (refused.value.status_code, refused.value.type) == (503, "server_error")
    jobs = (await slow_queue.get("/jobs")).json()["jobs"]
    assert [job["state"] for job in jobs] == ["cancelled", "cancelled"]


async def test_a_full_queue_takes_none_of_the_classes(of: Of, slow_queue: httpx.AsyncClient) -> None:
    for _ in range(7):
        assert (await slow_queue.post("/generate/cat")).status_code == 202
    with pytest.raises(openai.RateLimitError) as refused:
        await of(slow_queue).images.generate(prompt="cat, dog")
    assert refused.value.code == "queue_full"
    counts = [job["state"] for job in (await slow_queue.get("/jobs")).json()["jobs"]]
    assert (counts.count("queued"), counts.count("cancelled")) == (7, 1)


async def test_who_leaves_has_the_jobs_cancelled(of: Of, slow_queue: httpx.AsyncClient) -> None:
    await left(of, slow_queue, {})
    assert await until(slow_queue, lambda states: states != ["queued"]) == ["cancelled"]


async def test_who_has_a_key_may_come_back(of: Of, slow_queue: httpx.AsyncClient) -> None:
    await left(of, slow_queue, {"Idempotency-Key": "mine"})
    await left(of, slow_queue, {"Idempotency-Key": "mine"})
    assert await until(slow_queue, lambda states: len(states) > 0) == ["queued"]  # one job, and it goes on


async def left(of: Of, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Ask for a cat, and leave once the job is there."""
    asking = asyncio.create_task(of(client).images.generate(prompt="cat", extra_headers=headers))
    await until(client, lambda states: len(states) == 1)
    await asyncio.sleep(0.7)  # a wait watches its connection after half a second
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def until(client: httpx.AsyncClient, condition: Callable[[list[str]], bool]) -> list[str]:
    """Poll the states of the jobs until they are so; these states. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            states = [job["state"] for job in (await client.get("/jobs")).json()["jobs"]]
            if condition(states):
                return states
            await asyncio.sleep(0.05)


async def test_the_same_key_finds_the_same_images(of: Of, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "openai-again"}
    first, again = [await of(client).images.generate(prompt="cat, dog", extra_headers=key) for _ in range(2)]
    assert first.data == again.data
    with pytest.raises(openai.BadRequestError) as refused:
        await of(client).images.generate(prompt="cat, dog", n=4, extra_headers=key)
    assert refused.value.code == "key_reused"


async def test_addresses_follow_a_prefix(of: Of, serve: ClientFactory, worker: object) -> None:
    async with serve(root_path="/sagan") as client:
        base = f"{str(client.base_url).rstrip('/')}/sagan/v1"
        answer = await of(client, base_url=base).images.generate(prompt="cat", size="64x64")
        assert answer.data[0].url.startswith(f"{base}/jobs/")
        assert (await client.get(answer.data[0].url)).headers["content-type"] == "image/png"


async def test_links_stay_under_v1(client: httpx.AsyncClient) -> None:
    made = await client.post("/v1/generate/cat", headers={"Prefer": "wait=30"})
    links = made.json()["links"]
    assert made.headers["location"] == links["self"] == f"/v1/jobs/{made.json()['id']}"
    assert all(link.startswith("/v1/") for link in (*links["images"], links["events"], links["attention"]))
    assert (await client.get(links["attention"])).headers["content-type"] == "image/png"
    assert (await client.get(links["events"])).text.count("event: end") == 1
