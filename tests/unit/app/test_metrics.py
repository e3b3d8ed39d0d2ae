"""What the API counts of its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from tests.unit.app.conftest import ClientFactory

OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


async def routes(client: httpx.AsyncClient) -> set[tuple[str, str]]:
    """Route and status of all requests so far."""
    families = text_string_to_metric_families((await client.get("/metrics", headers=OPENMETRICS)).text)  # type: ignore[no-untyped-call]
    requests = next(family for family in families if family.name == "sagan_http_requests")
    return {(sample.labels["route"], sample.labels["status"]) for sample in requests.samples}


async def test_every_request_has_a_route_of_few(serve: ClientFactory) -> None:
    async with serve(max_body=1024, root_path="/sagan", allowed_origins="https://a.example") as client:
        for path in ("/static/app.js", "/static/nothing.js", "/static/../x", "/", "/nothing", "/v1/nothing"):
            await client.get(path)
        await client.get("/models", headers={"Host": "evil.example"})
        await client.post("/generate/3", content=b"x" * 2000)
        await client.post("/models")
        await client.get("/sagan")
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        await client.options("/generate/3", headers=preflight)
        assert await routes(client) == {
            *{("static", "200"), ("static", "404"), ("/", "200"), ("unrouted", "404")},
            *{("refused", "403"), ("refused", "413"), ("/models", "405")},
            *{("other", "308"), ("other", "200")},
        }


async def test_refusals_are_counted_by_their_problem(serve: ClientFactory) -> None:
    async with serve(api_keys="a-key") as client:
        await client.get("/models")
        await client.get("/models", headers={"X-API-Key": "wrong"})
        await client.get("/nothing")
        keyed = {"X-API-Key": "a-key"}
        await client.get("/models", headers=keyed)  # without Redis
        await client.post("/generate/3", json={"count": 65}, headers=keyed)
        await client.get("/health/live")
        text = (await client.get("/metrics", headers=keyed)).text
    counts = [
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("sagan_http_refusals_total")
    ]
    found = {name.split('"')[1]: float(value) for name, value in counts}
    assert found == {"unauthorised": 2, "not-found": 1, "no-broker": 1, "invalid": 1}


async def test_openmetrics_where_it_is_asked_for(client: httpx.AsyncClient) -> None:
    await client.get("/models", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert plain.headers["vary"] == "Accept"
    assert "# EOF" not in plain.text
    reply = await client.get("/metrics", headers=OPENMETRICS)
    assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in text_string_to_metric_families(reply.text)}  # type: ignore[no-untyped-call]
    assert f'# {{trace_id="{TRACE}"}}' in reply.text
    assert {"sagan_http_request_seconds", "sagan_build", "process_cpu_seconds"} <= names
    assert not any(name.endswith("_created") for name in names)


async def test_without_a_broker_this_process_is_shown_all_the_same(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    assert "sagan_broker_up 0.0" in text
    assert "sagan_queue_depth" not in text
    assert 'sagan_build_info{component="api"' in text
