"""/v1 is the service once more, and OpenAI's routes fail in OpenAI's shape."""

from __future__ import annotations

import re

import httpx
import pytest

from app.prefix import read_prefix
from app.v1 import speaks_openai
from tests.unit.app.conftest import ClientFactory


@pytest.mark.parametrize("path", ["/health/live", "/openapi.json", "/metrics"])
async def test_what_is_there_is_there_under_v1(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/v1{path}")).status_code == 200
    head = await client.head(f"/v1{path}")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs/x", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/generate/3", "OPTIONS, POST"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/images/generations", "OPTIONS, POST"),
    ],
)
async def test_options_under_v1(client: httpx.AsyncClient, path: str, methods: str) -> None:
    reply = await client.options(path)
    assert (reply.status_code, reply.headers["allow"]) == (204, methods)


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/docs", "/v1/static/app.js", "/v1/v1/jobs", "/v1/nothing"]
)
async def test_the_page_is_not_under_v1(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path)
    assert reply.status_code == 404
    assert reply.json()["instance"] == path


async def test_both_addresses_of_a_route_count_as_one(client: httpx.AsyncClient) -> None:
    for path in ("/jobs/x", "/v1/jobs/x", "/v1/jobs/y", "/v1/nothing/1", "/v1/nothing/2"):
        await client.get(path)
    counts = (await client.get("/metrics")).text
    routes = set(re.findall(r'sagan_http_requests_total\{method="GET",route="([^"]*)"', counts))
    assert routes == {"/jobs/{job_id}", "unrouted"}


async def test_unknown_parameters_are_refused_under_v1(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/classes?modle=x")).json()["errors"][0]["at"] == "query.modle"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/models", 503, "no_broker"),
        ("GET", "/v1/models/x", 503, "no_broker"),
        ("POST", "/v1/images/generations", 400, "invalid"),
        ("GET", "/v1/images/generations", 405, "method_not_allowed"),
        ("POST", "/v1/images/edits", 404, "not_found"),
        ("GET", "/v1/models?x=1", 400, "invalid"),
    ],
)
async def test_openais_routes_fail_in_its_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert ("retry-after" in reply.headers) == (status == 503)


@pytest.mark.parametrize(
    ("key", "words"), [({}, "Send a valid key"), ({"Authorization": "Bearer x"}, "none of")]
)
async def test_a_wrong_key_in_openais_shape(serve: ClientFactory, key: dict[str, str], words: str) -> None:
    async with serve(api_keys="k") as client:
        reply = await client.post("/v1/images/generations", headers=key, json={"prompt": "cat"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert words in reply.json()["error"]["message"]
        assert (await client.get("/v1/jobs", headers=key)).json()["type"] == "urn:sagan:problem:unauthorised"


async def test_a_body_too_large_in_openais_shape(serve: ClientFactory) -> None:
    async with serve(max_body=1024) as client:
        reply = await client.post("/v1/images/generations", json={"prompt": "c" * 2000})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("path", "openai"),
    [
        ("/v1/images/generations", True),
        ("/sagan/v1/models", True),
        ("/api/v1/v1/models/x", True),
        ("/models", False),
        ("/v1/models/x/previews", False),
        ("/v1/jobs/x", False),
    ],
)
def test_whose_shape_an_error_has(path: str, openai: bool) -> None:
    assert speaks_openai(path) == openai


def test_a_prefix_is_not_ours() -> None:
    with pytest.raises(ValueError, match="begins like a path of the service"):
        read_prefix("/v1")
