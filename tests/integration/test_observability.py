"""One job of a running service, followed by its id through the log and through its trace."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from collector import Collector, collecting

from embedded import Sagan

UUID = "6f1c6f5e-0b8e-4f0e-9a56-52b1c1cf7f51"
TRACE = "0af7651916cd43dd8448eb211c80319c"
GIVEN = {"X-Request-ID": UUID, "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.fixture
async def traced(tmp_path: Path, checkpoints: Path) -> AsyncIterator[tuple[Sagan, Collector]]:
    with collecting(tmp_path / "traces.jsonl") as collector:
        sagan = Sagan(
            tmp_path,
            checkpoints,
            SAGAN_API_KEYS="secret-key",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="100",
        )
        yield sagan, collector
        if sagan.process.poll() is None:
            sagan.process.kill()
            sagan.process.wait()


def refused_at_the_door(port: int) -> str:
    """The answer to what is no HTTP."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"NONSENSE\x1b[31m\n\n\r\n\r\n")
        return connection.recv(65536).decode()


async def test_one_job_by_its_id(traced: tuple[Sagan, Collector]) -> None:
    sagan, collector = traced
    await sagan.says("ready with tiny")
    key = {"X-API-Key": "secret-key"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{sagan.port}", timeout=60) as client:
        made = await client.post("/generate/dog?count=1", headers=GIVEN | key)
        assert (made.status_code, made.headers["x-request-id"]) == (422, UUID)
        wait = {"Prefer": "wait=30"}
        made = await client.post("/generate/dog", headers=GIVEN | key | wait, json={"count": 3})
        assert made.headers["x-request-id"] == UUID
        assert made.headers["traceresponse"].startswith(f"00-{TRACE}-")
        wrong = await client.get("/jobs", headers={"X-API-Key": "guessed"})
        odd = await client.get("/x%0a%1b[31m%c2%9b", headers=key | {"X-Request-ID": "a b"})
        await client.delete(f"/jobs/{made.json()['id']}", headers=key)  # it has ended: nothing is cancelled
    assert (wrong.status_code, odd.status_code) == (401, 404)
    refusal = await anyio.to_thread.run_sync(refused_at_the_door, sagan.port)
    assert "x-request-id: " in refusal.lower()
    assert await sagan.stop(signal.SIGTERM) == 0

    lines = [json.loads(line) for line in sagan.output.splitlines()]
    assert {line["process"] for line in lines} == {"serve", "worker"}
    assert "secret-key" not in sagan.output
    assert "guessed" not in sagan.output

    job_id = made.json()["id"]
    life = [line for line in lines if line.get("job_id") == job_id]
    ordered = [line["event"] for line in sorted(life, key=lambda line: str(line["timestamp"]))]
    of_worker = [event for event in ordered if event not in ("job created", "request")]
    assert of_worker[:2] == ["job taken", "job begun"]
    assert "job in forward" in of_worker
    assert of_worker[-1] == "job ended"
    asked = [line for line in life if line["event"] in ("job created", "request")]
    assert [(line["event"], line.get("status"), line.get("method")) for line in asked] == [
        ("job created", None, None),
        ("request", 200, "POST"),
        ("request", 200, "DELETE"),
    ]
    by_order = life[:-1]  # the last asked in a request of its own
    assert {(line["request_id"], line["trace_id"], line["class"]) for line in by_order} == {
        (UUID, TRACE, "dog")
    }
    durations = {name for line in life for name in ("queued", "forward", "stored", "seconds") if name in line}
    assert durations == {"queued", "forward", "stored", "seconds"}
    assert sum(line["images"] for line in life if line["event"] == "job in forward") == 3

    assert [line["address"] for line in lines if line["event"] == "key refused"] == ["127.0.0.1"]
    [refused] = [line for line in lines if line["event"] == "request refused"]
    assert f"x-request-id: {refused['request_id']}" in refusal.lower()
    [strange] = [line for line in lines if line["event"] == "request" and line["status"] == 404]
    assert strange["request_id"] == odd.headers["x-request-id"] != "a b"

    _one_trace(job_id, collector)
    kept = (sagan.state.parent / "traces.jsonl").read_text()
    assert len(kept.splitlines()) == len(collector.spans)


def _one_trace(job_id: str, collector: Collector) -> None:
    """HTTP -> send -> queue and process -> forward and store."""
    found: dict[str, Any] = {
        span.name: span
        for span in collector.spans
        if span.trace == TRACE and span.attributes.get("http.response.status_code") != 422
    }
    http, send, process = (
        found["POST /generate/{class_id}"],
        found["send generate"],
        found["process generate"],
    )
    assert (http.service, http.kind, http.parent) == ("sagan-api", "server", "b7ad6b7169203331")
    assert http.attributes["http.route"] == "/generate/{class_id}"
    assert http.attributes["http.response.status_code"] == 200
    assert (send.kind, send.parent) == ("producer", http.id)
    assert (process.service, process.kind, process.parent) == ("sagan-worker", "consumer", send.id)
    assert (found["queue"].kind, found["queue"].parent) == ("consumer", send.id)
    assert (found["forward"].parent, found["forward"].links) == (process.id, [process.id])
    assert (found["store"].kind, found["store"].parent) == ("client", process.id)
    assert {each.attributes["sagan.job_id"] for each in (send, process, found["queue"])} == {job_id}
    assert http.began <= send.began <= process.began <= found["forward"].began <= found["store"].began
