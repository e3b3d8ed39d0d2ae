"""The app as a whole: light, offline, and a problem document for everything that fails."""

from __future__ import annotations

import gc
import subprocess
import sys
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import httpx
import pytest

from serve.api import options

if TYPE_CHECKING:
    from tests.unit.app.conftest import ClientFactory


@pytest.mark.slow
def test_the_app_needs_no_torch() -> None:
    code = """if True:
        import sys
        from app.main import create_app
        create_app()
        heavy = {"torch", "torchvision", "model", "train", "safetensors"} & sys.modules.keys()
        sys.exit(f"imported: {heavy}" if heavy else 0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["/nowhere", "/jobs/a/b/c", "/static/no.js", "/static/../main.py", "/%00"])
async def test_an_unknown_address_is_a_problem(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == "urn:sagan:problem:not-found"
    assert "/docs" in reply.json()["detail"]


async def test_a_wrong_method_is_a_problem_that_names_the_right_one(client: httpx.AsyncClient) -> None:
    reads, makes = "GET, HEAD, OPTIONS", "OPTIONS, POST"
    wrong = [
        ("DELETE", "/models", reads),
        ("GET", "/generate/3", makes),
        ("POST", "/", reads),
        ("PUT", "/jobs/x", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/static/app.js", "GET, HEAD, OPTIONS"),
    ]
    for method, path, allowed in wrong:
        reply = await client.request(method, path)
        assert reply.status_code == 405
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["allow"] == allowed
        assert allowed in reply.json()["detail"]


async def test_our_own_mistake_is_a_problem_without_its_traceback(
    serve: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(allowed_origins="https://a.example") as client:
        app = client._transport.app  # type: ignore[attr-defined]
        app.state.store.models = None  # not callable: as a bug of ours would have it
        with caplog.at_level("INFO"):
            reply = await client.get("/models", headers={"Origin": "https://a.example"})
        counts = (await client.get("/metrics")).text
    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert "NoneType" not in reply.text
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    assert reply.headers["x-request-id"]
    assert "NoneType" in caplog.text
    told = {record.message: record for record in caplog.records}
    assert (told["request broke"].path, told["request"].path) == ("/models", "/models")  # type: ignore[attr-defined]
    assert told["request"].status == 500  # type: ignore[attr-defined]
    assert 'sagan_http_requests_total{method="GET",route="/models",status="500"} 1.0' in counts


async def test_head_is_wherever_get_is(client: httpx.AsyncClient) -> None:
    for path in (
        "/",
        "/docs",
        "/openapi.json",
        "/docs-start.js",
        "/static/app.js",
        "/health/live",
        "/metrics",
    ):
        head, whole = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        same = ("content-type", "content-length") if path != "/metrics" else ("content-type",)
        for name in same:
            assert head.headers[name] == whole.headers[name]
    assert (await client.head("/models")).status_code == 503  # there is no broker
    assert (await client.head("/nowhere")).status_code == 404
    schema = (await client.get("/openapi.json")).json()
    assert not any("head" in operations for operations in schema["paths"].values())


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/jobs/x", "DELETE, GET, HEAD, OPTIONS"),
        ("/jobs", "GET, HEAD, OPTIONS"),
        ("/generate/3", "OPTIONS, POST"),
        ("/", "GET, HEAD, OPTIONS"),
        ("/static/app.js", "GET, HEAD, OPTIONS"),
        ("/docs-assets/swagger-ui.css", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_says_what_may_be_asked(client: httpx.AsyncClient, path: str, methods: str) -> None:
    reply = await client.options(path)
    assert (reply.status_code, reply.headers["allow"]) == (204, methods)
    assert (await client.options("/nowhere")).status_code == 404


async def test_docs_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("<!doctype html>", "")  # no absolute address at all
    for asset in ("docs-assets/swagger-ui-bundle.js", "docs-assets/swagger-ui.css", "docs-start.js"):
        assert asset in page.text
        assert (await client.get(f"/{asset}")).status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "<script>" not in page.text


async def test_openapi_documents_every_route_and_its_problems(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    assert schema["paths"].keys() == {
        "/generate",
        "/generate/{class_id}",
        "/jobs",
        "/jobs/{job_id}",
        "/jobs/{job_id}/images/{index}",
        "/jobs/{job_id}/grid",
        "/jobs/{job_id}/events",
        "/jobs/{job_id}/film",
        "/jobs/{job_id}/webhooks",
        "/jobs/{job_id}/archive",
        "/attention/{job_id}/grid",
        "/attention/{job_id}",
        "/attention/{job_id}/map",
        "/models",
        "/morph",
        "/models/{name}",
        "/models/{name}/previews",
        "/classes",
        "/v1/images/generations",
        "/v1/models",
        "/v1/models/{name}",
        "/health/live",
        "/health/ready",
        "/health/seen",
        "/metrics",
    }
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert schema["components"]["schemas"]["Problem"]["properties"].keys() >= {"type", "title", "detail"}
    post = schema["paths"]["/generate/{class_id}"]["post"]
    assert not post["requestBody"].get("required")
    reference = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body = schema["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert body["properties"]["count"]["maximum"] == 64
    assert body["examples"]
    assert {parameter["name"] for parameter in post["parameters"]} == {
        "class_id",
        "Prefer",
        "Idempotency-Key",
        "Cancel-After",
        "seeds",
        "images",
    }
    for status in ("401", "403", "413", "422", "429", "503"):
        problem = post["responses"][status]["content"]["application/problem+json"]
        assert problem["example"]["status"] == int(status)
    # every reference leads somewhere
    references = [line for line in str(schema).split("'") if line.startswith("#/components/schemas/")]
    assert {line.rsplit("/", 1)[1] for line in references} <= schema["components"]["schemas"].keys()


async def test_openapi_names_the_key_where_one_is_needed(serve: ClientFactory) -> None:
    async with serve(api_keys="k") as client:
        schema = (await client.get("/openapi.json")).json()
    assert schema["security"] == [{"key": []}, {"bearer": []}]


def test_a_process_that_serves_looks_for_garbage_less_often() -> None:
    found = gc.get_threshold()
    try:
        resolve_name(options()["app"])()
        assert gc.get_threshold()[0] > found[0]
        assert gc.get_freeze_count() > 10_000  # what was loaded is not looked through
    finally:
        gc.set_threshold(*found)
        gc.unfreeze()


async def test_the_page_is_asked_about_each_time_and_sent_once(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    again = await client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status_code == 304
    assert (await client.get("/static/index.html")).text == page.text


async def test_the_page_obeys_its_own_policy(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert " style=" not in page.text
    assert " onclick=" not in page.text


async def test_every_response_has_an_id_that_a_log_line_has_too(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "sagan.access"):
        await client.get("/nowhere%0aFAKE LINE")
    [line] = [record for record in caplog.records if record.name == "sagan.access"]
    assert (line.method, line.path, line.status) == ("GET", "/nowhere\nFAKE LINE", 404)  # type: ignore[attr-defined]
    mine = await client.get("/health/live", headers={"X-Request-ID": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    strange = await client.get("/health/live", headers={"X-Request-ID": "a b"})
    assert strange.headers["x-request-id"] != "a b"
