"""A request's id, its line in the log, and what it may not do to either."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.access import Access, id_of
from app.entrance import _SHED, _refusing
from app.errors import BadRequest
from jobs import tracing

if TYPE_CHECKING:
    from tests.unit.app.conftest import ClientFactory

TAKEN = [
    "mine-1",
    "6f1c6f5e-0b8e-4f0e-9a56-52b1c1cf7f51",
    "6F1C6F5E0B8E4F0E9A5652B1C1CF7F51",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "0af7651916cd43dd8448eb211c80319c/1234567",
    "req_011CSHoEeqs5C35K2UUqR7Fy",
    "Root=1-67891233-abcdef012345678912345678",
    "AAAAAAAAAAA+b/cd==",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "svc.eu-1:42#3",
    "x" * 128,
]
REPLACED = [
    "",
    "a b",
    "x" * 129,
    "a\nb",
    "a\x1b[31m",
    '"quoted"',
    "{json}",
    "<b>",
    "é",
    "a,b",
    "$(reboot)",
    "`ls`",
    "..\\..",
    "a\x00",
]


@pytest.mark.parametrize("given", TAKEN)
def test_the_ids_of_other_services_are_taken(given: str) -> None:
    assert id_of({b"x-request-id": given.encode()}) == given


@pytest.mark.parametrize("given", REPLACED, ids=ascii)
def test_an_odd_id_is_replaced(given: str) -> None:
    made = id_of({b"x-request-id": given.encode()})
    assert made != given
    assert len(made) == 16
    assert made != id_of({})


async def test_every_answer_has_the_id_and_one_line(
    serve: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(api_keys="k", max_body=1024) as client:
        with caplog.at_level("INFO", "sagan.access"):
            answers = [
                await client.request(
                    method, path, headers={"X-Request-ID": f"r{index}", **more}, content=body
                )
                for index, (method, path, more, body) in enumerate(
                    [
                        ("GET", "/health/live", {}, b""),
                        ("GET", "/nowhere", {}, b""),
                        ("GET", "/jobs", {}, b""),
                        ("POST", "/generate/cat", {"X-API-Key": "k"}, b"x" * 2000),
                        ("POST", "/generate/cat", {"X-API-Key": "k"}, b"{"),
                        ("PUT", "/jobs", {}, b""),
                        ("GET", "/jobs", {"Host": "["}, b""),
                        ("GET", "/jobs/abcdefghij", {"X-API-Key": "k"}, b""),
                    ]
                )
            ]
    assert [answer.status_code for answer in answers] == [200, 404, 401, 413, 422, 405, 400, 503]
    assert [answer.headers["x-request-id"] for answer in answers] == [f"r{i}" for i in range(len(answers))]
    lines = [record for record in caplog.records if record.name == "sagan.access"]
    assert [line.status for line in lines] == [answer.status_code for answer in answers]  # type: ignore[attr-defined]
    assert lines[-1].job_id == "abcdefghij"  # type: ignore[attr-defined]
    assert lines[-1].route == "/jobs/{job_id}"  # type: ignore[attr-defined]


async def test_a_refused_key_is_told_and_is_not_in_the_log(
    serve: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(api_keys="right") as client:
        await client.get("/jobs", headers={"X-API-Key": "wrong-guess"})
        await client.get("/jobs")
    told = [record for record in caplog.records if record.name == "sagan.audit"]
    # one that asks without a key has tried nothing
    assert [(line.message, line.reason) for line in told] == [("key refused", "unknown")]  # type: ignore[attr-defined]
    assert "wrong-guess" not in str([vars(record) for record in caplog.records])


async def test_what_our_own_middleware_breaks_is_answered_with_an_id_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a bug of ours")

    transport = httpx.ASGITransport(Access(broken))
    async with httpx.AsyncClient(transport=transport, base_url="http://sagan.test") as client:
        answer = await client.get("/models")
    assert (answer.status_code, len(answer.headers["x-request-id"])) == (500, 16)
    assert "a bug of ours" not in answer.text
    assert "a bug of ours" in caplog.text


async def test_refusals_at_the_entrance_have_the_id_and_a_line(caplog: pytest.LogCaptureFixture) -> None:
    for app, status in ((_SHED, 503), (_refusing(BadRequest("no"), close=True), 400)):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://sagan.test") as client:
            with caplog.at_level("INFO", "sagan.access"):
                answer = await client.post("/generate/cat", headers={"X-Request-ID": "r1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "r1")
        assert caplog.records[-1].status == status  # type: ignore[attr-defined]


async def test_a_client_s_trace_goes_on_though_we_trace_nothing(caplog: pytest.LogCaptureFixture) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["sagan.traceparent"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(Access(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://sagan.test") as client:
        for header in (given, "rubbish", given + "\t"):
            answer = await client.get("/", headers={"traceparent": header})
            assert "traceresponse" not in answer.headers
    assert not tracing.on()
    assert seen == [given, "", ""]
    assert logging.getLogger("sagan.access").level == logging.NOTSET
