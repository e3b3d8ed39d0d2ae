"""Whatever a client sends, it is told what to do, and never that we broke."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

DEEP = b'{"count":' + b"[" * 100_0 + b"]" * 100_0 + b"}"


def assert_problem(reply: httpx.Response, status: int, slug: str, says: str = "") -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["type"] == f"urn:sagan:problem:{slug}"
    assert problem["status"] == status
    assert problem["title"]
    assert says in problem["detail"]


@pytest.mark.parametrize(
    ("class_id", "says"),
    [
        ("10", "It has 0 to 9"),
        ("-1", "It has 0 to 9"),
        ("dgo", "Did you mean 'dog'?"),
        ("DOGG", "Did you mean 'dog'?"),
        ("1" + "0" * 30, "It has 0 to 9"),
        ("9" * 5000, "It has 0 to 9"),
        ("3.0", "no class '3.0'"),
        ("%00", "no class"),
        ("%ff", "no class"),
        ("%0d%0aX-Evil:%201", "no class"),
        ("²", "no class"),
        ("x" * 3000, "no class"),
    ],
)
async def test_an_unknown_class_in_the_path(client: httpx.AsyncClient, class_id: str, says: str) -> None:
    assert_problem(await client.post(f"/generate/{class_id}"), 404, "unknown-class", says)


@pytest.mark.parametrize("class_id", [10, -1, 10**30, -(10**50), "dgo", "10", " ", "\u0000"])
async def test_an_unknown_class_in_the_body(client: httpx.AsyncClient, class_id: Any) -> None:
    reply = await client.post("/generate", json={"class_id": class_id})
    assert_problem(reply, 404, "unknown-class", "no class")


@pytest.mark.parametrize("class_id", [None, True, 1.5, [], {}, ""])
async def test_a_class_that_is_neither_number_nor_name(client: httpx.AsyncClient, class_id: Any) -> None:
    at = "body: Give either class_id" if class_id is None else "body.class_id"
    assert_problem(await client.post("/generate", json={"class_id": class_id}), 422, "invalid", at)


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (b'{"count": 0}', "body.count"),
        (b'{"count": 65}', "body.count"),
        (b'{"count": 10000}', "body.count"),
        (b'{"count": "x"}', "body.count"),
        (b'{"count": "4"}', "body.count"),
        (b'{"count": true}', "body.count"),
        (b'{"count": 1.5}', "body.count"),
        (b'{"count": null}', "body.count"),
        (b'{"count": NaN}', "body.count"),
        (b'{"count": 1e400}', "body.count"),
        (b'{"seed": 9223372036854775808}', "body.seed"),
        (b'{"seed": -1}', "body.seed"),
        (b'{"seed": 1.0}', "body.seed"),
        (b'{"seed": true}', "body.seed"),
        (b'{"seed": ""}', "body.seed"),
        (b'{"seed": "0x10"}', "body.seed"),
        (b'{"seed": " 7"}', "body.seed"),
        (b'{"seed": "-1"}', "body.seed"),
        (b'{"seed": "9223372036854775808"}', "body.seed"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body"),
        (b'{"truncation": 0}', "body.truncation"),
        (b'{"truncation": 1.01}', "body.truncation"),
        (b'{"truncation": NaN}', "body.truncation"),
        (b'{"truncation": Infinity}', "body.truncation"),
        (b'{"priority": 10}', "body.priority"),
        (b'{"priority": -1}', "body.priority"),
        (b'{"model": 7}', "body.model"),
        (b'{"model": ""}', "body.model"),
        (b'{"model": "\\ud800"}', "body.model"),
        (b'{"cuont": 4}', "body.cuont"),
        (b'{"class_id": 3}', "body.class_id"),
        (b"not json", "body"),
        (b"{", "body"),
        (b"[1, 2]", "body"),
        (b"3", "body"),
        (b"null", "body"),
        (b"\xff\xfe{}", "body"),
        (b'{"model": "\xff"}', "body"),
        (DEEP, "body"),
        (b"\x00", "body"),
    ],
)
async def test_a_body_that_is_not_valid(client: httpx.AsyncClient, body: bytes, at: str) -> None:
    reply = await client.post("/generate/3", content=body, headers={"Content-Type": "application/json"})
    assert_problem(reply, 422, "invalid", at)
    assert reply.json()["errors"][0]["at"] == at


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/generate/3", b'{"cuont": 4}', "Did you mean 'count'?"),
        ("/generate", b'{"clas": "cat"}', "Did you mean 'class_id'?"),
        (
            "/generate/3",
            b'{"size": 64}',
            "There are class_id, class_weights, truncation, model, listed, priority, expires_in, retention, "
            "webhook, webhook_events, count, seed, start.",
        ),
        ("/generate/3", b'{"class_id": 3}', "The class stands in the path here."),
        ("/generate/3", b"seed=3", 'Send it like {"count": 4, "seed": 42, "truncation": 0.8}.'),
    ],
)
async def test_what_is_wrong_in_a_body_says_what_to_send(
    client: httpx.AsyncClient, path: str, body: bytes, says: str
) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what `curl -d` says
    assert_problem(await client.post(path, content=body, headers=form), 422, "invalid", says)


@pytest.mark.parametrize(
    ("path", "field"), [("/generate/3", "count"), ("/generate", "class_id"), ("/morph", "ends")]
)
async def test_what_is_no_json_is_told_how_this_route_is_asked(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = await client.post(path, content=b"{", headers=form)
    assert_problem(reply, 422, "invalid", f'Send it like {{"{field}": ')
    misnamed = await client.post("/morph", json={"ends": [], "frame": 2})
    assert_problem(misnamed, 422, "invalid", "Did you mean 'frames'?")


@pytest.mark.parametrize("body", [b"not json", b"null", b'{"model": "\xff"}', b"9" * 5000, DEEP, b"\x00"])
async def test_a_body_that_is_not_valid_and_not_said_to_be_json(
    client: httpx.AsyncClient, body: bytes
) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = await client.post("/generate/3", content=body, headers=headers)
    assert_problem(reply, 422, "invalid", "body")
    assert reply.json()["errors"][0]["at"] == "body"


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        (
            "GET",
            "/jobs?limits=3",
            "query.limits: There is no such parameter here. It takes limit, cursor, seeds.",
        ),
        ("GET", "/jobs?limit=1&limit=2", "query.limit: It is given 2 times. Give it once."),
        ("GET", "/jobs/abcdefgh/film?format=gif&format=gif", "query.format: It is given 2 times."),
        ("GET", "/models?page=2", "query.page: There is no such parameter here. It takes none."),
        (
            "GET",
            "/classes?model=plain&name=cat",
            "query.name: There is no such parameter here. It takes model.",
        ),
        ("POST", "/generate/cat?count=4", "stands in the body, as JSON"),
        ("POST", "/generate?class_id=cat", "stands in the body, as JSON"),
        ("GET", "/jobs/unknown-job/grid?resize=64", "It takes size, resample, format, quality."),
        ("GET", "/attention/unknown-job?images=1", "It takes image, layer, view, points"),
    ],
)
async def test_an_unknown_query_parameter_is_refused_as_an_unknown_field_is(
    client: httpx.AsyncClient, method: str, path: str, says: str
) -> None:
    assert_problem(await client.request(method, path), 422, "invalid", says)


async def test_an_unknown_model_is_told_which_there_are(client: httpx.AsyncClient) -> None:
    reply = await client.post("/generate/3", json={"model": "../../etc/passwd"})
    assert_problem(reply, 404, "unknown-model", "attentive, plain")
    assert_problem(await client.get("/classes?model=nope"), 404, "unknown-model", "attentive, plain")
    assert_problem(await client.get("/models/nope"), 404, "not-found", "attentive, plain")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "naïve"])
async def test_a_bad_idempotency_key(client: httpx.AsyncClient, key: str) -> None:
    reply = await client.post("/generate/3", headers={b"Idempotency-Key": key.encode()})
    assert_problem(reply, 422, "invalid", "Idempotency-Key")


@pytest.mark.parametrize("job_id", ["A" * 22, "x", "%2e%2e", "%00", "a:b", "*", "x" * 4000, "%E2%82%AC"])
@pytest.mark.parametrize("path", ["/jobs/{}", "/jobs/{}/images/0", "/jobs/{}/grid", "/attention/{}/map"])
async def test_an_unknown_job(client: httpx.AsyncClient, path: str, job_id: str) -> None:
    # sent as it is: httpx would otherwise resolve ".." by itself
    request = client.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.format(job_id).encode())
    assert_problem(await client.send(request), 404, "not-found")


@pytest.mark.parametrize("cursor", ["x", "-1", "1;2", "9" * 30, "²", "1.5", "+inf", "%00"])
async def test_a_bad_cursor(client: httpx.AsyncClient, cursor: str) -> None:
    assert_problem(await client.get(f"/jobs?cursor={cursor}"), 422, "invalid", "cursor")


@pytest.mark.parametrize("limit", ["0", "101", "x", "9" * 5000])
async def test_a_bad_limit(client: httpx.AsyncClient, limit: str) -> None:
    assert_problem(await client.get(f"/jobs?limit={limit}"), 422, "invalid", "query.limit")


@pytest.mark.parametrize(
    ("query", "status", "slug", "says"),
    [
        ("/images/2", 404, "not-found", "images 0 to 1"),
        ("/images/-1", 404, "not-found", "images 0 to 1"),
        ("/images/" + "9" * 40, 404, "not-found", "images 0 to 1"),
        ("/images/x", 422, "invalid", "path.index"),
        ("/images/0?size=15", 422, "invalid", "query.size"),
        ("/images/0?size=4096", 422, "invalid", "16 to 2048"),
        ("/images/0?size=x", 422, "invalid", "query.size"),
        ("/images/0?size=64&resample=cubic", 422, "invalid", "query.resample"),
        ("/images/0?sise=64", 422, "invalid", "query.sise"),
        ("/grid?size=99999999", 422, "invalid", "16 to 2048"),
    ],
)
async def test_a_picture_that_cannot_be_given(
    client: httpx.AsyncClient, query: str, status: int, slug: str, says: str
) -> None:
    job = (await client.post("/generate/3", json={"count": 2}, headers={"Prefer": "wait=30"})).json()
    assert_problem(await client.get(job["links"]["self"] + query), status, slug, says)


@pytest.mark.parametrize(
    ("query", "status", "slug", "says"),
    [
        ("points=32,0", 404, "not-found", "0 to 31"),
        ("points=0,32", 404, "not-found", "0 to 31"),
        ("points=-1,5", 404, "not-found", "0 to 31"),
        ("points=-0.5,5", 404, "not-found", "0 to 31"),
        ("points=5", 422, "invalid", "x,y;x,y"),
        ("points=", 422, "invalid", "x,y;x,y"),
        ("points=a,b", 422, "invalid", "x,y;x,y"),
        ("points=nan,1", 422, "invalid", "x,y;x,y"),
        ("points=1,2,3", 422, "invalid", "x,y;x,y"),
        ("points=1e3,1", 422, "invalid", "x,y;x,y"),
        ("points=99999999999,1", 422, "invalid", "x,y;x,y"),
        ("points=" + ";".join(["1,1"] * 9), 422, "invalid", "8 at most"),
        ("points=" + "1" * 5000, 422, "invalid", "query.points"),
        ("view=overlay&points=1,1;2,2", 409, "conflict", "one point"),
        ("view=film", 422, "invalid", "query.view"),
        ("colormap=jet", 422, "invalid", "query.colormap"),
        ("alpha=1.1", 422, "invalid", "query.alpha"),
        ("alpha=nan", 422, "invalid", "query.alpha"),
        ("size=63", 422, "invalid", "query.size"),
        ("size=100000", 422, "invalid", "query.size"),
        ("layer=64x64", 404, "not-found", "8x8, 16x16"),
        ("layer=%00", 404, "not-found", "8x8, 16x16"),
        ("image=1", 404, "not-found", "images 0 to 0"),
        ("image=x", 422, "invalid", "query.image"),
        ("point=1,1", 422, "invalid", "query.point"),
    ],
)
async def test_an_attention_view_that_cannot_be_given(
    client: httpx.AsyncClient, query: str, status: int, slug: str, says: str
) -> None:
    job = (await client.post("/generate/3", json={"seed": 1}, headers={"Prefer": "wait=30"})).json()
    assert_problem(await client.get(f"{job['links']['attention']}?{query}"), status, slug, says)


async def test_an_event_id_that_is_not_ours_replays_everything(client: httpx.AsyncClient) -> None:
    job = (await client.post("/generate/3", headers={"Prefer": "wait=30"})).json()
    for strange in ("x", "1-", "-", "9" * 40, "1-2-3"):
        reply = await client.get(job["links"]["events"], headers={"Last-Event-ID": strange})
        assert reply.status_code == 200
        assert "succeeded" in reply.text
